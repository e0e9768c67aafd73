"""The checkpoint layouts that can be read and written, by name, and which one a file has."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from alm_jax.convert import cav_mae, llama, ltu, ltu_as, whisper
from alm_jax.convert.formats import TensorFile
from alm_jax.convert.load import fold
from alm_jax.convert.names import PLAIN, PUBLISHED, Style
from alm_jax.convert.rules import Table
from alm_jax.core.errors import CheckpointError


@dataclass(frozen=True)
class Layout:
    """One layout of one model or part.

    Attributes:
        signature: patterns, each of which some key of such a file fits; no file of a layout below in the list fits all.
        table: from the config of the part (`LlamaConfig`, ...) or of the system (`AlmConfig`) to its table.
        sizes: that config, as far as a file tells it (`convert.sizes`); the rest is the default.
        heads: what `config.json` calls the number of attention heads, where tensors do not tell it.
        settings: from the same config to the `config.json` of `transformers`, where that has the model.
        style: how the published files of a model with LoRA spell the keys.
        becomes: of a layout that is read and not written, the one that is written instead.
    """

    signature: tuple[str, ...]
    table: Callable[[Any], Table]
    sizes: Callable[[TensorFile], Any]
    heads: str = "num_attention_heads"
    settings: Callable[[Any], dict[str, Any]] | None = None
    style: Style = PLAIN
    becomes: str = ""


_WHISPER_HEADS = "encoder_attention_heads"

# A layout whose name ends in `_hf` has the names of `transformers`.
LAYOUTS = {
    "ltu": Layout(("*audio_encoder.blocks_a.0.*", "*audio_proj.1.weight"), ltu.official, ltu.sizes, style=PUBLISHED),
    "ltu_as": Layout(
        ("*audio_encoder.time_tr.*", "*audio_proj.1.weight"), ltu_as.official, ltu_as.sizes, style=PUBLISHED
    ),
    "cav_mae": Layout(
        ("*blocks_a.0.*", "*patch_embed_a.proj.weight"), cav_mae.official, cav_mae.sizes, "audio_num_heads"
    ),
    "whisper_openai": Layout(
        ("*blocks.0.attn.query.weight", "*conv1.weight"), whisper.openai, whisper.sizes, _WHISPER_HEADS
    ),
    "whisper_hf": Layout(
        ("*layers.0.self_attn.k_proj.weight", "*conv1.weight"), whisper.hf, whisper.sizes, _WHISPER_HEADS
    ),
    "whisper_ctranslate2": Layout(
        ("encoder/layer_0/self_attention/*", "encoder/conv1/weight"),
        whisper.ctranslate2,
        whisper.sizes,
        _WHISPER_HEADS,
        becomes="whisper_hf",
    ),
    "llama_gguf": Layout(("blk.0.attn_q.weight", "blk.0.ffn_gate.weight"), llama.gguf, llama.sizes, becomes="llama_hf"),
    "llama_hf": Layout(
        ("*layers.0.self_attn.q_proj.*weight", "*layers.0.mlp.gate_proj.*weight"), llama.hf, llama.sizes
    ),
    "llama_lora": Layout(("*layers.0.*_proj.lora_A.*weight",), llama.hf, llama.sizes, becomes="llama_hf"),
}


def config_of(file: TensorFile, layout: str) -> Any:
    """The config of the part or system that a file of the layout `layout` holds (`LlamaConfig`, `AlmConfig`, ...).

    A size that neither the tensors nor `convert.sizes.settings_of` the file tell is the config's default; `heads` is 0
    where they do not tell it and the usual width of a head does not divide the model's.

    Raises:
        CheckpointError: `config.json` or `adapter_config.json` cannot be read.
    """
    return LAYOUTS[layout].sizes(file)


def kind_of(layout: str) -> type:
    """The class of config that a layout's table is made from."""
    return typing.get_type_hints(LAYOUTS[layout].table)["config"]


def heads_setting(config: Any) -> str:
    """What `config.json` calls the number of attention heads of such a part."""
    return next(layout.heads for name, layout in LAYOUTS.items() if kind_of(name) is type(config))


def detect(keys: Iterable[str]) -> str:
    """Name of the layout of a file with these keys.

    Raises:
        CheckpointError: it is none of `LAYOUTS`.
    """
    keys = list(keys)
    for name, layout in LAYOUTS.items():
        if all(any(fnmatchcase(key, pattern) for key in keys) for pattern in layout.signature):
            return name
    some = ", ".join(fold(keys)[:8]) or "no keys"
    raise CheckpointError(f"unknown checkpoint layout: {some}, ...; expected one of {', '.join(LAYOUTS)}")
