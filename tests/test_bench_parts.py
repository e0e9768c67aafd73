"""Benches around the training step at a toy's size: both sides do the same work."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from alm_jax.core.errors import AlmError
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.train.checkpoint import Checkpoints, StageFolder


@pytest.fixture
def parts():
    return importlib.import_module("bench_parts")


def test_features_are_compared_first(parts, monkeypatch):
    pytest.importorskip("kaldi_native_fbank", reason="what front ends are compared with")
    monkeypatch.setattr(parts, "SECONDS", 0.5)
    systems = list(parts.front_end())
    assert [system.name.partition(",")[0] for system in systems] == ["KaldiFbank.numpy", "KaldiFbank.jax"]
    for system in systems:
        assert system.ours().run() is None and system.theirs().run() is None
    tools = importlib.import_module("bench_input")
    exact = tools.kaldi_fbank
    monkeypatch.setattr(tools, "kaldi_fbank", lambda options, wave: exact(options, wave) + 0.1)
    with pytest.raises(AlmError, match=r"features of KaldiFbank.numpy are 0.1 off, more than 0.02: not measured"):
        next(parts.front_end())


def test_scans_are_unrolled_wherever_they_are(parts):
    layers = jnp.linspace(0.5, 1.5, 3)

    @jax.checkpoint
    def deep(x):
        inner = lambda x, t: (x * t, None)
        body = lambda x, w: (jax.lax.scan(inner, jnp.tanh(w * x), jnp.ones(2))[0], w * x)
        x, kept = jax.lax.scan(body, x, layers)
        return jnp.sum(x) + jnp.sum(kept)

    function = jax.jit(jax.value_and_grad(deep))
    x = jnp.linspace(-1, 1, 4)
    unrolled = jax.jit(jaxpr_as_fun(parts.unroll(function.trace(x).jaxpr, {3})))
    loops = lambda function: function.lower(x).as_text().count("stablehlo.while")
    assert 0 < loops(unrolled) < loops(function)  # those inside the layers are left
    every = jax.jit(jaxpr_as_fun(parts.unroll(function.trace(x).jaxpr, {2, 3})))
    assert loops(every) == 0
    for found in (unrolled(x), every(x)):
        # The same operations in the same order, which the compiler may fuse otherwise.
        np.testing.assert_allclose(np.hstack(found), np.hstack(function(x)), rtol=1e-6)


@pytest.mark.torch
def test_both_sides_save_the_same(parts, monkeypatch):
    torch = pytest.importorskip("torch")
    decoder = LlamaConfig(vocab_size=64, dim=32, depth=2, heads=2, kv_heads=2, mlp_dim=64)
    shape = parts.Shape("toy", decoder, CavMaeConfig(frames=256, mels=32, dim=16, heads=2, depth=1), 1, 1)
    monkeypatch.setattr(parts, "_saved", lambda: [shape])
    made = parts._trained(shape)
    monkeypatch.setattr(parts, "_trained", lambda _: made)
    for system in parts.checkpoint():
        folder = system.theirs.args[0]
        for side in (system.ours(), system.theirs()):
            for _ in range(3):
                seconds = side.run()
                assert 0 < seconds["training stands still"] <= seconds["until it is on disk"]
        assert sorted(path.name for path in folder.glob("*.pt")) == ["2.pt", "3.pt"]
        assert StageFolder(folder / "ours").steps() == [2, 3]
        theirs = torch.load(folder / "3.pt")
        with Checkpoints(StageFolder(folder / "ours")) as checkpoints:
            ours = checkpoints.restore(made)
        assert set(theirs["weights"]) == set(ours.params) == set(made.params)
        assert all(np.array_equal(ours.params[path], leaf) for path, leaf in made.params.items())
        moments = {"exp_avg", "exp_avg_sq", "step"}
        assert all(set(kept) == moments for kept in theirs["optimizer"]["state"].values())
        sizes = [
            sum(leaf.size for leaf in jax.tree.leaves(made.params)),
            sum(p.numel() for p in theirs["weights"].values()),
        ]
        assert sizes[0] == sizes[1]
    assert not folder.exists()
