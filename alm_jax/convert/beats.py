"""BEATs checkpoints: the official `{'cfg', 'model'}`, pretrained or fine-tuned."""

from __future__ import annotations

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import CONV1D, LINEAR, TABLE, VECTOR, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, number, shape_of
from alm_jax.core.errors import CheckpointError
from alm_jax.models.encoders.beats import BeatsConfig

# What a published `cfg` may say in one way alone; all published models do.
_FIXED = {
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "activation_fn": "gelu",
    "conv_bias": False,
}
_NORMS = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
_DENSE = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.out_proj",
    "attn.gate": "self_attn.grep_linear",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}


def official(config: BeatsConfig) -> Table:
    """`encoder.layers.{i}.self_attn.grep_linear.weight`, ...; every layer repeats the first one's bias of positions."""
    layers = range(config.depth)
    rules = [
        Rule("patch_embed.kernel", "patch_embedding.weight", Rearrange("d 1 t f -> (t f) d", t=config.patch)),
        Rule("pos_conv.length", "encoder.pos_conv.0.weight_g", Rearrange("1 1 k -> k")),
        Rule("pos_conv.direction", "encoder.pos_conv.0.weight_v", CONV1D),
        Rule("pos_conv.bias", "encoder.pos_conv.0.bias", VECTOR),
        Rule("blocks.attn.gate_scale", each("encoder.layers.{i}.self_attn.grep_a", layers), Rearrange("1 h 1 1 -> h")),
    ]
    for ours, theirs in {"patch_norm": "layer_norm", "norm": "encoder.layer_norm"}.items():
        rules += [Rule(f"{ours}.scale", f"{theirs}.weight", VECTOR), Rule(f"{ours}.bias", f"{theirs}.bias", VECTOR)]
    for ours, theirs in {"proj": "post_extract_proj", "head": "predictor"}.items():
        if ours == "head" and config.classes is None:
            continue
        rules += [Rule(f"{ours}.kernel", f"{theirs}.weight", LINEAR), Rule(f"{ours}.bias", f"{theirs}.bias", VECTOR)]
    for names, leaf, arrange in ((_NORMS, "scale", VECTOR), (_DENSE, "kernel", LINEAR)):
        for ours, theirs in names.items():
            pattern = "encoder.layers.{i}." + theirs
            rules.append(Rule(f"blocks.{ours}.{leaf}", each(f"{pattern}.weight", layers), arrange))
            rules.append(Rule(f"blocks.{ours}.bias", each(f"{pattern}.bias", layers), VECTOR))
    first, *others = each("encoder.layers.{i}.self_attn.relative_attention_bias.weight", layers)
    rules.append(Rule("position_bias", first, TABLE))
    ignored = ("predictor.*",) if config.classes is None else ()
    return Table(tuple(rules), ignored=ignored, tied=tuple((other, first) for other in others))


def sizes(file: TensorFile) -> BeatsConfig:
    """Sizes read off a file; `max_distance` by its `cfg` alone.

    Raises:
        CheckpointError: its `cfg` tells of a model that has no counterpart here.
    """
    told, default = file.metadata, BeatsConfig()
    if wrong := [f"{name} is {told[name]!r} (expected {value!r})" for name, value in _FIXED.items()
                 if told.get(name, value) != value]:  # fmt: skip
        raise CheckpointError(f"{file.path}: its cfg is not that of a supported BEATs: {'; '.join(wrong)}")
    patch = shape_of(file, r"patch_embedding\.weight$", 4) or (default.embed_dim, 1, default.patch, default.patch)
    conv = shape_of(file, r"pos_conv\.0\.weight_v$", 3)
    dim, inner, width = conv or (default.dim, default.dim // default.conv_groups, default.conv_width)
    table = shape_of(file, r"relative_attention_bias\.weight$", 2) or (default.buckets, default.heads)
    hidden = shape_of(file, r"layers\.0\.fc1\.weight$", 2)
    classes = shape_of(file, r"(?:^|\.)predictor\.weight$", 2)
    return BeatsConfig(
        patch=patch[2],
        embed_dim=patch[0],
        dim=dim,
        heads=table[1],
        depth=count(file.keys(), r"encoder\.layers\.(\d+)\."),
        mlp_dim=hidden[0] if hidden else default.mlp_dim,
        conv_width=width,
        conv_groups=dim // inner,
        buckets=table[0],
        max_distance=number(file, told, "max_distance", int, default.max_distance),
        classes=classes[0] if classes else None,
    )
