"""One step of a small LTU on eight host devices, whichever way they are arranged, against one device."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from alm_jax.core import mesh as meshes
from alm_jax.core import tree
from alm_jax.core.mesh import MeshConfig
from alm_jax.core.precision import FLOAT32
from alm_jax.core.sequence import collate
from alm_jax.data.plan import DataSpec, Source
from alm_jax.layers.dense import Lora
from alm_jax.models.alm import build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import ltu
from alm_jax.train.config import Stage
from alm_jax.train.optim import OptimConfig, make_optimizer
from alm_jax.train.state import abstract_state, create_state
from alm_jax.train.step import make_step
from alm_jax.train.weights import StageModel
from tests.devices import host_devices
from tests.models.test_alm import _row

DECODER = LlamaConfig(vocab_size=64, dim=128, depth=2, heads=8, kv_heads=8, mlp_dim=256, lora=Lora(dropout=0.0))
MODEL = ltu(DECODER, CavMaeConfig(frames=64, mels=32, dim=16, heads=2, depth=2))
ROWS, LENGTH = 16, 24
STAGE = Stage(
    "all",
    DataSpec((Source("none"),), batch_size=ROWS, buckets=(LENGTH,)),
    ("aligner.*", "*.lora_?", "encoder.blocks.mlp.*"),
    OptimConfig(warmup_steps=0),
    steps=10,
)
ONE = MeshConfig(1)
QUICK = (MeshConfig(8), MeshConfig(1, 2, 2, 2))
# Rows, parameters with them or not; heads; positions; replicas between slices.
ALL = (MeshConfig(4, 2), MeshConfig(2, 4), MeshConfig(1, 8), MeshConfig(4, 1, 2), MeshConfig(2, 1, 4))
ALL += (MeshConfig(1, 1, 8), MeshConfig(2, 2, 1, 2), MeshConfig(1, 1, 1, 8), MeshConfig(2, 2, 1, slices=2))
QUANTIZED = (MeshConfig(2, 2, 2), MeshConfig(2, 2, 1, 2))


def batch():
    """Rows of unequal length that hear a clip among text, one of them nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        text = rng.integers(0, DECODER.vocab_size, rng.integers(5, LENGTH - MODEL.audio_tokens)).tolist()
        heard = [] if i == 3 else [-1 - t for t in range(MODEL.audio_tokens)]
        rows.append(_row([*text[:2], *heard, *text[2:]], (0,) if heard else ()))
    made = collate(rows, LENGTH, slots=1)
    made.audio = rng.normal(size=(ROWS, 1, 64, 32)).astype(np.float32)
    made.targets = rng.integers(0, DECODER.vocab_size, made.tokens.shape).astype(np.int32)
    made.loss_weight = (made.kv_segment_ids * rng.uniform(size=made.tokens.shape)).astype(np.float32)
    return made


@cache
def arrays():
    """Random parameters, LoRA's second matrices too, so that all that trains has a gradient."""
    made = tree.flatten(build(MODEL, jax.random.key(0)))
    return {
        path: 0.1 * jax.random.normal(jax.random.key(i), leaf.shape) if path.endswith("lora_b") else leaf
        for i, (path, leaf) in enumerate(made.items())
    }


def run(config, storage):
    """Loss, gradient norm and gradients of a step, and the state after it."""
    count = np.prod([max(1, size) for size in vars(config).values()])
    mesh = meshes.make_mesh(config, jax.devices()[:count])
    model = StageModel(MODEL, STAGE, mesh, replace(FLOAT32, decoder=storage))
    frozen, params = {}, {}
    for path, leaf in arrays().items():
        held = model.hold(path, jax.device_put(leaf, model.given[path].sharding))
        entries = {f"{path}.{name}": part for name, part in held.items()} if isinstance(held, dict) else {path: held}
        (params if path in model.trained else frozen).update(entries)
    assert {path: leaf.dtype for path, leaf in (params | frozen).items()} == {
        path: leaf.dtype for path, leaf in model.target.items()
    }
    optimizer = make_optimizer(STAGE.optim, 10)
    abstract = abstract_state(params, optimizer, model.shardings, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.jit(lambda p: create_state(p, optimizer, jax.random.key(1)), out_shardings=places)(params)
    step = make_step(model.like, optimizer, model.precision, loss_group=4, mesh=mesh, state=abstract)
    with jax.set_mesh(mesh):
        state, metrics = step(state, frozen, jax.device_put(batch(), meshes.batch_sharding(mesh)))
    # Adam's first moment after a step is a tenth of the gradient (clipped).
    moment = {path: 10 * np.asarray(leaf) for path, leaf in state.opt_state[1].mu.items()}
    return float(metrics["loss"]), float(metrics["grad_norm"]), moment, state


def shares(state):
    """Bytes of the statistics on a device, of all."""
    leaves = jax.tree.leaves(state.opt_state[1].mu)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves), sum(leaf.nbytes for leaf in leaves)


def main(storage, configs):
    loss, norm, expected, _ = run(ONE, storage)
    assert all(np.abs(leaf).max() > 0 for leaf in expected.values())
    for config in configs:
        found = run(config, storage)
        np.testing.assert_allclose(found[:2], (loss, norm), rtol=1e-5, err_msg=str(config))
        for path, leaf in found[2].items():  # sums in another order
            near = 1e-5 * np.abs(expected[path]).max()
            np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=near, err_msg=f"{config} {path}")
        if config == MeshConfig(8):  # replicas each hold a share of the statistics
            part, whole = shares(found[3])
            assert part < whole / 6, (part, whole)
    print("equal", loss)


@pytest.mark.parametrize(
    ("storage", "configs"),
    [
        (None, "QUICK"),
        pytest.param(None, "ALL", marks=pytest.mark.slow),
        pytest.param("int8", "QUANTIZED", marks=pytest.mark.slow),
        pytest.param("nf4", "QUANTIZED", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_loss_and_gradients_of_one(repo, storage, configs):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(8), "PYTHONPATH": str(repo)}
    code = f"from tests.train import test_meshes as t; t.main({storage!r}, t.{configs})"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("equal")
