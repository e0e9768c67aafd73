"""Runs that are killed, stopped or moved to other devices or processes go on as if nothing had happened."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from alm_jax.train.checkpoint import RunFolder
from alm_jax.train.config import run_config
from alm_jax.train.curriculum import train
from alm_jax.train.metrics import read_metrics
from launch.common import STOPPED, Job
from launch.local import Local
from tests.devices import host_devices
from tests.train.runs import EXACT, exact, short


class Run:
    """A training process on some host devices."""

    def __init__(self, repo, caches, out, overrides=None, devices=1, stages=2, resume=False):
        flags = ["--resume"] if resume else []
        command = [sys.executable, "-m", "tests.train.runs", str(out), str(stages), json.dumps(overrides or {}), *flags]
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


class Processes:
    """Training processes that `launch.local` would start, on some host devices each."""

    def __init__(self, out, experiments, devices=1):
        out.parent.mkdir(parents=True, exist_ok=True)
        files = [out.with_name(f"{out.name}-{i}.json") for i in range(len(experiments))]
        for file, experiment in zip(files, experiments):
            file.write_text(json.dumps(run_config(experiment)))
        place = Local(processes=len(files), logs=out.parent, env=(f"XLA_FLAGS={host_devices(devices)}",))
        steps = [place.attempt(Job.of([str(file), "--out", str(out)]), 0)[0] for file in files]
        port = steps[0][0].env["JAX_COORDINATOR_ADDRESS"]
        same = lambda step: dict(step.env) | {"JAX_COORDINATOR_ADDRESS": port}
        self.out, self.steps = out, [replace(each[i], env=same(each[i])) for i, each in enumerate(steps)]
        for step in self.steps:
            step.log.unlink(missing_ok=True)
        self.processes = [step.start() for step in self.steps]

    def signal_after(self, rows, index, number):
        """Send one of them a signal once `metrics.jsonl` has that many rows."""
        process = self.processes[index]
        while process.poll() is None and len(read_metrics(self.out / "metrics.jsonl")) < rows:
            time.sleep(0.02)
        process.send_signal(number)

    def wait(self):
        """(exit codes, logs)."""
        try:
            codes = [process.wait(timeout=600) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return codes, [step.log.read_text() for step in self.steps]


def rows_of(out):
    return exact(read_metrics(out / "metrics.jsonl"))


def assert_close(rows, expected):
    """The same steps with the same numbers, but for the order of sums over devices."""
    assert [(row["stage"], row["step"]) for row in rows] == [(row["stage"], row["step"]) for row in expected]
    for row, wanted in zip(rows, expected):
        for name in set(EXACT[2:]) & set(wanted):
            np.testing.assert_allclose(row[name], wanted[name], rtol=1e-5, err_msg=f"{name} of {wanted}")


@pytest.fixture
def processes(caches, monkeypatch):
    """`Processes` that share the caches."""
    for name in ("ALM_CACHE", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, caches[name])
    return Processes


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
    workers = {f"stages.{'read' if at < 8 else 'all'}.data.workers": 4}  # of the stage in which it is killed
    run = Run(repo, caches, out, workers)
    run.signal_after(at, signal.SIGKILL)
    assert run.wait()[0] == -signal.SIGKILL
    train(short(**workers), out, resume=True, progress=False)
    assert rows_of(out) == whole, f"killed after row {at}"  # bit for bit


def test_stopped_on_eight_devices_and_finished_on_four(repo, caches, whole, tmp_path):
    out = tmp_path / "run"
    run = Run(repo, caches, out, {"mesh.fsdp": 2}, devices=8, stages=1)
    run.signal_after(3, signal.SIGTERM)
    code, log = run.wait()
    assert code == 0, log
    assert "SIGTERM: stopping after this step" in log and "go on with --resume" in log
    stopped = rows_of(out)[-1]["step"]
    assert (out / "stages" / "0_read" / "checkpoints" / str(stopped)).is_dir()
    code, log = Run(repo, caches, out, devices=4, stages=1, resume=True).wait()
    assert code == 0, log
    assert_close(rows_of(out), [row for row in whole if row["stage"] == "read"])


def test_ctrl_c_says_how_to_go_on_and_a_second_one_leaves_at_once(repo, caches, tmp_path):
    out = tmp_path / "run"
    many = {"stages.read.steps": 5000, "loop.checkpoint_every": 5000, "stages.read.validation.every": 5000}
    run = Run(repo, caches, out, many, stages=1)
    run.signal_after(2, signal.SIGINT)
    code, log = run.wait()
    assert code == 0 and "SIGINT: stopping after this step, with a checkpoint (again: stop at once)" in log
    assert f"go on with --resume --out {out}" in log
    (checkpoint,) = (out / "stages" / "0_read" / "checkpoints").iterdir()
    assert int(checkpoint.name) == rows_of(out)[-1]["step"]


def test_one_of_two_processes_is_killed_and_one_goes_on(processes, caches, whole, tmp_path):
    out = tmp_path / "run"
    once = short(1, **{"stages.read.validation": None})
    both = processes(out, [once, once])
    both.signal_after(3, 1, signal.SIGKILL)
    codes, logs = both.wait()
    assert codes == [1, -signal.SIGKILL], logs
    assert re.search(
        r"^alm: error: process 0 of 2 \(.*\) has lost another process \(.*go on with --resume", logs[0], re.M
    )
    assert 2 in RunFolder.open(out).stage(0, "read").steps()
    train(once, out, resume=True, progress=False)
    assert_close(rows_of(out), [row for row in whole if row["stage"] == "read" and "loss" in row])


@pytest.mark.slow
def test_the_first_of_two_processes_is_killed_and_the_launcher_starts_them_again(repo, processes, whole, tmp_path):
    out = tmp_path / "run"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(run_config(short())))
    flags = ["--processes", "2", "--backoff", "0", "--env", f"XLA_FLAGS={host_devices(1)}"]
    command = [sys.executable, "-m", "launch.local", *flags, "--", str(config), "--out", str(out)]
    launcher = subprocess.Popen(command, cwd=repo, stderr=subprocess.PIPE, text=True)
    while launcher.poll() is None and len(read_metrics(out / "metrics.jsonl")) < random.randint(3, 10):
        time.sleep(0.02)
    with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as file:
        for child in file.read().split():
            if b"JAX_PROCESS_ID=0\0" in open(f"/proc/{child}/environ", "rb").read():
                os.kill(int(child), signal.SIGKILL)
    err = launcher.communicate(timeout=900)[1]
    assert launcher.returncode == 0, err
    assert "process 0 was killed by SIGKILL" in err and "attempt 1 failed: starts again in 0 s" in err
    assert_close(rows_of(out), whole)


@pytest.mark.slow
def test_four_processes_stop_together_and_two_finish(processes, whole, tmp_path):
    """Parameters divided over processes; features computed by four and read by two."""
    out = tmp_path / "run"
    cached = short(**{"mesh.fsdp": 2, "stages.all.data.workers": 2})
    four = processes(out, [cached] * 4)
    four.signal_after(5, 2, signal.SIGTERM)
    codes, logs = four.wait()
    assert codes == [STOPPED] * 4, logs
    stopped = rows_of(out)[-1]
    assert stopped["step"] in RunFolder.open(out).stage(0, "read").steps() + RunFolder.open(out).stage(1, "all").steps()
    codes, logs = processes(out, [replace(cached, mesh=replace(cached.mesh, fsdp=1))] * 2, devices=2).wait()
    assert codes == [0, 0], logs
    assert_close(rows_of(out), whole)


@pytest.mark.slow
def test_processes_that_differ_stop_before_the_first_step(processes, tmp_path):
    out = tmp_path / "run"
    codes, logs = processes(out, [short(1), replace(short(1), seed=7)]).wait()
    assert codes == [2, 2], logs
    for log in logs:
        assert re.search(
            r"^alm: error: process 1 \(.*\) differs from process 0 \(.*\): seed is 7, there 0; start all", log, re.M
        )
    assert not out.exists()


@pytest.mark.slow
def test_a_stall_names_the_process(processes, tmp_path):
    """One process is halted: it says nothing, and the other shows that it waits."""
    out = tmp_path / "run"
    many = short(1, **{"stages.read.steps": 5000, "stages.read.validation": None, "loop.stall_seconds": 20.0})
    both = processes(out, [many, many])
    both.signal_after(3, 1, signal.SIGSTOP)
    log = both.steps[0].log
    # While it compiles it may have been told of a stall since the start.
    stalled = re.compile(
        r"^alm: stalled: process 0 of 2 \(.*\) has done nothing for 20 s since step \d+ of stage read.*in run$",
        re.M | re.S,
    )
    end = time.monotonic() + 300
    while not stalled.search(log.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    for process in both.processes:
        process.kill()
    both.wait()
    assert stalled.search(log.read_text()), log.read_text()
