"""Run folders and checkpoints: what is kept, what comes back, and what is said of folders that cannot be used."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import AlmError, CheckpointError
from alm_jax.train.checkpoint import RUN_FORMAT, Checkpoints, RunFolder, Source
from alm_jax.train.optim import OptimConfig, make_optimizer
from alm_jax.train.state import create_state


def make_state(step=0, dim=3):
    rng = np.random.default_rng(step)
    params = {
        "decoder.lora_a": rng.normal(size=(2, dim)).astype(np.float32),
        "aligner.bias": np.ones(dim, np.float32),
    }
    state = create_state(params, make_optimizer(OptimConfig(), 10), jax.random.key(7))
    state.step = jnp.asarray(step, jnp.int32)
    return state


def abstract(state):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state)


@pytest.fixture
def stage(tmp_path):
    return RunFolder.create(tmp_path / "run", {"config": {"name": "x"}}).stage(0, "align")


def test_what_is_saved_comes_back(stage):
    state = make_state(4)
    with Checkpoints(stage) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(state, 4)
    assert stage.finished is None
    stage.finish(4)
    assert stage.finished == 4
    with Checkpoints(stage) as checkpoints:
        assert checkpoints.latest == 4
        restored = checkpoints.restore(abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    weights = stage.weights(4)
    assert weights.keys() == state.params.keys()
    np.testing.assert_array_equal(weights["decoder.lora_a"], state.params["decoder.lora_a"])


def test_the_latest_and_the_best_are_kept(stage):
    losses = {1: None, 2: 3.0, 3: 1.0, 4: 2.0, 5: None, 6: None}
    with Checkpoints(stage, keep=2) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(make_state(step), step, loss)
    assert stage.steps() == [3, 5, 6]
    assert stage.best() == 3 and stage.validation_loss() == 1.0


def test_half_written_checkpoints_do_not_count(stage):
    with Checkpoints(stage) as checkpoints:
        checkpoints.save(make_state(1), 1)
    root = stage.path / "checkpoints"
    shutil.copytree(root / "1", root / "2.orbax-checkpoint-tmp")  # as a killed run leaves it
    assert stage.steps() == [1]
    with Checkpoints(stage) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.restore(abstract(make_state()))
    assert not (root / "2.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize("victim", ["_METADATA", "manifest.ocdbt"])
def test_a_damaged_checkpoint_is_named(stage, victim):
    with Checkpoints(stage) as checkpoints:
        checkpoints.save(make_state(1), 1)
    (stage.path / "checkpoints" / "1" / "weights" / victim).write_bytes(b"\0" * 10)
    with Checkpoints(stage) as checkpoints, pytest.raises(CheckpointError, match=r"checkpoints/1 cannot be read"):
        checkpoints.restore(abstract(make_state()))


def test_a_checkpoint_that_lacks_a_file(stage, tmp_path):
    """Whichever it is: it does not count, is read all the same, or one line says so, and nothing of Orbax's inside."""
    with Checkpoints(stage) as checkpoints:
        checkpoints.save(make_state(1), 1)
    whole = tmp_path / "whole"
    shutil.move(stage.path / "checkpoints" / "1", whole)
    absent = sorted({path.relative_to(whole) for pattern in ("*", "*/*") for path in whole.glob(pattern)})
    assert len(absent) > 6
    said = set()
    for name in absent:
        copy = shutil.copytree(whole, stage.path / "checkpoints" / "1")
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
        if stage.steps():
            with Checkpoints(stage) as checkpoints:
                try:
                    checkpoints.restore(abstract(make_state()))
                except CheckpointError as error:
                    said.add(str(error))
        shutil.rmtree(copy)
    assert said and all("half written or damaged; remove this folder to go on from the" in line for line in said)
    assert not any(re.search(r"(Attribute|Key|Type)Error|\n", line) for line in said), said


def test_a_checkpoint_of_another_model_lists_what_differs(stage):
    with Checkpoints(stage) as checkpoints:
        checkpoints.save(make_state(1), 1)
        checkpoints.wait()
        other = make_state(1, dim=5)
        other.params["encoder.norm.scale"] = jnp.ones(2)
        del other.params["aligner.bias"]
        with pytest.raises(CheckpointError, match="of another model") as caught:
            checkpoints.restore(abstract(other))
    message = str(caught.value)
    assert "aligner.bias has no place in this model" in message
    assert "encoder.norm.scale is missing" in message
    assert "decoder.lora_a is float32[2, 3], expected float32[2, 5]" in message


def test_carried_leaves_and_sources(stage):
    carried = {"encoder.kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}
    sources = [Source("smollm2_135m", "0.1.2", {"model.gguf": "ab" * 32}, ("decoder.*",))]
    assert not stage.begun
    stage.begin(carried, sources)
    assert stage.begun and stage.sources() == sources
    found = stage.carried()
    assert found["encoder.kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["encoder.kernel"], carried["encoder.kernel"])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wide = {"encoder.kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=place)}
    assert stage.carried(wide)["encoder.kernel"].dtype == jnp.float32
    with pytest.raises(CheckpointError, match=r"encoder.bias is missing, expected \(3,\)"):
        stage.carried({"encoder.bias": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place)})
    stage.begin({}, [])  # nothing is carried where everything trains or is pretrained
    assert stage.carried() == {}


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config.json; give the --out of a training"):
        RunFolder.open(tmp_path)
    run = RunFolder.create(tmp_path / "run", {"config": {"name": "x"}})
    assert RunFolder.open(run.path).config() == {"config": {"name": "x"}}
    file = run.path / "config.json"
    file.write_text(json.dumps({"format": RUN_FORMAT + 1, "config": {}}))
    with pytest.raises(CheckpointError, match=r"run format 2, this version of alm_jax reads up to 1: upgrade"):
        RunFolder.open(run.path)
    file.write_text('{"format": ')
    with pytest.raises(CheckpointError, match="half written or damaged"):
        RunFolder.open(run.path)
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="no format number"):
        RunFolder.open(run.path)


def test_a_full_disk_leaves_earlier_checkpoints_whole(mounted):
    disk = mounted("size=1m")
    stage = RunFolder.create(disk / "run", {}).stage(0, "align")
    state = make_state(1, dim=60_000)  # about 0.4 MB
    with pytest.raises(AlmError, match="the disk is full; earlier checkpoints are whole") as caught:
        with Checkpoints(stage) as checkpoints:
            for step in range(1, 9):
                checkpoints.save(make_state(step, dim=60_000), step)
    assert "\n" not in str(caught.value)
    whole = stage.steps()
    assert whole
    with Checkpoints(stage) as checkpoints:
        restored = checkpoints.restore(abstract(state))
    expected = make_state(whole[-1], dim=60_000)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_a_disk_too_small_for_what_is_carried(mounted, caplog):
    disk = mounted("size=1m")
    numbers = jax.random.normal(jax.random.key(0), (600_000,))
    with pytest.raises(AlmError, match="the disk is full"):
        RunFolder.create(disk / "run", {}).stage(0, "align").begin({"decoder.head": numbers}, ())
    assert not caplog.records  # the error is all that is told


def test_other_errors_of_the_disk_are_one_line(stage, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    with Checkpoints(stage) as checkpoints:
        monkeypatch.setattr(type(checkpoints._checkpointer), "save_checkpointables_async", refuse)
        with pytest.raises(AlmError, match=r"cannot write to .*0_align: OSError: \[Errno 30\] Read-only file system"):
            checkpoints.save(make_state(1), 1)
