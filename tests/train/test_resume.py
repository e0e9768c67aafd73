"""Runs that are killed, stopped or moved to other devices go on as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from alm_jax.train.curriculum import train
from alm_jax.train.metrics import read_metrics
from tests.devices import host_devices
from tests.train.runs import EXACT, exact, short

WORKERS = {"stages.read.data.workers": 4, "stages.all.data.workers": 4}


class Run:
    """A training process on some host devices."""

    def __init__(self, repo, caches, out, overrides=None, devices=1, resume=False):
        flags = ["--resume"] if resume else []
        command = [sys.executable, "-m", "tests.train.runs", str(out), json.dumps(overrides or {}), *flags]
        environment = caches | {"XLA_FLAGS": host_devices(devices)}
        self.out, self.log = out, (out.parent / f"{out.name}.err").open("a+")
        self.process = subprocess.Popen(command, cwd=repo, env=environment, stderr=self.log)

    def wait(self):
        code = self.process.wait(timeout=900)
        self.log.seek(0)
        return code, self.log.read()

    def signal_after(self, rows, number):
        """Send a signal once `metrics.jsonl` has that many rows."""
        while self.process.poll() is None and len(read_metrics(self.out / "metrics.jsonl")) < rows:
            time.sleep(0.02)
        self.process.send_signal(number)


def rows_of(out):
    return exact(read_metrics(out / "metrics.jsonl"))


@pytest.fixture(scope="module")
def whole(caches, tmp_path_factory):
    """Metrics of a run that nothing happened to: 2 stages x (6 steps + 2 validations)."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(short(), out, progress=False)
    assert len(rows_of(out)) == 16
    return rows_of(out)


def test_killed_at_any_step_with_four_workers(repo, caches, whole, tmp_path):
    out = tmp_path / "run"
    at = random.randint(1, 14)
    run = Run(repo, caches, out, WORKERS)
    run.signal_after(at, signal.SIGKILL)
    assert run.wait()[0] == -signal.SIGKILL
    code, log = Run(repo, caches, out, WORKERS, resume=True).wait()
    assert code == 0, log
    assert rows_of(out) == whole, f"killed after row {at}"  # bit for bit


def test_stopped_on_eight_devices_and_finished_on_four(repo, caches, whole, tmp_path):
    out = tmp_path / "run"
    run = Run(repo, caches, out, {"mesh.fsdp": 2}, devices=8)
    run.signal_after(3, signal.SIGTERM)
    code, log = run.wait()
    assert code == 0, log
    assert "SIGTERM: stopping after this step" in log and "go on with --resume" in log
    stopped = rows_of(out)[-1]["step"]
    assert (out / "stages" / "0_read" / "checkpoints" / str(stopped)).is_dir()
    code, log = Run(repo, caches, out, devices=4, resume=True).wait()
    assert code == 0, log
    rows = rows_of(out)
    assert [(row["stage"], row["step"]) for row in rows] == [(row["stage"], row["step"]) for row in whole]
    for row, expected in zip(rows, whole):
        for name in set(EXACT[2:]) & set(expected):  # sums over devices are in another order
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-5, err_msg=f"{name} of {expected}")


def test_ctrl_c_says_how_to_go_on_and_a_second_one_leaves_at_once(repo, caches, tmp_path):
    out = tmp_path / "run"
    many = {"stages.read.steps": 5000, "loop.checkpoint_every": 5000, "stages.read.validation.every": 5000}
    run = Run(repo, caches, out, many)
    run.signal_after(2, signal.SIGINT)
    code, log = run.wait()
    assert code == 0 and "SIGINT: stopping after this step, with a checkpoint (again: stop at once)" in log
    assert f"go on with --resume --out {out}" in log
    (checkpoint,) = (out / "stages" / "0_read" / "checkpoints").iterdir()
    assert int(checkpoint.name) == rows_of(out)[-1]["step"]
