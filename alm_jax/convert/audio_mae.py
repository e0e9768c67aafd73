"""Audio-MAE checkpoints: the encoder of the official `models_vit.py` (fine-tuned) and `models_mae.py` (pretrained)."""

from __future__ import annotations

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, VECTOR, Part, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, heads_of, number, settings_of, shape_of
from alm_jax.models.encoders.audio_mae import AudioMaeConfig

_HEAD_WIDTH = 64  # of every published one, where nothing tells it
_OVERLAPPING = 10  # the stride of the variant whose patches overlap
_RECONSTRUCTION = ("decoder_*", "mask_token")


def official(config: AudioMaeConfig) -> Table:
    """`blocks.{i}.attn.qkv.weight`, ... (timm's names); the norm is `fc_norm` or, in pretrained models, `norm`."""

    def keys(name: str) -> tuple[str, ...]:
        return each("blocks.{i}." + name, range(config.depth))

    rules = [
        Rule("class_token", "cls_token", Rearrange("1 1 d -> d")),
        Rule("pos_embed", "pos_embed", Rearrange("1 n d -> n d")),
        Rule("patch_embed.kernel", "patch_embed.proj.weight", Rearrange("d 1 t f -> (t f) d", t=config.patch)),
        Rule("patch_embed.bias", "patch_embed.proj.bias", VECTOR),
    ]
    for norm in ("norm1", "norm2"):
        rules.append(Rule(f"blocks.{norm}.scale", keys(f"{norm}.weight"), VECTOR))
        rules.append(Rule(f"blocks.{norm}.bias", keys(f"{norm}.bias"), VECTOR))
    for index, name in enumerate("qkv"):
        rules.append(Rule(f"blocks.attn.{name}.kernel", keys("attn.qkv.weight"), LINEAR, Part(index, 3)))
        rules.append(Rule(f"blocks.attn.{name}.bias", keys("attn.qkv.bias"), VECTOR, Part(index, 3)))
    for ours, theirs in (("attn.o", "attn.proj"), ("mlp.up", "mlp.fc1"), ("mlp.down", "mlp.fc2")):
        rules.append(Rule(f"blocks.{ours}.kernel", keys(f"{theirs}.weight"), LINEAR))
        rules.append(Rule(f"blocks.{ours}.bias", keys(f"{theirs}.bias"), VECTOR))
    norm = "fc_norm" if config.global_pool else "norm"
    if config.has_norm:
        rules += [Rule("norm.scale", f"{norm}.weight", VECTOR), Rule("norm.bias", f"{norm}.bias", VECTOR)]
    if config.classes is not None:
        rules += [Rule("head.kernel", "head.weight", LINEAR), Rule("head.bias", "head.bias", VECTOR)]
    other = "norm" if config.global_pool else "fc_norm"
    unused = (f"{other}.*", *(() if config.has_norm else (f"{norm}.*",)))
    unused += () if config.classes is not None else ("head.*",)
    return Table(tuple(rules), ignored=(*_RECONSTRUCTION, *unused))


def sizes(file: TensorFile) -> AudioMaeConfig:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide `dim`.

    Tensors do not tell frequency from time: the bands are 128, and the stride is the published one that fits.
    """
    keys, default = list(file.keys()), AudioMaeConfig()
    patch = shape_of(file, r"patch_embed\.proj\.weight$", 4) or (default.dim, 1, default.patch, default.patch)
    hidden = shape_of(file, r"blocks\.0\.mlp\.fc1\.weight$", 2)
    classes = shape_of(file, r"(?:^|\.)head\.weight$", 2)
    places = shape_of(file, r"(?<!decoder_)pos_embed$", 3)
    frames, stride = _length(places[1] - 1, patch[2]) if places else (default.frames, default.stride)
    return AudioMaeConfig(
        frames=frames,
        patch=patch[2],
        stride=stride,
        dim=patch[0],
        heads=number(file, settings_of(file), "num_heads", int, heads_of(patch[0], _HEAD_WIDTH)),
        depth=count(keys, r"(?<!decoder_)blocks\.(\d+)\."),
        mlp_dim=hidden[0] if hidden else default.mlp_dim,
        global_pool=shape_of(file, r"(?:^|\.)norm\.weight$", 1) is None,
        classes=classes[0] if classes else None,
    )


def _length(patches: int, patch: int) -> tuple[int, int]:
    """(frames, stride) of so many patches: the default length if it fits, else the shortest."""
    default = AudioMaeConfig()
    for stride in (patch, _OVERLAPPING):
        in_time, in_frequency = AudioMaeConfig(patch=patch, stride=stride).grid
        if in_frequency > 0 and patches % in_frequency == 0:
            found = patches // in_frequency
            return default.frames if found == in_time else (found - 1) * stride + patch, stride
    return default.frames, patch
