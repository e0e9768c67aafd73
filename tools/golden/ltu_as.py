"""LTU-AS fixture: the time-and-layer transformer and its projection, weights under `w:`."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from alm_jax.convert import ltu_as as tables
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.models.aligners.tltr import Tltr, TltrConfig
from alm_jax.models.features import Features
from golden.report import Report

_WEIGHT = "w:"


class _Weights:
    """The `w:` arrays of the file as a checkpoint under official names."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]):
        self.path, self.metadata = path, {}
        self._arrays = {
            "model." + name.removeprefix(_WEIGHT): a for name, a in arrays.items() if name.startswith(_WEIGHT)
        }

    def keys(self):
        return self._arrays.keys()

    def shape(self, key):
        return self._arrays[key].shape

    def dtype(self, key):
        return self._arrays[key].dtype

    def read(self, key, index=None):
        return self._arrays[key][index or ...]


def check(prefix: Path, report: Report) -> None:
    """Compare the aligner's two outputs."""
    path = Path(f"{prefix}.npz")
    io = dict(np.load(path))
    used = {name for name in io if name == "x" or name.startswith(_WEIGHT)}
    report.input(used)
    weights = _Weights(path, io)
    _, layers, tokens, dim = io["x"].shape
    # The official class fixes the heads (1 over time, 8 over layers); no array tells them.
    config = TltrConfig(dim=dim, out_dim=io["w:audio_proj.1.weight"].shape[0], layers=layers, tokens=tokens)
    like = tree.abstract(lambda key: Tltr(config, key))
    shapes = {f"aligner.{path}": leaf for path, leaf in tree.flatten(like).items()}
    arrays = load(shapes, [(weights, tables.aligner())])
    model = tree.unflatten(like, {path.removeprefix("aligner."): leaf for path, leaf in arrays.items()})
    features = Features(np.moveaxis(io["x"], 1, 0))
    ours = {
        "tltr_out": lambda: jax.jit(lambda m, f: m.reduce(f))(model, features),
        "audio_tokens": lambda: jax.jit(lambda m, f: m(f)[0])(model, features),
    }
    for name in sorted(set(io) - used):
        if name in ours:
            report.compare(name, ours[name](), io[name])
        else:
            report.fail(f"{name}: recorded, but nothing here computes it")
