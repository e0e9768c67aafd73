"""AST checkpoints of `transformers`: `ASTModel` and `ASTForAudioClassification`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, VECTOR, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, from_settings, heads_of, number, settings_of, shape_of, to_settings
from alm_jax.models.encoders.ast import AstConfig

_HEAD_WIDTH = 64  # of every published one, where nothing tells it
_BASE = "audio_spectrogram_transformer."
_SETTINGS = {
    "frames": "max_length",
    "mels": "num_mel_bins",
    "patch": "patch_size",
    "time_stride": "time_stride",
    "frequency_stride": "frequency_stride",
    "dim": "hidden_size",
    "heads": "num_attention_heads",
    "depth": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}

# Layers of a block: ours, theirs. `transformers` 5 renamed its modules and still writes files in the published names.
_PUBLISHED = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.o": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
_MODULES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.o": "attention.o_proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def hf(config: AstConfig) -> Table:
    """`audio_spectrogram_transformer.encoder.layer.{i}.attention.attention.query.weight`, ...: names in files."""
    return _table(config, "encoder.layer.{i}.", _PUBLISHED)


def modules(config: AstConfig) -> Table:
    """`audio_spectrogram_transformer.layers.{i}.attention.q_proj.weight`, ...: state dicts of `transformers` 5."""
    return _table(config, "layers.{i}.", _MODULES)


def _table(config: AstConfig, pattern: str, names: Mapping[str, str]) -> Table:
    patch = Rearrange("d 1 f t -> (t f) d", f=config.patch, t=config.patch)
    tokens = Rearrange("1 1 d -> d")
    rules = [
        Rule("patch_embed.kernel", "embeddings.patch_embeddings.projection.weight", patch),
        Rule("patch_embed.bias", "embeddings.patch_embeddings.projection.bias", VECTOR),
        Rule("class_token", "embeddings.cls_token", tokens),
        Rule("distillation_token", "embeddings.distillation_token", tokens),
        Rule("pos_embed", "embeddings.position_embeddings", Rearrange("1 n d -> n d")),
        *_layer("norm", "layernorm"),
    ]
    for ours, theirs in names.items():
        rules += _layer(f"blocks.{ours}", each(pattern + theirs, range(config.depth)))
    encoder = Table(tuple(rules)).under(theirs=_BASE)
    if config.classes is None:
        return encoder + Table(ignored=("classifier.*",), bare=(_BASE,))
    head = (*_layer("classifier.norm", "classifier.layernorm"), *_layer("classifier.dense", "classifier.dense"))
    return encoder + Table(head)


def _layer(path: str, keys: str | tuple[str, ...]) -> tuple[Rule, Rule]:
    """Rules of a norm or of a linear layer, by its name."""
    name, arrange = ("scale", VECTOR) if "norm" in path.rpartition(".")[2] else ("kernel", LINEAR)
    ending = lambda leaf: keys + leaf if isinstance(keys, str) else tuple(key + leaf for key in keys)
    return Rule(f"{path}.{name}", ending(".weight"), arrange), Rule(f"{path}.bias", ending(".bias"), VECTOR)


def sizes(file: TensorFile) -> AstConfig:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide `dim`.

    Where the told or default length does not fit the positions, it is the shortest that does.
    """
    keys, told, default = list(file.keys()), settings_of(file), AstConfig()
    patch = shape_of(file, r"patch_embeddings\.projection\.weight$", 4) or (default.dim, 1, default.patch, 0)
    hidden = shape_of(file, r"layers?\.0\.(?:intermediate\.dense|mlp\.fc1)\.weight$", 2)
    places = shape_of(file, r"position_embeddings$", 3)
    classes = shape_of(file, r"classifier\.dense\.weight$", 2)
    setting = lambda name, kind, usual: number(file, told, name, kind, usual)
    config = AstConfig(
        frames=setting("max_length", int, default.frames),
        mels=setting("num_mel_bins", int, default.mels),
        patch=patch[2],
        time_stride=setting("time_stride", int, default.time_stride),
        frequency_stride=setting("frequency_stride", int, default.frequency_stride),
        dim=patch[0],
        heads=setting("num_attention_heads", int, heads_of(patch[0], _HEAD_WIDTH)),
        depth=count(keys, r"(?:encoder\.layer|layers)\.(\d+)\."),
        mlp_dim=hidden[0] if hidden else default.mlp_dim,
        norm_eps=setting("layer_norm_eps", float, default.norm_eps),
        classes=classes[0] if classes else None,
    )
    in_frequency, in_time = config.grid
    found = (places[1] - 2) // max(1, in_frequency) if places else in_time
    return config if found == in_time else replace(config, frames=(found - 1) * config.time_stride + config.patch)


def from_hf_config(settings: Mapping[str, Any]) -> AstConfig:
    """The model that a `config.json` of `transformers` describes (`ASTConfig`), with its classifier if that has one.

    Raises:
        CheckpointError: settings are missing or have no counterpart; all are listed.
    """
    told = from_settings(settings, _SETTINGS, {"hidden_act": "gelu", "qkv_bias": True})
    headed = "ASTForAudioClassification" in (settings.get("architectures") or ())
    labels = settings.get("id2label") or {0: "", 1: ""}  # left out of a config with the usual two
    return AstConfig(**told, classes=len(labels) if headed else None)


def to_hf_config(config: AstConfig) -> dict[str, Any]:
    """The content of `config.json` (`ASTConfig`); classes have no names."""
    told = {"model_type": "audio-spectrogram-transformer", "architectures": ["ASTModel"]}
    if config.classes is not None:
        labels = {str(index): f"LABEL_{index}" for index in range(config.classes)}
        told |= {"architectures": ["ASTForAudioClassification"], "id2label": labels}
        told["label2id"] = {label: int(index) for index, label in labels.items()}
    return told | to_settings(config, _SETTINGS)
