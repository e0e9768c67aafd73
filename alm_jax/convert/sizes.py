"""Which model a checkpoint is of: sizes read off its tensors, and the rest off the JSON files beside it."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.layouts import LAYOUTS
from alm_jax.convert.peft import MODULES, from_adapter_config
from alm_jax.core.errors import CheckpointError
from alm_jax.models.alm import AlmConfig
from alm_jax.models.decoders.llama import LlamaConfig, Lora
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.ltu import LORA, ltu
from alm_jax.models.ltu_as import ltu_as
from alm_jax.models.registry import CONFIGS

# The setting that holds a part's number of attention heads; CAV-MAE's is the name of LTU's own code.
HEADS = {
    LlamaConfig: "num_attention_heads",
    WhisperConfig: "encoder_attention_heads",
    CavMaeConfig: "audio_num_heads",
}
# Widths of one attention head, which no tensor tells: of LLaMA 7B to 65B, and of every CAV-MAE and Whisper.
_LLAMA_HEAD, _ENCODER_HEAD = 128, 64

_GGUF_SETTINGS = {
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "rope_theta": "llama.rope.freq_base",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
}


def config_of(file: TensorFile, layout: str) -> Any:
    """The config of the part or system that a file of the layout `layout` holds (`LlamaConfig`, `AlmConfig`, ...).

    A size that neither the tensors nor `settings_of` the file tell is the config's default; `heads` is 0 where they
    do not tell it and the usual width of a head (128 in LLaMA, 64 in the encoders) does not divide the model's. Of
    LTU-AS, whose Whisper has a file of its own, the encoder is the published one of the aligner's width.

    Raises:
        CheckpointError: `config.json` or `adapter_config.json` cannot be read.
    """
    kind = kind_of(layout)
    return _READERS[kind](file) if kind in _READERS else _SYSTEMS[layout](file)


def kind_of(layout: str) -> type:
    """The class of config that a layout's table is made from."""
    return typing.get_type_hints(LAYOUTS[layout].table)["config"]


def settings_of(file: TensorFile) -> dict[str, Any]:
    """What is said beside the tensors, in the names of `transformers`: `config.json` in a checkpoint's folder, or the
    metadata of GGUF; empty if there is none.

    Raises:
        CheckpointError: `config.json` is not readable JSON.
    """
    told = {name: file.metadata[key] for name, key in _GGUF_SETTINGS.items() if key in file.metadata}
    return told or json_beside(file, "config.json") or {}


def adapter_of(file: TensorFile) -> Lora | None:
    """The adapter that `adapter_config.json` beside a file describes; None if there is none."""
    config = json_beside(file, "adapter_config.json")
    return None if config is None else from_adapter_config(config)


