"""Checkpoints of BLIP-2's image encoder: `transformers` (`Blip2VisionModel`, `InstructBlipVisionModel`), and LAVIS's
`eva_vit_g.pth`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, VECTOR, Part, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, from_settings, heads_of, number, settings_of, shape_of, to_settings, told_by
from alm_jax.models.encoders.vit import VitConfig

_SETTINGS = {
    "size": "image_size",
    "patch": "patch_size",
    "dim": "hidden_size",
    "heads": "num_attention_heads",
    "depth": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}

_HEAD_WIDTH = 88  # of ViT-g/14
_EVA_BLOCKS = 40  # of EVA's ViT-g/14; BLIP-2 runs all but the last

# Ours to theirs.
_HF = {
    "class_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed": "embeddings.patch_embedding",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.o": "self_attn.projection",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_OFFICIAL = {
    "class_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed": "patch_embed.proj",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.o": "attn.proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def hf(config: VitConfig) -> Table:
    """`encoder.layers.{i}.self_attn.qkv.weight`, ...; a bias of q and v alone is written with zeros for k."""
    layers = each("encoder.layers.{i}.", range(config.depth))
    norm = _pair("norm", "post_layernorm") if config.norm else ()
    biases = [] if config.bias == "o" else [(name if name in config.bias else None) for name in "qkv"]
    rules = [
        Rule(name and f"blocks.attn.{name}.bias", tuple(f"{i}self_attn.qkv.bias" for i in layers), VECTOR, Part(at, 3))
        for at, name in enumerate(biases)
    ]
    unused = () if config.norm else ("post_layernorm.*",)
    return Table((*_shared(config, layers, _HF), *rules, *norm), ignored=unused)


def official(config: VitConfig) -> Table:
    """`blocks.{i}.attn.qkv.weight`, `blocks.{i}.attn.q_bias`, ...; for a config without a norm.

    The file has one block more than BLIP-2 runs.
    """
    layers = each("blocks.{i}.", range(config.depth))
    rules = [
        Rule(f"blocks.attn.{name}.bias", tuple(f"{layer}attn.{name}_bias" for layer in layers), VECTOR)
        for name in ("qv" if config.bias != "o" else "")
    ]
    return Table(
        (*_shared(config, layers, _OFFICIAL), *rules),
        ignored=(f"blocks.{config.depth}.*", "norm.*", "fc_norm.*", "head.*"),
    )


def _shared(config: VitConfig, layers: tuple[str, ...], names: Mapping[str, str]) -> list[Rule]:
    """All but the biases of q, k and v and the last norm."""
    patch = Rearrange("d c h w -> (h w c) d", h=config.patch, w=config.patch)
    rules = [
        Rule("class_token", names["class_token"], Rearrange("1 1 d -> d")),
        Rule("pos_embed", names["pos_embed"], Rearrange("1 n d -> n d")),
        Rule("patch_embed.kernel", names["patch_embed"] + ".weight", patch),
        Rule("patch_embed.bias", names["patch_embed"] + ".bias", VECTOR),
    ]
    for ours in ("norm1", "norm2", "attn.o", "mlp.up", "mlp.down"):
        rules += _pair(f"blocks.{ours}", tuple(layer + names[ours] for layer in layers))
    packed = tuple(f"{layer}{names['attn.qkv']}.weight" for layer in layers)
    return rules + [Rule(f"blocks.attn.{name}.kernel", packed, LINEAR, Part(i, 3)) for i, name in enumerate("qkv")]


def _pair(path: str, keys: str | tuple[str, ...]) -> tuple[Rule, Rule]:
    """Weight and bias of a norm or of a linear layer."""
    name, arrange = ("scale", VECTOR) if "norm" in path else ("kernel", LINEAR)
    ending = lambda leaf: keys + leaf if isinstance(keys, str) else tuple(key + leaf for key in keys)
    return Rule(f"{path}.{name}", ending(".weight"), arrange), Rule(f"{path}.bias", ending(".bias"), VECTOR)


def from_hf_config(settings: Mapping[str, Any]) -> VitConfig:
    """The model that a `config.json` of `transformers` describes (`Blip2VisionConfig`, `InstructBlipVisionConfig`).

    Raises:
        CheckpointError: settings are missing or have no counterpart; all are listed.
    """
    told = from_settings(settings, _SETTINGS, {"hidden_act": "gelu"})
    return VitConfig(**told, bias="qkvo" if settings.get("qkv_bias", True) else "o")


def to_hf_config(config: VitConfig) -> dict[str, Any]:
    """The content of `config.json` (`Blip2VisionConfig`)."""
    told = {"model_type": "blip_2_vision_model", "architectures": ["Blip2VisionModel"], "hidden_act": "gelu"}
    return told | {"qkv_bias": config.bias != "o"} | to_settings(config, _SETTINGS)


def sizes(file: TensorFile) -> VitConfig:
    """Sizes that `config.json` tells, or those read off a file of either layout.

    Raises:
        CheckpointError: `config.json` tells what has no counterpart.
    """
    keys, default, told = list(file.keys()), VitConfig(), settings_of(file)
    norm = any(key.endswith("post_layernorm.weight") for key in keys)
    if "hidden_size" in told:
        return replace(told_by(file, from_hf_config, to_hf_config(default) | told), norm=norm)
    patch = shape_of(file, r"patch_embed(?:ding|\.proj)\.weight$", 4) or (default.dim, 3, default.patch, default.patch)
    places = shape_of(file, r"(?:position_embedding|pos_embed)$", 3) or (1, default.steps, patch[0])
    up = shape_of(file, r"(?:layers|blocks)\.0\.mlp\.fc1\.weight$", 2)
    depth = count(keys, r"(?:encoder\.layers|blocks)\.(\d+)\.") or default.depth
    official = any(key.endswith("attn.q_bias") for key in keys)
    return VitConfig(
        size=isqrt(places[1] - 1) * patch[2],
        patch=patch[2],
        dim=patch[0],
        heads=number(file, told, "num_attention_heads", int, heads_of(patch[0], _HEAD_WIDTH)),
        depth=depth - (depth == _EVA_BLOCKS),
        mlp_dim=up[0] if up else default.mlp_dim,
        bias="qvo" if official else "qkvo" if any(key.endswith("qkv.bias") for key in keys) else "o",
        norm=norm,
    )
