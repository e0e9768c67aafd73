"""LLaMA and Qwen2 checkpoints: `transformers` `LlamaForCausalLM` and `Qwen2ForCausalLM`, with or without LoRA, and
llama.cpp's GGUF."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.peft import MODULES, lora_of, lora_rules
from alm_jax.convert.rules import LINEAR, TABLE, VECTOR, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, from_settings, heads_of, positive, settings_of, shape_of, to_settings, told_by
from alm_jax.core.errors import CheckpointError
from alm_jax.models.decoders.llama import LinearRope, Llama3Rope, LlamaConfig
from alm_jax.models.ltu import LORA

_HEAD_WIDTH = 128  # of LLaMA 7B to 65B, where nothing tells it

_SETTINGS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "positions": "max_position_embeddings",
}
_FIXED = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0}
_LLAMA3 = {name: name for name in ("factor", "low_freq_factor", "high_freq_factor")}
_LLAMA3["original_positions"] = "original_max_position_embeddings"
# By type: the class of `LlamaConfig.rope_scaling`, its fields and their names in the settings of the rope.
_ROPES = {"default": (None, {}), "linear": (LinearRope, {"factor": "factor"}), "llama3": (Llama3Rope, _LLAMA3)}
_GGUF_SETTINGS = {
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}

_GGUF_MODULES = {
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def hf(config: LlamaConfig) -> Table:
    """`model.layers.{i}.self_attn.q_proj.weight`, ...; LoRA keys under any of the seven linear layers of a block."""
    layers, prefix = range(config.depth), "model.layers.{i}."
    rules = [
        Rule("embed.embedding", "model.embed_tokens.weight", TABLE),
        Rule("norm.scale", "model.norm.weight", VECTOR),
        Rule("blocks.attn_norm.scale", each(prefix + "input_layernorm.weight", layers), VECTOR),
        Rule("blocks.mlp_norm.scale", each(prefix + "post_attention_layernorm.weight", layers), VECTOR),
    ]
    for ours, theirs in MODULES.items():
        rules.append(Rule(f"blocks.{ours}.kernel", each(f"{prefix}{theirs}.weight", layers), LINEAR))
        if ours in _biased(config):
            rules.append(Rule(f"blocks.{ours}.bias", each(f"{prefix}{theirs}.bias", layers), VECTOR))
        rules += lora_rules(f"blocks.{ours}", prefix + theirs, layers)
    return Table(
        rules=(*rules, *_head(config, "lm_head.weight")),
        dead=each(
            prefix + "self_attn.rotary_emb.inv_freq", layers
        ),  # a function of rope_theta, written by old versions
        tied=(("lm_head.weight", "model.embed_tokens.weight"),) if config.tie_embeddings else (),
        bare=("model.",),
    )


def gguf(config: LlamaConfig) -> Table:
    """`blk.{i}.attn_q.weight`, ...

    llama.cpp rotates neighbouring coordinates (2i, 2i + 1) of a LLaMA's head where the original weights rotate
    (i, i + width / 2), and stores query and key rows of each head in the order that makes both equal (`permute` in
    convert_hf_to_gguf.py). Qwen2 it rotates and stores as the original.
    """
    layers, prefix = range(config.depth), "blk.{i}."
    rules = [
        Rule("embed.embedding", "token_embd.weight", TABLE),
        Rule("norm.scale", "output_norm.weight", VECTOR),
        Rule("blocks.attn_norm.scale", each(prefix + "attn_norm.weight", layers), VECTOR),
        Rule("blocks.mlp_norm.scale", each(prefix + "ffn_norm.weight", layers), VECTOR),
    ]
    permuted = {"attn.q": config.heads, "attn.k": config.kv_heads} if config.bias != "qkv" else {}
    for ours, theirs in _GGUF_MODULES.items():
        kernel, bias = LINEAR, VECTOR
        if ours in permuted:
            kernel = Rearrange("(h pair half) i -> i (h half pair)", h=permuted[ours], half=2)
            bias = Rearrange("(h pair half) -> (h half pair)", h=permuted[ours], half=2)
        rules.append(Rule(f"blocks.{ours}.kernel", each(f"{prefix}{theirs}.weight", layers), kernel))
        if ours in _biased(config):
            rules.append(Rule(f"blocks.{ours}.bias", each(f"{prefix}{theirs}.bias", layers), bias))
    return Table(
        rules=(*rules, *_head(config, "output.weight")),
        dead=("rope_freqs.weight",),  # read by `sizes`
        tied=(("output.weight", "token_embd.weight"),) if config.tie_embeddings else (),
    )


def _biased(config: LlamaConfig) -> list[str]:
    return [f"attn.{name}" for name in config.bias]


def _head(config: LlamaConfig, key: str) -> tuple[Rule, ...]:
    return () if config.tie_embeddings else (Rule("head.kernel", key, LINEAR),)


def from_hf_config(settings: Mapping[str, Any]) -> LlamaConfig:
    """The model that a `config.json` of `transformers` describes (`LlamaConfig`, `Qwen2Config`), in old or new form.

    Raises:
        CheckpointError: settings are missing, or have no counterpart (another kind of rope, a sliding window); all are
            listed.
    """
    told = {name: value for name, value in settings.items() if value is not None}
    kind = told.get("model_type", "llama")
    usual = {"num_key_value_heads": told.get("num_attention_heads"), "rms_norm_eps": 1e-6}
    usual["max_position_embeddings"] = 32768 if kind == "qwen2" else 2048
    theta, scaling, problems = _rope(usual | told)
    if kind not in ("llama", "qwen2"):
        problems.append(f"model_type is {kind!r}; expected llama or qwen2")
    if told.get("use_sliding_window") or "sliding_attention" in told.get("layer_types", ()):
        problems.append("layers see a sliding window; expected full attention")
    names = {ours: name for ours, name in _SETTINGS.items() if ours != "head_dim" or name in told}
    config = LlamaConfig(
        **from_settings(usual | told, names, _FIXED, problems),
        bias="qkv" if kind == "qwen2" else "qkvo" if told.get("attention_bias") else "",
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=bool(told.get("tie_word_embeddings")),
    )
    return replace(config, head_dim=None) if config.head_dim == config.dim / config.heads else config


def _rope(told: Mapping[str, Any]) -> tuple[float, LinearRope | Llama3Rope | None, list[str]]:
    """Base, scaling and problems of `rope_parameters`, or of `rope_theta` and `rope_scaling`."""
    rope = {"rope_theta": told.get("rope_theta", 10000.0), "partial_rotary_factor": 1.0}
    rope["original_max_position_embeddings"] = told["max_position_embeddings"]
    for form in ("rope_scaling", "rope_parameters"):
        given = told.get(form, {})
        if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
            return 0.0, None, [f"{form} is {given!r}; expected one rope for all layers"]
        rope |= given
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPES:
        return 0.0, None, [f"rope_type is {kind!r}; expected {', '.join(_ROPES)}"]
    make, names = _ROPES[kind]
    problems = [
        f"{name} is {rope.get(name, 'missing')!r}; expected a number above 0"
        for name in ("rope_theta", *names.values())
        if not positive(rope.get(name))
    ]
    if rope["partial_rotary_factor"] != 1.0:
        problems.append(f"partial_rotary_factor is {rope['partial_rotary_factor']!r}; expected 1.0")
    return rope["rope_theta"], make and make(**{ours: rope.get(name) for ours, name in names.items()}), problems


def to_hf_config(config: LlamaConfig) -> dict[str, Any]:
    """The content of `config.json`, with the rope in both forms."""
    qwen = config.bias == "qkv"
    make = None if config.rope_scaling is None else type(config.rope_scaling)
    kind, names = next((kind, names) for kind, (cls, names) in _ROPES.items() if cls is make)
    rope = {"rope_type": kind, "rope_theta": config.rope_theta} | to_settings(config.rope_scaling, names)
    told = {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        **to_settings(replace(config, head_dim=config.head_width), _SETTINGS),
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if make is None else rope,
        "rope_parameters": rope,
    }
    return told | ({"use_sliding_window": False} if qwen else {"attention_bias": config.bias == "qkvo"})


def sizes(file: TensorFile) -> LlamaConfig:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide `dim`.

    Raises:
        CheckpointError: `config.json` beside it, or its own metadata, tells what has no counterpart.
    """
    keys, told = list(file.keys()), _gguf_settings(file) or settings_of(file)
    found = _found(file, keys)
    width = told.get("head_dim")
    rows = [shape_of(file, _weight(name), 2) for name in ("q", "k")]
    guess = heads_of(rows[0][0] if rows[0] else found["hidden_size"], width if positive(width) else _HEAD_WIDTH)
    heads = told.get("num_attention_heads", guess)
    if positive(heads) and all(rows):
        found["head_dim"] = rows[0][0] // int(heads)
        told = {"num_key_value_heads": rows[1][0] // max(1, found["head_dim"])} | told
    if told.get("tie_word_embeddings"):  # files that hold the head twice
        found["tie_word_embeddings"] = True
    config = told_by(file, from_hf_config, {"num_attention_heads": guess or 1} | told | found)
    bias = "".join(name for name in "qkvo" if any(re.search(_weight(name, "bias"), key) for key in keys))
    return replace(
        config,
        heads=config.heads if heads else 0,
        bias=bias if all(rows) else config.bias,
        lora=lora_of(file, MODULES, LORA),
    )


def _found(file: TensorFile, keys: list[str]) -> dict[str, Any]:
    """Settings that shapes tell; those of the default model where tensors are absent (an adapter alone)."""
    usual = to_settings(LlamaConfig(), _SETTINGS)
    embed = shape_of(file, r"(?:embed_tokens|^token_embd)\.weight$", 2)
    gate = shape_of(file, r"(?:layers\.0\.mlp\.gate_proj|^blk\.0\.ffn_gate)\.(?:base_layer\.)?weight$", 2)
    adapter = shape_of(file, r"self_attn\.[qkv]_proj\.lora_A\.(?:\w+\.)?weight$", 2)
    untied = any(re.search(r"(lm_head|^output)\.weight$", key) for key in keys)
    return {
        "vocab_size": embed[0] if embed else usual["vocab_size"],
        "hidden_size": embed[1] if embed else adapter[1] if adapter else usual["hidden_size"],
        "num_hidden_layers": count(keys, r"(?<!encoder\.)(?:layers|blk)\.(\d+)\.") or usual["num_hidden_layers"],
        "intermediate_size": gate[0] if gate else usual["intermediate_size"],
        "tie_word_embeddings": embed is not None and not untied,
    }


def _weight(name: str, leaf: str = "weight") -> str:
    """Pattern of a projection of block 0."""
    proj = "output" if name == "o" else name
    return rf"(?:layers\.0\.self_attn\.{name}_proj|^blk\.0\.attn_{proj})\.(?:base_layer\.)?{leaf}$"


def _gguf_settings(file: TensorFile) -> dict[str, Any]:
    """What the metadata of a GGUF file says, in the names of `transformers`; empty of another file."""
    kind = file.metadata.get("general.architecture", "llama")
    said = lambda name: _shortest(file.metadata.get(f"{kind}.{name}"))
    told = {name: said(key) for name, key in _GGUF_SETTINGS.items() if said(key) is not None}
    if not told:
        return {}
    if said("rope.scaling.type") not in (None, "none"):
        told["rope_scaling"] = {"rope_type": said("rope.scaling.type"), "factor": said("rope.scaling.factor")}
    elif "rope_freqs.weight" in file.keys():
        told["rope_scaling"] = _llama3_of(file, told.get("rope_theta", 10000.0))
    return told | {"model_type": kind}


def _shortest(value: Any) -> Any:
    """The number as it was written before it was rounded to float32 (1e-5, not 9.999999747378752e-06)."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _llama3_of(file: TensorFile, theta: float) -> dict[str, Any]:
    """Llama 3's scaling, which GGUF writes as what each frequency is divided by.

    Raises:
        CheckpointError: it is another scaling.
    """
    divisors = file.read("rope_freqs.weight").astype(np.float32)
    scaling = Llama3Rope(factor=float(divisors.max()))
    plain = np.float32(theta) ** -np.linspace(0, 1, len(divisors), endpoint=False, dtype=np.float32)
    if not np.allclose(plain / divisors, scaling.stretch(plain), rtol=1e-3):  # its own rounding is coarser than ours
        raise CheckpointError(f"{file.path}: rope_freqs.weight is not the scaling of Llama 3; expected {scaling}")
    return {"rope_type": "llama3"} | to_settings(scaling, _LLAMA3)
