"""CLAP: MS-CLAP 2023 (`CLAP_weights_2023.pth`) and LAION CLAP (`transformers` `ClapModel`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alm_jax.convert import bert, gpt2, htsat
from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, SCALAR, VECTOR, Rule, Table
from alm_jax.convert.sizes import from_settings, settings_of, shape_of, to_settings, told_by
from alm_jax.core.errors import CheckpointError
from alm_jax.models.clap import LAION_CLAP_FUSED, ClapConfig, LaionClapConfig
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.text.bert import BertConfig

_USUAL = LaionClapConfig()
_SETTINGS = {"dim": "projection_dim"}
_FIXED = {"model_type": "clap", "projection_hidden_act": "relu"}


def official(config: ClapConfig) -> Table:
    """`audio_encoder.base.htsat.*`, `caption_encoder.base.h.{i}.*`, ..."""
    audio = audio_tower(config).under("audio.", "audio_encoder.")
    text = text_tower(config).under("text.", "caption_encoder.")
    return audio + text + Table((Rule("logit_scale", ("logit_scale",), SCALAR),))


def audio_tower(config: ClapConfig) -> Table:
    """MS-CLAP's alone: `base.htsat.*`, `projection.*`."""
    return htsat.official_model(config.audio).under("encoder.", "base.htsat.") + _PROJECTION


def text_tower(config: ClapConfig) -> Table:
    """MS-CLAP's alone: `base.h.{i}.*`, `projection.*`."""
    return gpt2.model(config.text).under("encoder.", "base.") + _PROJECTION


_PROJECTION = Table(
    (
        Rule("projection.linear1.kernel", "projection.linear1.weight", LINEAR),
        Rule("projection.linear2.kernel", "projection.linear2.weight", LINEAR),
        Rule("projection.norm.scale", "projection.layer_norm.weight", VECTOR),
        Rule("projection.norm.bias", "projection.layer_norm.bias", VECTOR),
    )
)


def hf(config: LaionClapConfig) -> Table:
    """`audio_model.audio_encoder.*`, `text_model.encoder.layer.{i}.*`, ..."""
    rules = [Rule("logit_scale", ("logit_scale_a", "logit_scale_t"), SCALAR)]
    for tower in ("audio", "text"):
        for layer in ("linear1", "linear2"):
            ours, theirs = f"{tower}.projection.{layer}", f"{tower}_projection.{layer}"
            rules.append(Rule(f"{ours}.kernel", f"{theirs}.weight", LINEAR))
            rules.append(Rule(f"{ours}.bias", f"{theirs}.bias", VECTOR))
    audio = htsat.hf_model(config.audio).under("audio.encoder.", htsat.HF_PREFIX)
    return audio + bert.model(config.text).under("text.encoder.", "text_model.") + Table(tuple(rules))


def sizes(file: TensorFile) -> ClapConfig:
    """Sizes read off a file of MS-CLAP; the text tower's `heads` are 0 where they are not of GPT-2's usual width."""
    projection = shape_of(file, r"audio_encoder\.projection\.linear1\.weight$", 2)
    return ClapConfig(htsat.sizes(file), gpt2.sizes(file), projection[0] if projection else ClapConfig().dim)


def hf_sizes(file: TensorFile) -> LaionClapConfig:
    """Sizes that `config.json` tells, or those read off a file of LAION CLAP where there is none.

    Raises:
        CheckpointError: `config.json` tells what has no counterpart.
    """
    if told := settings_of(file):
        return told_by(file, from_hf_config, told)
    projection = shape_of(file, r"audio_projection\.linear1\.weight$", 2)
    text = replace(bert.sizes(file), norm_eps=_USUAL.text.norm_eps)
    return _laion(htsat.sizes(file), text, projection[0] if projection else _USUAL.dim)


def from_hf_config(settings: Mapping[str, Any]) -> LaionClapConfig:
    """The model that a `config.json` of `transformers` describes (`ClapConfig`), which leaves out what is as usual.

    Raises:
        CheckpointError: settings have no counterpart; all are listed.
    """
    usual, problems, towers = to_hf_config(_USUAL), [], {}
    for part, read in (("audio_config", htsat.from_hf_config), ("text_config", bert.from_hf_config)):
        told = usual[part] | dict(settings.get(part) or {})
        try:
            towers[part] = read(told | ({"model_type": "roberta"} if part == "text_config" else {}))
        except CheckpointError as error:
            problems.append(f"{part}: {str(error).removeprefix('config.json: ')}")
    dim = from_settings(usual | dict(settings), _SETTINGS, _FIXED, problems)["dim"]
    return _laion(towers["audio_config"], towers["text_config"], dim)


def _laion(audio: HtsatConfig, text: BertConfig, dim: int) -> LaionClapConfig:
    """Its front end is the published one of models with fusion or without."""
    return replace(LAION_CLAP_FUSED if audio.fusion else _USUAL, audio=audio, text=text, dim=dim)


def to_hf_config(config: LaionClapConfig) -> dict[str, Any]:
    """The content of `config.json` for LAION CLAP."""
    return {
        "architectures": ["ClapModel"],
        **_FIXED,
        **to_settings(config, _SETTINGS),
        "audio_config": htsat.to_hf_config(config.audio) | {"architectures": None},
        "text_config": bert.to_hf_config(config.text) | {"model_type": "clap_text_model", "architectures": None},
    }
