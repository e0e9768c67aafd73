"""Optimisers and schedules against PyTorch, transformers and closed forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.train.optim import OptimConfig, clip_by_global_norm, make_optimizer, make_schedule


def test_linear_schedule_is_the_recorded_one(golden_ltu):
    recorded = np.load(golden_ltu / "ltu_tiny_c_io.npz")["train_lr_after_step"]
    schedule = make_schedule(OptimConfig(learning_rate=1e-3, warmup_steps=2), total_steps=6)
    # The recorded rate is that of the update to come; the first update has rate 0. Float32 rounding.
    np.testing.assert_allclose([schedule(k) for k in range(7)], [0.0, *recorded], rtol=1e-6, atol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    get_scheduler = pytest.importorskip("transformers").get_scheduler
    weight = torch.nn.Parameter(torch.zeros(1))
    official = torch.optim.SGD([weight], lr=3e-4)
    scheduler = get_scheduler({"constant": "constant_with_warmup"}.get(name, name), official, 5, 23)
    schedule = make_schedule(OptimConfig(learning_rate=3e-4, schedule=name, warmup_steps=5), total_steps=23)
    for k in range(23):
        # Ours is float32, theirs float64: the cosine near its end loses absolute digits.
        np.testing.assert_allclose(schedule(k), official.param_groups[0]["lr"], rtol=1e-6, atol=3e-11)
        official.step()
        scheduler.step()


def test_staircase_is_that_of_lavis():
    """`LinearWarmupCosineLRScheduler` (lavis/common/optims.py), written out: the warm-up is all of epoch 0."""
    steps, epoch, warmup, first, base, final = 50, 10, 6, 1e-6, 1e-4, 1e-5
    config = OptimConfig(base, "cosine", warmup, first, final, epoch)
    schedule = make_schedule(config, steps)
    for k in range(steps):
        turn = np.cos(np.pi * (k // epoch) / (steps / epoch))
        rate = (base - final) * 0.5 * (1 + turn) + final
        expected = min(base, first + (base - first) * k / warmup) if k < epoch else rate
        np.testing.assert_allclose(schedule(k), expected, rtol=1e-6)  # float32


def test_rates_of_apt_and_mats_are_the_recorded_ones(golden):
    """One update a batch; APT's inner epochs have 62500 of them, MATS's epochs 6000."""
    recorded = json.loads((golden / "apt" / "misc_golden.json").read_text())
    apt = make_schedule(OptimConfig(1e-4, "cosine", 2000, 1e-6, 1e-5, epoch_steps=62500), 20 * 62500)
    for epoch, k, rate in recorded["apt_stage2_lr(inner_epoch,iter)"]:
        np.testing.assert_allclose(apt(62500 * epoch + k), rate, rtol=1e-6)  # float32
    mats = make_schedule(OptimConfig(3e-5, "cosine", 6000, 1e-7, epoch_steps=1), 30 * 6000)
    for epoch, k, rate in recorded["mats_lr(epoch,micro_iter) iters_per_epoch=6000 warmup=6000"]:
        # The cosine near its end loses absolute digits in float32.
        np.testing.assert_allclose(mats(6000 * epoch + k), rate, rtol=1e-6, atol=3e-12)


def test_what_is_spared_from_decay():
    config = OptimConfig(0.5, "constant", 0, weight_decay=0.1, no_decay=("*.bias",), clip_norm=None)
    optimizer = make_optimizer(config, 10).transform
    params = {"a.kernel": jnp.ones(2), "a.bias": jnp.ones(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["a.kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["a.bias"], 0)


def test_no_warmup_starts_at_the_base_rate():
    assert make_schedule(OptimConfig(learning_rate=0.5, warmup_steps=0), 4)(0) == 0.5


@pytest.mark.torch
def test_adamw_with_clipping_is_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"a.kernel": rng.normal(size=(4, 3)), "b": rng.normal(size=5)}
    official = {path: torch.nn.Parameter(torch.tensor(v, dtype=torch.float32)) for path, v in start.items()}
    groups = [{"params": [official["a.kernel"]]}, {"params": [official["b"]], "lr": 1e-2 * 0.25}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    config = OptimConfig(1e-2, "constant", 0, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, lr_scale={"b*": 0.25})
    optimizer = make_optimizer(config, 10).transform
    params = {path: jnp.asarray(v, jnp.float32) for path, v in start.items()}
    state = optimizer.init(params)
    for scale in (0.1, 3.0, 20.0, 0.0, 0.5):  # below and above the clipping norm
        grads = {path: scale * rng.normal(size=v.shape).astype(np.float32) for path, v in start.items()}
        for path, parameter in official.items():
            parameter.grad = torch.tensor(grads[path])
        torch.nn.utils.clip_grad_norm_(official.values(), 1.0)
        adamw.step()
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for path, parameter in official.items():  # five float32 updates
        np.testing.assert_allclose(params[path], parameter.detach().numpy(), atol=2e-6)


def test_clipping_closed_form():
    clip = clip_by_global_norm(1.0)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped, _ = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(clipped["b"], 4 / (5 + 1e-6), rtol=1e-7)
    small = jax.tree.map(lambda g: g / 100, grads)
    np.testing.assert_array_equal(clip.update(small, clip.init(small))[0]["a"], small["a"])


def test_bad_configs():
    with pytest.raises(ConfigError, match=r"optim.schedule is 'step'; expected one of linear, cosine, constant"):
        make_optimizer(OptimConfig(schedule="step"), 10)
    optimizer = make_optimizer(OptimConfig(lr_scale={"encoder.*": 0.1}), 10).transform
    with pytest.raises(ConfigError, match=r"lr_scale patterns \['encoder.\*'\] fit no trained parameter"):
        params = {"decoder.head": jnp.zeros(2)}
        optimizer.update(params, optimizer.init(params), params)


def test_rates_by_path_have_a_state_that_can_be_placed():
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from alm_jax.core.mesh import MeshConfig, make_mesh
    from alm_jax.train.state import abstract_state

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = {"aligner.w": jnp.zeros(2), "decoder.w": jnp.zeros(3)}
    places = {path: NamedSharding(mesh, PartitionSpec()) for path in params}
    state = abstract_state(params, make_optimizer(OptimConfig(lr_scale={"aligner.*": 0.1}), 10), places, mesh)
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state)} == {(), (2,), (3,)}
