"""The step against closed forms computed in NumPy, whatever its micro-batches and mesh."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.core.precision import FLOAT32
from alm_jax.train.batches import distinct_parts
from alm_jax.train.optim import OptimConfig, make_optimizer
from alm_jax.train.state import create_state
from alm_jax.train.step import make_eval_step, make_step
from tests.devices import host_devices
from tests.train.toy import TRAINABLE, Toy, toy_batch

OPTIM = OptimConfig(learning_rate=0.1, warmup_steps=0, schedule="constant")


def start(rate=0.0, **step_options):
    model = Toy(jax.random.key(0), rate=rate)
    params, frozen = tree.split(tree.flatten(model), TRAINABLE)
    optimizer = make_optimizer(OPTIM, 10)
    state = create_state(jax.tree.map(jnp.array, params), optimizer, jax.random.key(1))
    return make_step(tree.abstract(lambda k: Toy(k, rate=rate)), optimizer, FLOAT32, **step_options), state, frozen


def token_losses(batch):
    """float64 negative log-likelihood [B, L] of the toy model."""
    model = {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(Toy(jax.random.key(0))).items()}
    logits = model["embedding"][batch.tokens] * model["scale"] @ model["head"]
    log_z = np.log(np.exp(logits).sum(-1))
    return log_z - np.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]


def mean_of_means(batch, group):
    nll, weight = token_losses(batch), batch.loss_weight
    means = [
        (nll[i : i + group] * weight[i : i + group]).sum() / weight[i : i + group].sum()
        for i in range(0, len(nll), group)
        if weight[i : i + group].sum()
    ]
    return np.mean(means)


@pytest.mark.parametrize("group", [1, 2, 4, "batch"])  # group 1: row 3 has no target and is left out
def test_loss_is_the_mean_over_groups(group):
    batch = toy_batch()
    step, state, frozen = start(loss_group=group)
    _, metrics = step(state, frozen, batch)
    expected = mean_of_means(batch, 8 if group == "batch" else group)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)  # float32 against float64
    assert metrics["tokens"] == batch.kv_segment_ids.sum()
    np.testing.assert_allclose(metrics["learning_rate"], 0.1)


@pytest.mark.parametrize("group", [1, 2, "batch"])
def test_micro_batches_change_rounding_only(group):
    results = []
    for micro in (None, 8, 4, 2):
        step, state, frozen = start(loss_group=group, micro_batch=micro)
        for seed in range(3):
            state, metrics = step(state, frozen, toy_batch(seed))
        results.append((metrics, state.params))
    for metrics, params in results[1:]:
        for name in ("loss", "grad_norm"):  # a sum in another order
            np.testing.assert_allclose(metrics[name], results[0][0][name], rtol=1e-5)
        for path in params:  # Adam divides by the gradient's size, so that rounding shows relative to the rate 0.1
            np.testing.assert_allclose(params[path], results[0][1][path], atol=2e-4)


def test_gradient_norm_is_that_of_the_trained_part():
    batch = toy_batch()
    step, state, frozen = start()
    params = jax.tree.map(np.asarray, state.params)

    def loss(params):
        logits = frozen["embedding"][batch.tokens] * params["scale"] @ params["head"]
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1)[..., 0]
        return (nll * batch.loss_weight).sum() / batch.loss_weight.sum()

    grads = jax.grad(loss)(params)
    expected = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in grads.values()))
    _, metrics = step(state, frozen, batch)
    np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=1e-5)  # float32 sums


def test_state_is_donated_and_frozen_is_not():
    step, state, frozen = start()
    new, _ = step(state, frozen, toy_batch())
    assert state.params["head"].is_deleted()
    assert not frozen["embedding"].is_deleted()
    assert new.step == 1 and new.params["head"].dtype == jnp.float32


def test_dropout_follows_key_and_step():
    step, state, frozen = start(rate=0.5)
    plain = start()[0](start()[1], frozen, toy_batch())[1]["loss"]
    copies = [jax.tree.map(jnp.array, state) for _ in range(3)]
    copies[2].step = copies[2].step + 1
    first, again, later = (step(copy, frozen, toy_batch())[1]["loss"] for copy in copies)
    assert first == again != later
    assert first != plain


def test_evaluation_sums_over_targets_without_dropout():
    batch = toy_batch()
    _, state, frozen = start()
    result = make_eval_step(tree.abstract(lambda k: Toy(k, rate=0.5)), FLOAT32)(state.params, frozen, batch)
    np.testing.assert_allclose(result["loss"], (token_losses(batch) * batch.loss_weight).sum(), rtol=1e-5)
    assert result["targets"] == batch.loss_weight.sum()


def test_indivisible_batches():
    step, state, frozen = start(loss_group=3)
    with pytest.raises(ConfigError, match="batch_size 8 is not divisible by loss_group 3"):
        step(state, frozen, toy_batch())
    step, state, frozen = start(micro_batch=3)
    with pytest.raises(ConfigError, match="micro_batch 3 has to divide batch_size 8"):
        step(state, frozen, toy_batch())


def test_rows_of_processes_are_disjoint_or_equal():
    assert distinct_parts({0: {0, 1}, 1: {2, 3}}, 4) == {0: (0, 1), 1: (2, 3)}
    assert distinct_parts({0: {0, 3}, 1: {1, 2}, 2: {3, 0}}, 4)[2] == (0, 3)
    with pytest.raises(ConfigError, match="unevenly"):
        distinct_parts({0: {0, 1, 2}, 1: {2, 3}}, 4)
    with pytest.raises(ConfigError, match="unevenly"):
        distinct_parts({0: {0, 1, 2}, 1: {3}}, 4)


EIGHT = """
import jax, numpy as np, jax.numpy as jnp
from alm_jax.core import mesh as meshes, tree
from alm_jax.core.precision import FLOAT32
from alm_jax.train.optim import OptimConfig, make_optimizer
from alm_jax.train.state import abstract_state, create_state
from alm_jax.train.step import make_step
from tests.train.toy import TRAINABLE, Toy, toy_batch

