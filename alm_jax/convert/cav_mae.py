"""CAV-MAE's audio branch (official `cav_mae.py` and LTU's `CAVMAEFTAudio`)."""

from __future__ import annotations

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, VECTOR, Part, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, heads_of, number, settings_of, shape_of
from alm_jax.models.encoders.cav_mae import CavMaeConfig

_HEAD_WIDTH = 64  # of every published one, where nothing tells it

# The rest of the audio-visual model: the visual half, the joint norm, the reconstruction decoder, the classifier.
_REST = ("blocks_v.*", "patch_embed_v.*", "pos_embed_v", "modality_v", "norm_v.*", "norm.*")
_HEADS = ("mask_token", "decoder_*", "mlp_head.*")


def official(config: CavMaeConfig) -> Table:
    """`blocks_a.{i}` and `blocks_u.{i}`, the last `joint_depth` blocks, whose audio norms are `norm1_a` and `norm2_a`.

    Every block also has the norms of the two other streams, which this one never uses.
    """
    alone, joint = range(config.depth - config.joint_depth), range(config.joint_depth)

    def keys(own: str, shared: str | None = None) -> tuple[str, ...]:
        return (*each(f"blocks_a.{{i}}.{own}", alone), *each(f"blocks_u.{{i}}.{shared or own}", joint))

    patch = Rearrange("d 1 f t -> (f t) d", f=config.patch, t=config.patch)
    rules = [
        Rule("patch_embed.kernel", "patch_embed_a.proj.weight", patch),
        Rule("patch_embed.bias", "patch_embed_a.proj.bias", VECTOR),
        Rule("pos_embed", "pos_embed_a", Rearrange("1 n d -> n d")),
        Rule("modality", "modality_a", Rearrange("1 1 d -> d")),
        Rule("norm.scale", "norm_a.weight", VECTOR),
        Rule("norm.bias", "norm_a.bias", VECTOR),
    ]
    dead = []
    for norm in ("norm1", "norm2"):
        for ours, theirs in (("scale", "weight"), ("bias", "bias")):
            rules.append(Rule(f"blocks.{norm}.{ours}", keys(f"{norm}.{theirs}", f"{norm}_a.{theirs}"), VECTOR))
            dead += [*keys(f"{norm}_a.{theirs}", f"{norm}.{theirs}"), *keys(f"{norm}_v.{theirs}")]
    for index, name in enumerate("qkv"):
        rules.append(Rule(f"blocks.attn.{name}.kernel", keys("attn.qkv.weight"), LINEAR, Part(index, 3)))
        rules.append(Rule(f"blocks.attn.{name}.bias", keys("attn.qkv.bias"), VECTOR, Part(index, 3)))
    for ours, theirs in (("attn.o", "attn.proj"), ("mlp.up", "mlp.fc1"), ("mlp.down", "mlp.fc2")):
        rules.append(Rule(f"blocks.{ours}.kernel", keys(f"{theirs}.weight"), LINEAR))
        rules.append(Rule(f"blocks.{ours}.bias", keys(f"{theirs}.bias"), VECTOR))
    return Table(tuple(rules), dead=tuple(dead), ignored=(*_REST, *_HEADS))


def sizes(file: TensorFile) -> CavMaeConfig:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide `dim`."""
    keys, default = list(file.keys()), CavMaeConfig()
    patch = shape_of(file, r"patch_embed_a\.proj\.weight$", 4) or (default.dim, 1, default.patch, default.patch)
    places = shape_of(file, r"pos_embed_a$", 3)
    hidden = shape_of(file, r"blocks_a\.0\.mlp\.fc1\.weight$", 2)
    alone, joint = count(keys, r"blocks_a\.(\d+)\."), count(keys, r"blocks_u\.(\d+)\.")
    dim, side = patch[0], patch[2]
    in_frequency = max(1, default.mels // side)
    return CavMaeConfig(
        frames=places[1] // in_frequency * side if places else default.frames,
        patch=side,
        dim=dim,
        heads=number(file, settings_of(file), "audio_num_heads", int, heads_of(dim, _HEAD_WIDTH)),
        depth=alone + joint,
        joint_depth=joint,
        mlp_ratio=hidden[0] / dim if hidden else default.mlp_ratio,
    )
