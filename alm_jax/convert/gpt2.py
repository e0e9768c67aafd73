"""GPT-2 checkpoints: `transformers` `GPT2LMHeadModel` and `GPT2Model`, with or without LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.peft import lora_of, lora_rules
from alm_jax.convert.rules import LINEAR, TABLE, VECTOR, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import (
    ACTIVATIONS,
    activation_of,
    count,
    from_settings,
    heads_of,
    settings_of,
    shape_of,
    to_settings,
    told_by,
)
from alm_jax.models.decoders.gpt2 import Gpt2Config

_HEAD_WIDTH = 64  # of every published GPT-2, where nothing tells it
_BASE = "transformer."
_KERNEL = Rearrange("i o -> i o")  # `Conv1D` holds a linear layer as we do
_SETTINGS = {
    "vocab_size": "vocab_size",
    "dim": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "mlp_dim": "n_inner",
    "positions": "n_positions",
    "norm_eps": "layer_norm_epsilon",
}
_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "model_type": "gpt2",
}
# Layers of a block: ours, theirs.
MODULES = {"attn.qkv": "attn.c_attn", "attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def hf(config: Gpt2Config) -> Table:
    """`transformer.h.{i}.attn.c_attn.weight`, ...; LoRA keys under any of the four linear layers of a block."""
    head = Table(tied=(("lm_head.weight", _BASE + "wte.weight"),))
    if not config.tie_embeddings:
        head = Table((Rule("head.kernel", "lm_head.weight", LINEAR),))
    return model(config).under(theirs=_BASE) + head + Table(bare=(_BASE,))


def model(config: Gpt2Config) -> Table:
    """`h.{i}.attn.c_attn.weight`, ...: the same without the head, as `GPT2Model` has it."""
    layers = range(config.depth)
    rules = [
        Rule("embed.embedding", "wte.weight", TABLE),
        Rule("pos_embed", "wpe.weight", TABLE),
        *_norm("norm", "ln_f"),
        *_norm("blocks.attn_norm", each("h.{i}.ln_1", layers)),
        *_norm("blocks.mlp_norm", each("h.{i}.ln_2", layers)),
    ]
    for ours, theirs in MODULES.items():
        rules.append(Rule(f"blocks.{ours}.kernel", each(f"h.{{i}}.{theirs}.weight", layers), _KERNEL))
        rules.append(Rule(f"blocks.{ours}.bias", each(f"h.{{i}}.{theirs}.bias", layers), VECTOR))
        rules += lora_rules(f"blocks.{ours}", f"h.{{i}}.{theirs}", layers)
    masks = (*each("h.{i}.attn.bias", layers), *each("h.{i}.attn.masked_bias", layers))  # written by old versions
    return Table(tuple(rules), dead=masks)


def _norm(path: str, keys: str | tuple[str, ...]) -> tuple[Rule, Rule]:
    ending = lambda leaf: keys + leaf if isinstance(keys, str) else tuple(key + leaf for key in keys)
    return Rule(f"{path}.scale", ending(".weight"), VECTOR), Rule(f"{path}.bias", ending(".bias"), VECTOR)


def from_hf_config(settings: Mapping[str, Any]) -> Gpt2Config:
    """The model that a `config.json` of `transformers` describes (`GPT2Config`).

    Raises:
        CheckpointError: settings are missing or have no counterpart; all are listed.
    """
    told = {name: value for name, value in settings.items() if value is not None}
    usual = {"layer_norm_epsilon": 1e-5, "n_positions": told.get("n_ctx", 1024)}
    if isinstance(told.get("n_embd"), int):
        usual["n_inner"] = 4 * told["n_embd"]
    kind, problems = activation_of(told, "activation_function", "gelu_new")
    return Gpt2Config(
        **from_settings(usual | told, _SETTINGS, _FIXED, problems),
        activation=kind,
        tie_embeddings=bool(told.get("tie_word_embeddings", True)),
    )


def to_hf_config(config: Gpt2Config) -> dict[str, Any]:
    """The content of `config.json`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **to_settings(config, _SETTINGS),
        "activation_function": ACTIVATIONS[config.activation][0],
        "tie_word_embeddings": config.tie_embeddings,
    }


def sizes(file: TensorFile) -> Gpt2Config:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide `dim`.

    Raises:
        CheckpointError: `config.json` beside it tells what has no counterpart.
    """
    keys, usual = list(file.keys()), to_settings(Gpt2Config(), _SETTINGS)
    words, places = shape_of(file, r"wte\.weight$", 2), shape_of(file, r"wpe\.weight$", 2)
    up = shape_of(file, r"h\.0\.mlp\.c_fc\.(?:base_layer\.)?weight$", 2)
    adapter = shape_of(file, r"(?:c_attn|c_fc)\.lora_A\.(?:\w+\.)?weight$", 2)
    dim = words[1] if words else adapter[1] if adapter else usual["n_embd"]
    found = {
        "vocab_size": words[0] if words else usual["vocab_size"],
        "n_embd": dim,
        "n_layer": count(keys, r"(?:^|\.)h\.(\d+)\.") or usual["n_layer"],
        "n_inner": up[1] if up else 4 * dim,
        "n_positions": places[0] if places else usual["n_positions"],
    }
    told, guess = settings_of(file), heads_of(dim, _HEAD_WIDTH)
    config = told_by(file, from_hf_config, {"n_head": guess or 1} | told | found)
    heads = config.heads if told.get("n_head") or guess else 0
    return replace(config, heads=heads, lora=lora_of(file, MODULES))
