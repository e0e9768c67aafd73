"""FLOPs that a step has to do against a closed form, and MFU against numbers set by hand."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from alm_jax.core.mesh import MESH_AXES, MeshConfig, make_mesh
from alm_jax.core.precision import MIXED
from alm_jax.models.ltu import ltu
from alm_jax.train import model_flops as flops
from alm_jax.train.model_flops import Utilization
from alm_jax.train.optim import OptimConfig, make_optimizer
from alm_jax.train.plan import abstract_batch
from alm_jax.train.state import abstract_state
from alm_jax.train.weights import StageModel
from tests.train import test_plan
from tests.train.test_plan import ALL, DECODER, ENCODER, stage
from tests.train.toy import toy_batch

TPUS = AbstractMesh(
    (8, 1, 1, 1), MESH_AXES, (AxisType.Auto,) * 4, abstract_device=AbstractDevice("TPU v5 lite", None, "tpu")
)


def counted(decoder, encoder):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = StageModel(ltu(decoder, encoder), stage("all", ALL, batch_size=16, micro_batch=4), mesh, MIXED)
    optimizer = make_optimizer(OptimConfig(), 10)
    parts = {True: {}, False: {}}
    for path, leaf in model.target.items():
        parts[path in model.trained][path] = leaf
    state = abstract_state(parts[True], optimizer, model.shardings, mesh)
    return flops.model_flops(model, optimizer, (state, parts[False], abstract_batch(model.config, model.stage, mesh)))


def test_a_step_has_to_do_the_same_everywhere():
    """Micro-batches, what is recomputed and the kernels of where it runs make no difference."""
    needed = test_plan.model_flops(16)
    assert counted(DECODER, ENCODER) == needed
    decoder = replace(DECODER, remat="full", cross_entropy="pallas_tpu")
    with use_abstract_mesh(TPUS):
        assert counted(decoder, replace(ENCODER, remat="full")) == needed


def test_utilization(monkeypatch):
    """Eight TFLOP a step on four devices of 10 TFLOP/s; the second shape has twice as much."""
    asked = []

    def whole(model, optimizer, given):
        asked.append(given[2].shape)
        return 8 * 10**12 * given[2].shape[1] // 6

    monkeypatch.setattr(flops, "model_flops", whole)
    devices = SimpleNamespace(mesh=SimpleNamespace(size=4))
    used = Utilization(devices, None, peak=1e13)
    small, large = toy_batch(length=6), toy_batch(length=12)

    def took(batch, seconds):
        return used.took(used.flops(None, {}, batch), seconds)

    assert not used.knows(small) and used.mfu is None
    assert took(small, 40.0) == {"tflops_per_s_per_device": 0.05, "mfu": 0.005} and used.mfu is None  # it compiled
    assert took(small, 0.5) == {"tflops_per_s_per_device": 4.0, "mfu": 0.4}
    assert used.knows(small) and not used.knows(large)
    assert took(large, 50.0)["mfu"] == 0.008
    assert took(large, 0.5)["mfu"] == 0.8
    assert used.mfu == pytest.approx((2 + 4) / (0.5 + 0.5) / 10)
    assert asked == [(8, 6), (8, 12)]
    unknown = Utilization(devices, None, peak=None)
    assert unknown.took(unknown.flops(None, {}, small), 2.0) == {} and unknown.mfu is None
    assert len(asked) == 2  # nothing was counted for it