def json_beside(file: TensorFile, name: str) -> dict[str, Any] | None:
    """The object in a JSON file beside a checkpoint; None if there is no such file.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    path = file.path.parent / name
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(content).__name__}, expected an object")
    return content


def _llama(file: TensorFile) -> LlamaConfig:
    keys, told, default = list(file.keys()), settings_of(file), LlamaConfig()
    embed = _shape(file, r"(?:embed_tokens|^token_embd)\.weight$", 2)
    gate = _shape(file, r"(?:layers\.0\.mlp\.gate_proj|^blk\.0\.ffn_gate)\.(?:base_layer\.)?weight$", 2)
    key = _shape(file, r"(?:layers\.0\.self_attn\.k_proj|^blk\.0\.attn_k)\.(?:base_layer\.)?weight$", 2)
    adapter = _shape(file, r"self_attn\.[qkv]_proj\.lora_A\.(?:\w+\.)?weight$", 2)
    dim = embed[1] if embed else adapter[1] if adapter else default.dim
    heads = _number(file, told, HEADS[LlamaConfig], int, _heads(dim, _LLAMA_HEAD))
    grouped = key[0] * heads // dim if key else heads
    rope = told.get("rope_parameters") if isinstance(told.get("rope_parameters"), dict) else {}
    return LlamaConfig(
        vocab_size=embed[0] if embed else default.vocab_size,
        dim=dim,
        depth=_count(keys, r"(?<!encoder\.)(?:layers|blk)\.(\d+)\.") or default.depth,
        heads=heads,
        kv_heads=_number(file, told, "num_key_value_heads", int, grouped),
        mlp_dim=gate[0] if gate else default.mlp_dim,
        rope_theta=_number(file, rope | told, "rope_theta", float, default.rope_theta),
        norm_eps=_number(file, told, "rms_norm_eps", float, default.norm_eps),
        tie_embeddings=embed is not None and not any(re.search(r"(lm_head|^output)\.weight$", key) for key in keys),
        lora=_lora(file, keys),
    )


def _lora(file: TensorFile, keys: list[str]) -> Lora | None:
    """Rank and places of the adapter by its tensors; alpha 16, as LTU and LTU-AS were published, unless it is told."""
    found = {match[1] for key in keys if (match := re.search(r"\.((?:self_attn|mlp)\.\w+_proj)\.lora_A\.", key))}
    rank = _shape(file, r"\.lora_A\.(?:\w+\.)?weight$", 2)
    if not found or rank is None:
        return None
    targets = tuple(ours for ours, theirs in MODULES.items() if theirs in found)
    return adapter_of(file) or replace(LORA, rank=rank[0], targets=targets)


def _cav_mae(file: TensorFile) -> CavMaeConfig:
    keys, default = list(file.keys()), CavMaeConfig()
    patch = _shape(file, r"patch_embed_a\.proj\.weight$", 4) or (default.dim, 1, default.patch, default.patch)
    places = _shape(file, r"pos_embed_a$", 3)
    hidden = _shape(file, r"blocks_a\.0\.mlp\.fc1\.weight$", 2)
    alone, joint = _count(keys, r"blocks_a\.(\d+)\."), _count(keys, r"blocks_u\.(\d+)\.")
    dim, side = patch[0], patch[2]
    in_frequency = max(1, default.mels // side)
    return CavMaeConfig(
        frames=places[1] // in_frequency * side if places else default.frames,
        patch=side,
        dim=dim,
        heads=_number(file, settings_of(file), HEADS[CavMaeConfig], int, _heads(dim, _ENCODER_HEAD)),
        depth=alone + joint,
        joint_depth=joint,
        mlp_ratio=hidden[0] / dim if hidden else default.mlp_ratio,
    )


def _whisper(file: TensorFile) -> WhisperConfig:
    keys, default = list(file.keys()), WhisperConfig()
    conv = _shape(file, r"conv1[./]weight$", 3) or (default.dim, default.mels, 3)
    names = r"embed_positions\.weight|positional_embedding|position_encodings/encodings"
    places = _shape(file, rf"(?<!decoder[./])(?:{names})$", 2)
    return WhisperConfig(
        mels=conv[1],
        dim=conv[0],
        heads=_number(file, settings_of(file), HEADS[WhisperConfig], int, _heads(conv[0], _ENCODER_HEAD)),
        depth=_count(keys, r"(?:^|encoder[./])(?:layers\.|blocks\.|layer_)(\d+)[./]"),
        positions=places[0] if places else default.positions,
    )


def _ltu(file: TensorFile) -> AlmConfig:
    return ltu(_llama(file), _cav_mae(file))


def _ltu_as(file: TensorFile) -> AlmConfig:
    width = (_shape(file, r"audio_proj\.1\.weight$", 2) or (0, 0))[1]
    published = {c.dim: c for c in CONFIGS.values() if isinstance(c, WhisperConfig)}
    return ltu_as(_llama(file), published.get(width, CONFIGS["whisper_large_v1"]))


_READERS: dict[type, Callable[[TensorFile], Any]] = {
    LlamaConfig: _llama,
    WhisperConfig: _whisper,
    CavMaeConfig: _cav_mae,
}
_SYSTEMS: dict[str, Callable[[TensorFile], AlmConfig]] = {"ltu": _ltu, "ltu_as": _ltu_as}


def _shape(file: TensorFile, pattern: str, axes: int) -> tuple[int, ...] | None:
    """Shape of the first tensor whose key fits; None if none does, or if it has other axes (which `load` reports)."""
    key = next((key for key in file.keys() if re.search(pattern, key)), None)
    shape = () if key is None else tuple(file.shape(key))
    return shape if len(shape) == axes and all(shape) else None


def _heads(dim: int, width: int) -> int:
    return 0 if dim % width else dim // width


def _number(file: TensorFile, told: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = told.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or kind(value) != value:
        raise CheckpointError(f"{file.path}: its config says that {name} is {value!r}; expected a number above 0")
    return kind(value)


def _count(keys: list[str], pattern: str) -> int:
    found = [int(match[1]) for key in keys if (match := re.search(pattern, key))]
    return max(found, default=-1) + 1
