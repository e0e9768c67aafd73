"""APT's audio encoder: Audio-MAE's patches, blocks, classifier, and a long clip in segments."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax.convert import audio_mae as tables
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.models.encoders.audio_mae import AudioMae, AudioMaeConfig
from golden.report import TOLERANCE, Computed, Report

_PREFIX = "model."  # of the wrapper that APT puts around the official class


def check(prefix: Path, report: Report) -> None:
    """Compare everything recorded."""
    sizes = json.loads(Path(f"{prefix}_config.json").read_text())
    config = encoder_config(sizes)
    like = tree.abstract(lambda key: AudioMae(config, key))
    source = (open_tensors(Path(f"{prefix}.safetensors")), tables.official(config).under(theirs=_PREFIX))
    model = tree.unflatten(like, load(tree.flatten(like), [source]))
    io = dict(np.load(f"{prefix}_io.npz"))
    report.account(io, inputs=("fbank", "long_fbank"), computed=_COMPUTED, results=_Results(model, io))


def encoder_config(c: dict[str, Any]) -> AudioMaeConfig:
    """Our config of a fixture's sizes."""
    return AudioMaeConfig(
        frames=c["img_size"][0],
        mels=c["img_size"][1],
        patch=c["patch"],
        stride=c["stride"],
        dim=c["embed_dim"],
        heads=c["num_heads"],
        depth=c["depth"],
        mlp_dim=int(c["embed_dim"] * c["mlp_ratio"]),
        norm_eps=c["ln_eps"],
        classes=c["num_classes"],
    )


class _Results:
    """Our side of every recorded array. Of streams the first tokens alone may be recorded: as many as there are."""

    def __init__(self, model: AudioMae, io: dict[str, np.ndarray]):
        self.model, self.io = model, io

    @cached_property
    def heard(self) -> dict[str, jax.Array]:
        return _heard(self.model, self.io["fbank"][:, 0].astype(np.float32))

    def patches(self):
        return self.heard["patches"][:, : self.io["patch_embed"].shape[1]]

    def block(self, index: str):
        """The class token stands first."""
        return self.heard["streams"][int(index)][:, : self.io[f"block{index}_out"].shape[1]]

    @cached_property
    def long_features(self) -> jax.Array:
        """Official order: the first segment of all clips, then the second."""
        return _segments(self.model, self.io["long_fbank"][:, 0].astype(np.float32))

    def long(self, start: str = "0", stop: str | None = None):
        return self.long_features[:, int(start) : stop and int(stop)]


@jax.jit
def _heard(model: AudioMae, x: jax.Array) -> dict[str, jax.Array]:
    """What a clip's frames [B, frames, mels] become, in one program."""
    return {
        "patches": model.embed(x),
        "streams": model.streams(x, tuple(range(1, model.config.depth + 1)))[1],
        "features": model(x).values[0],
        "pooled": model.pooled(x),
        "logits": model.classify(x),
    }


@jax.jit
def _segments(model: AudioMae, x: jax.Array) -> jax.Array:
    """Frames of long clips [B, n, mels] -> features of their segments [S * B, patches, dim]."""
    clips = model.segments(x)
    return model(clips.swapaxes(0, 1).reshape(-1, *clips.shape[2:])).values[0]


_COMPUTED: list[Computed] = [
    (r"patch_embed", _Results.patches, TOLERANCE),
    (r"block(\d+)_out", _Results.block, TOLERANCE),
    (r"patch_embedding", lambda r: r.heard["features"], TOLERANCE),
    (r"fc_norm_out", lambda r: r.heard["pooled"], TOLERANCE),
    (r"class_embedding", lambda r: r.heard["logits"], TOLERANCE),
    (r"long_patch_embedding", _Results.long, TOLERANCE),
    (r"long_patch_embedding_f32_seg_tok(\d+)_(\d+)", _Results.long, TOLERANCE),
]