like = tree.abstract(lambda k: Toy(k, vocab=12))
optimizer = make_optimizer(OptimConfig(learning_rate=0.1, warmup_steps=0, schedule="constant"), 10)
losses = {}
for sizes, devices, micros in [((1, 1, 1), 1, [None]), ((8, 1, 1), 8, [8]), ((2, 2, 2), 8, [None, 8])]:
    for micro in micros:
        mesh = meshes.make_mesh(meshes.MeshConfig(*sizes), jax.devices()[:devices])
        places = meshes.shardings(like, mesh)
        params, frozen = tree.split(tree.flatten(Toy(jax.random.key(0), vocab=12)), TRAINABLE)
        abstract = abstract_state(params, optimizer, places, mesh)
        state = create_state(params, optimizer, jax.random.key(1))
        state = jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), state, abstract)
        frozen = {path: jax.device_put(leaf, places[path]) for path, leaf in frozen.items()}
        step = make_step(like, optimizer, FLOAT32, loss_group=2, micro_batch=micro, mesh=mesh, state=abstract)
        with jax.set_mesh(mesh):
            for seed in range(4):
                batch = jax.device_put(toy_batch(seed, rows=16, vocab=12), meshes.batch_sharding(mesh))
                state, metrics = step(state, frozen, batch)
                losses.setdefault((sizes, micro), []).append((float(metrics["loss"]), float(metrics["grad_norm"])))
        for leaf, to in zip(jax.tree.leaves(state), jax.tree.leaves(abstract)):
            assert leaf.sharding.is_equivalent_to(to.sharding, leaf.ndim), (sizes, leaf.sharding, to.sharding)
        shared = meshes.over_replicas(places["head"], (8, 12))
        assert state.opt_state[1].mu["head"].sharding.is_equivalent_to(shared, 2)
one = losses[(1, 1, 1), None]
for case, values in losses.items():
    np.testing.assert_allclose(values, one, rtol=1e-5, err_msg=str(case))
print("equal on", sorted(losses, key=str))
"""


def test_eight_devices_give_the_loss_of_one(repo):
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(8), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", EIGHT], cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal on" in done.stdout
