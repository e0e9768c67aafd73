"""CLAP as it is trained: its audio encoder, and all else as the aligner over it, so that the encoder can be any, may be
frozen, and is computed once if it is."""

from __future__ import annotations

import jax

from alm_jax.core.sequence import Layout
from alm_jax.core.tree import Arrays
from alm_jax.models.aligners.clap_heads import ClapHeadsConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.clap import TEXT_LENGTH, ClapConfig, LaionClapConfig
from alm_jax.models.registry import module_of

BUCKETS = (160,)  # that rows of `layout` fit in

_ENCODER = "audio.encoder."
NAMES = (
    ("encoder.", "encoder.audio.encoder."),
    ("aligner.audio.", "encoder.audio."),
    ("aligner.text.", "encoder.text."),
)
"""`Weights.names` of a trained CLAP as the encoder of another model (`ClapEncoderConfig`)."""


def layout(config: ClapConfig) -> Layout:
    """A row's answer is the text of its clip; the decoder's positions are not read."""
    reads = {"aligner_text_tokens": TEXT_LENGTH, "aligner_reads": "answer", "aligner_gap": config.text_gap}
    return Layout(loss_on="all", max_text_tokens=128, **reads)


def clap_training(config: ClapConfig) -> AlmConfig:
    """The model that a stage with the objective `audio_text_contrast` trains."""
    c = config
    frames = jax.ShapeDtypeStruct((1, *c.frontend.feature_shape), "float32")
    encode = lambda key, x: module_of(c.audio)(c.audio, key)(x, c.taps, c.pool).values
    layers, _, steps, dim = jax.eval_shape(encode, jax.random.key(0), frames).shape
    shared = {name: getattr(c, name) for name in ("text", "projection", "scales", "contrast", "dropout")}
    return AlmConfig(
        frontend=c.frontend,
        encoder=c.audio,
        aligner=ClapHeadsConfig(dim, layers, steps, c.dim, **shared),
        decoder=None,
        taps=c.taps,
        pool=c.pool,
    )


def is_clap(config: object) -> bool:
    """Whether it is a model of `clap_training`."""
    return isinstance(config, AlmConfig) and isinstance(config.aligner, ClapHeadsConfig)


def clap_config(model: AlmConfig) -> ClapConfig:
    """The CLAP that a model of `clap_training` is."""
    heads = model.aligner
    kind = LaionClapConfig if heads.projection == "mlp" else ClapConfig
    return kind(
        audio=model.encoder,
        text=heads.text,
        dim=heads.out_dim,
        projection=heads.projection,
        scales=heads.scales,
        frontend=model.frontend,
        taps=model.taps,
        pool=model.pool,
        contrast=heads.contrast,
        dropout=heads.dropout,
    )


def training_path(path: str) -> str:
    """Where a parameter of `Clap` is in the model that is trained."""
    return "encoder." + path.removeprefix(_ENCODER) if path.startswith(_ENCODER) else f"aligner.{path}"


def clap_arrays(arrays: Arrays) -> Arrays:
    """Parameters of the model that is trained -> those of `Clap`."""
    rename = lambda path: path.removeprefix("aligner.") if path.startswith("aligner.") else f"audio.{path}"
    return {rename(path): leaf for path, leaf in arrays.items()}
