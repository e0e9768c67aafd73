"""HTS-AT: the official `htsat.py` (MS-CLAP) and `ClapAudioModel` of `transformers` (LAION CLAP)."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, TABLE, VECTOR, Part, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, from_settings, positive, settings_of, shape_of, to_settings, told_by
from alm_jax.core.errors import CheckpointError, ConfigError
from alm_jax.models.encoders.htsat import HtsatConfig

_SETTINGS = {
    "mels": "num_mel_bins",
    "image": "spec_size",
    "patch": "patch_size",
    "stride": "patch_stride",
    "embed_dim": "patch_embeds_hidden_size",
    "window": "window_size",
    "norm_eps": "layer_norm_eps",
    "fusion_ratio": "aff_block_r",
}
_FIXED = {
    "hidden_act": "gelu",
    "patch_embed_input_channels": 1,
    "flatten_patch_embeds": True,
    "enable_patch_layer_norm": True,
    "qkv_bias": True,
}
# Layers of a block: ours, theirs.
_OFFICIAL = {"norm1": "norm1", "norm2": "norm2", "attn.o": "attn.proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
_HF = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
_POINTWISE = Rearrange("o i 1 1 -> i o")  # a convolution over single places
# Where the encoder is in a whole CLAP.
OFFICIAL_PREFIX = "audio_encoder.base.htsat."
HF_PREFIX = "audio_model.audio_encoder."


def official(config: HtsatConfig) -> Table:
    """`audio_encoder.base.htsat.layers.{stage}.blocks.{i}.attn.qkv.weight`, ...; an encoder alone lacks the prefix."""
    rest = ("audio_encoder.projection.*", "caption_encoder.*", "logit_scale")
    return official_model(config).under(theirs=OFFICIAL_PREFIX) + Table(ignored=rest, bare=(OFFICIAL_PREFIX,))


def hf(config: HtsatConfig) -> Table:
    """`audio_model.audio_encoder.layers.{stage}.blocks.{i}.attention.self.query.weight`, ...: `ClapModel` and parts."""
    rest = ("audio_projection.*", "text_model.*", "text_projection.*", "logit_scale_?")
    bare = ("audio_model.", HF_PREFIX)
    return hf_model(config).under(theirs=HF_PREFIX) + Table(ignored=rest, bare=bare)


def official_model(config: HtsatConfig) -> Table:
    """`layers.{stage}.blocks.{i}.attn.qkv.weight`, ...: the names inside.

    The constants of the front end, the windows' masks and indices and a linear classifier that the token-semantic head
    has replaced are never used.
    """
    rules = [*_trunk(config, "bn0")]
    for path, pattern, blocks in _blocks(config):
        rules += _layers(path, pattern, _OFFICIAL, blocks)
        rules.append(Rule(f"{path}.attn.position_bias", each(f"{pattern}.attn.{_BIAS}", blocks), TABLE))
        for index, name in enumerate("qkv"):
            part = Part(index, 3)
            rules.append(Rule(f"{path}.attn.{name}.kernel", each(f"{pattern}.attn.qkv.weight", blocks), LINEAR, part))
            rules.append(Rule(f"{path}.attn.{name}.bias", each(f"{pattern}.attn.qkv.bias", blocks), VECTOR, part))
    if config.classes is not None:
        rules.append(Rule("head.kernel", "tscam_conv.weight", Rearrange("o d f t -> t f d o")))
        rules.append(Rule("head.bias", "tscam_conv.bias", VECTOR))
    dead = (*_DEAD, *_constants(config, "attn.relative_position_index", "attn_mask"))
    return Table(tuple(rules), dead, ignored=() if config.classes is not None else ("tscam_conv.*",))


_BIAS = "relative_position_bias_table"
_DEAD = (
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
    "logmel_extractor.melW",
    "bn0.num_batches_tracked",
    "head.weight",
    "head.bias",
)


def hf_model(config: HtsatConfig) -> Table:
    """`layers.{stage}.blocks.{i}.attention.self.query.weight`, ...: the names inside."""
    rules, dead = [*_trunk(config, "batch_norm")], ["batch_norm.num_batches_tracked"]
    for path, pattern, blocks in _blocks(config):
        rules += _layers(path, pattern, _HF, blocks)
        rules.append(Rule(f"{path}.attn.position_bias", each(f"{pattern}.attention.self.{_BIAS}", blocks), TABLE))
    if config.fusion:
        sizes = {"h": config.patch, "w": 3 * config.patch}
        rules += _conv("fusion.conv", "patch_embed.mel_conv2d", **sizes)
        # the layers' places in `nn.Sequential`, where global pooling comes before the others
        for ours, theirs, first in (("local", "local_att", 0), ("whole", "global_att", 1)):
            for offset, layer in ((0, "down"), (3, "up")):
                conv, norm = (f"patch_embed.fusion_model.{theirs}.{first + offset + i}" for i in (0, 1))
                rules.append(Rule(f"fusion.{ours}.{layer}.kernel", f"{conv}.weight", _POINTWISE))
                rules.append(Rule(f"fusion.{ours}.{layer}.bias", f"{conv}.bias", VECTOR))
                rules += _batch_norm(f"fusion.{ours}.{layer}_norm", norm)
                dead.append(f"{norm}.num_batches_tracked")
    return Table(tuple(rules), dead=(*dead, *_constants(config, "attention.self.relative_position_index")))


def _trunk(config: HtsatConfig, norm: str) -> list[Rule]:
    """What is not a block."""
    rules = [*_batch_norm("norm0", norm), *_conv("patch_embed", "patch_embed.proj", h=config.patch, w=config.patch)]
    norms = {"patch_norm": "patch_embed.norm", "norm": "norm"}
    for stage in range(len(config.depths) - 1):
        norms[f"stages.{stage}.merge.norm"] = f"layers.{stage}.downsample.norm"
        kernel = f"layers.{stage}.downsample.reduction.weight"
        rules.append(Rule(f"stages.{stage}.merge.reduction.kernel", kernel, LINEAR))
    for ours, theirs in norms.items():
        rules += [Rule(f"{ours}.scale", f"{theirs}.weight", VECTOR), Rule(f"{ours}.bias", f"{theirs}.bias", VECTOR)]
    return rules


def _blocks(config: HtsatConfig) -> list[tuple[str, str, range]]:
    """(our path, their pattern, numbers of the blocks) of every stack: plain windows are even, shifted ones odd."""
    found = []
    for stage, depth in enumerate(config.depths):
        paired = depth - depth % 2
        stacks = {
            "pairs.plain": range(0, paired, 2),
            "pairs.shifted": range(1, paired, 2),
            "unpaired": range(paired, depth),
        }
        found += [(f"stages.{stage}.{name}", f"layers.{stage}.blocks.{{i}}", n) for name, n in stacks.items() if n]
    return found


def _layers(path: str, pattern: str, names: dict[str, str], blocks: range) -> list[Rule]:
    rules = []
    for ours, theirs in names.items():
        weight, arrange = ("scale", VECTOR) if ours.startswith("norm") else ("kernel", LINEAR)
        rules.append(Rule(f"{path}.{ours}.{weight}", each(f"{pattern}.{theirs}.weight", blocks), arrange))
        rules.append(Rule(f"{path}.{ours}.bias", each(f"{pattern}.{theirs}.bias", blocks), VECTOR))
    return rules


def _conv(path: str, key: str, **sizes: int) -> list[Rule]:
    kernel = Rearrange("d 1 h w -> (h w) d", **sizes)
    return [Rule(f"{path}.kernel", f"{key}.weight", kernel), Rule(f"{path}.bias", f"{key}.bias", VECTOR)]


def _batch_norm(path: str, key: str) -> list[Rule]:
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return [Rule(f"{path}.{ours}", f"{key}.{theirs}", VECTOR) for ours, theirs in names.items()]


def _constants(config: HtsatConfig, *names: str) -> list[str]:
    """Keys of buffers that each block may have."""
    return [
        f"layers.{stage}.blocks.{block}.{name}"
        for stage, depth in enumerate(config.depths)
        for block in range(depth)
        for name in names
    ]


def from_hf_config(settings: Mapping[str, Any]) -> HtsatConfig:
    """The encoder that the settings of `ClapAudioConfig` describe (a `config.json`, or the `audio_config` in one).

    Raises:
        CheckpointError: settings are missing or have no counterpart; all are listed.
    """
    told, problems = dict(settings), []
    for name in ("spec_size", "patch_size", "patch_stride"):  # numbers, or the two edges of a square
        if isinstance(told.get(name), list | tuple) and len(set(told[name])) == 1:
            told[name] = told[name][0]
    stages = {}
    for ours, name in (("depths", "depths"), ("heads", "num_attention_heads")):
        value = told.get(name)
        if not isinstance(value, list | tuple) or not value or not all(positive(n, whole=True) for n in value):
            problems.append(f"{name} is {value!r}; expected numbers above 0")
        else:
            stages[ours] = tuple(value)
    if not positive(told.get("mlp_ratio")):
        problems.append(f"mlp_ratio is {told.get('mlp_ratio')!r}; expected a number above 0")
    if told.get("enable_fusion") and told.get("fusion_type") == "channel_map":
        problems.append("fusion_type is 'channel_map', which has no counterpart")
    fixed = dict(_FIXED)
    if "depths" in stages and positive(told.get("patch_embeds_hidden_size"), whole=True):
        fixed["hidden_size"] = told["patch_embeds_hidden_size"] * 2 ** (len(stages["depths"]) - 1)
    numbers = from_settings(told, _SETTINGS, fixed, problems)
    fusion = bool(told.get("enable_fusion"))
    return _config("config.json", **numbers, **stages, mlp_ratio=told["mlp_ratio"], fusion=fusion)


def to_hf_config(config: HtsatConfig) -> dict[str, Any]:
    """The content of `config.json` for an encoder alone (`ClapAudioModel`), and of `audio_config` in that of CLAP."""
    return {
        "architectures": ["ClapAudioModel"],
        "model_type": "clap_audio_model",
        **to_settings(config, _SETTINGS),
        "patch_stride": [config.stride, config.stride],
        "depths": list(config.depths),
        "num_attention_heads": list(config.heads),
        "num_hidden_layers": len(config.depths),
        "hidden_size": config.dim,
        "mlp_ratio": config.mlp_ratio,
        "enable_fusion": config.fusion,
    }


def hf_sizes(file: TensorFile) -> HtsatConfig:
    """Sizes that `config.json` tells, which leaves out what is as usual, or those read off a file without one.

    Raises:
        CheckpointError: `config.json` tells what has no counterpart.
    """
    told = settings_of(file)
    told = told.get("audio_config", told)
    return told_by(file, from_hf_config, to_hf_config(HtsatConfig()) | told) if told else sizes(file)


def sizes(file: TensorFile) -> HtsatConfig:
    """Sizes read off a file of either layout; the image's edge only where masks of shifted windows are stored.

    Raises:
        CheckpointError: blocks, widths and heads that no such model has.
    """
    keys, default = list(file.keys()), HtsatConfig()
    stages = count(keys, r"layers\.(\d+)\.blocks\.") or len(default.depths)
    patch = shape_of(file, r"patch_embed\.proj\.weight$", 4) or (default.embed_dim, 1, default.patch, default.patch)
    mels = shape_of(file, r"(?:bn0|batch_norm)\.weight$", 1) or (default.mels,)
    tables = [shape_of(file, rf"layers\.{stage}\.blocks\.0\..*{_BIAS}$", 2) for stage in range(stages)]
    hidden = shape_of(file, r"layers\.0\.blocks\.0\.(?:mlp\.fc1|intermediate\.dense)\.weight$", 2)
    masks = shape_of(file, r"layers\.0\.blocks\.1\.attn_mask$", 3)
    classes = shape_of(file, r"tscam_conv\.weight$", 4)
    squeezed = shape_of(file, r"fusion_model\.local_att\.0\.weight$", 4)
    window = (isqrt(tables[0][0]) + 1) // 2 if tables[0] else default.window
    return _config(
        str(file.path),
        mels=mels[0],
        image=isqrt(masks[0]) * window * patch[2] if masks else default.image,
        patch=patch[2],
        stride=patch[2],
        embed_dim=patch[0],
        depths=tuple(count(keys, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)),
        heads=tuple(table[1] if table else 1 for table in tables),
        window=window,
        mlp_ratio=hidden[0] / patch[0] if hidden else default.mlp_ratio,
        fusion=squeezed is not None,
        fusion_ratio=patch[0] // squeezed[0] if squeezed else default.fusion_ratio,
        classes=classes[0] if classes else None,
    )


def _config(where: str, **sizes: Any) -> HtsatConfig:
    try:
        return HtsatConfig(**sizes)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
