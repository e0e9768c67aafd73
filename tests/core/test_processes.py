"""How processes meet, and what they say where they cannot, or are not alike."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import jax
import pytest

from alm_jax.core import processes
from alm_jax.core.errors import AlmError, ConfigError, UsageError
from alm_jax.core.processes import (
    ADDRESS,
    COUNT,
    INDEX,
    check_alike,
    check_joined,
    check_shared,
    gather,
    join,
    named_loss,
    raise_together,
)
from tests.processes import played

CLUSTER = {
    "SLURM_NTASKS",
    "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE",
    "MEGASCALE_NUM_SLICES",
    "TPU_WORKER_HOSTNAMES",
    ADDRESS,
    COUNT,
    INDEX,
}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, and no others that tell of processes."""

    def put(**variables):
        for name in CLUSTER:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def test_a_process_alone(environment):
    environment()
    join()
    assert not jax.distributed.is_initialized()
    assert gather("a") == ["a"]
    raise_together(None)
    with pytest.raises(AlmError, match=r"^no room$"):
        raise_together("no room")
    processes.leave(3)  # goes on
    with pytest.raises(ValueError, match="Gloo"), named_loss("resume"):
        raise ValueError("Gloo is missing")


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({ADDRESS: "a:1"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # a batch script, before srun
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "a"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_others_show_in_the_environment(environment, monkeypatch, variables, several):
    found = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: found.append(a))
    environment(**variables)
    join()
    assert bool(found) == several
    join(distributed=True)
    assert found[-1] == ((variables[ADDRESS], None, None) if ADDRESS in variables else (None, None, None))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({ADDRESS: "a:1", COUNT: "2"}, "JAX_PROCESS_ID is None: expected"),
        (
            {ADDRESS: "a:1", COUNT: "2", INDEX: "2"},
            "JAX_NUM_PROCESSES is '2', JAX_PROCESS_ID is '2': expected how many",
        ),
        ({ADDRESS: "a", COUNT: "2", INDEX: "1"}, "JAX_COORDINATOR_ADDRESS is 'a': expected HOST:PORT"),
    ],
)
def test_variables_that_do_not_fit_together(environment, variables, message):
    environment(**variables)
    with pytest.raises(UsageError, match=message):
        join()


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'tpu':\nno libtpu.so")])
def test_devices_that_are_not_there(monkeypatch, error):
    """JAX asserts where nothing of what JAX_PLATFORMS names is installed."""

    def count():
        raise error

    monkeypatch.setattr(jax, "process_count", count)
    with pytest.raises(AlmError, match=r"JAX finds no device of JAX_PLATFORMS=.*: install 'alm_jax") as found:
        check_joined()
    assert "\n" not in str(found.value) and " ".join(str(error).split()) in str(found.value)


def alone(environment, code):
    """A process that joins; its exit code and the last line of its errors."""
    rest = {name: value for name, value in os.environ.items() if name not in CLUSTER}
    script = (
        f"import sys\nfrom alm_jax.core.processes import *\ntry:\n    {code}\nexcept UsageError as e:\n    sys.exit(e)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script], env=rest | environment, stderr=subprocess.PIPE, text=True, cwd=os.getcwd()
    )


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_what_cannot_be_reached_is_named():
    ports = [free_port(), free_port()]
    told = lambda port, index: {ADDRESS: f"localhost:{port}", COUNT: "3", INDEX: str(index)}
    stays = alone(told(ports[1], 0), "join(timeout=600)")
    started = [
        alone({ADDRESS: "nowhere.invalid:1234", COUNT: "2", INDEX: "1"}, "join(timeout=2)"),
        alone(told(ports[0], 0), "join(timeout=2)"),
        alone(told(ports[1], 1), "join(timeout=5)"),
        alone({"TPU_SKIP_MDS_QUERY": "1"}, "join(distributed=True)"),
    ]
    try:
        errors = [process.communicate(timeout=300)[1].splitlines()[-1] for process in started]
    finally:
        stays.kill()
        stays.communicate()
    assert [process.returncode for process in started] == [1] * 4
    start = "alm: error: process"
    assert errors[0].startswith(
        f"{start} 1 of 2 cannot reach the coordinator at nowhere.invalid:1234 within 2 s: check"
    )
    assert errors[1].startswith(f"{start} 0 of 3 has waited 2 s for the others to come to localhost:{ports[0]}: check")
    # On a slow machine the first process may not be up yet.
    assert errors[2].startswith((f"{start} 1 of 3 has waited 5 s for the others, and", f"{start} 1 of 3 cannot reach"))
    assert errors[3].startswith("--distributed finds no other processes")


def test_differences_are_named_on_all_processes(monkeypatch):
    usual = {"stages.0.steps": "6", "jax": "0.10.2"}
    assert played(monkeypatch, lambda i: check_alike(usual)) == [None] * 3
    values = [usual, usual, usual | {"jax": "0.10.1", "seed": "1"}]
    errors = played(monkeypatch, lambda i: check_alike(values[i]))
    host = socket.gethostname()
    assert {type(error) for error in errors} == {ConfigError} and len(set(map(str, errors))) == 1
    assert str(errors[0]) == (
        f"process 2 ({host}) differs from process 0 ({host}): jax is 0.10.1, there 0.10.2; seed is 1, there missing; "
        "start all processes with one command and one installation"
    )
    # Most are right, also where the first is not.
    errors = played(monkeypatch, lambda i: check_alike(values[2 - i]))
    assert str(errors[0]).startswith(f"process 0 ({host}) differs from process 1 ({host}): jax is 0.10.1, there 0.10.2")
    errors = played(monkeypatch, lambda i: check_alike({"seed": str(min(i, 1))}))
    assert str(errors[0]).startswith(f"process 0 ({host}) differs from process 1")
    errors = played(monkeypatch, lambda i: check_alike({str(n): str(n * i) for n in range(8)}), count=2)
    assert "5 is 5, there 0 and 2 more; start" in str(errors[0])


def test_clocks_are_compared(monkeypatch):
    offsets = {}
    now = time.time()
    monkeypatch.setattr(processes, "_now", lambda: now + offsets[jax.process_index()])
    offsets = {0: 0.0, 1: 30.0, 2: -20.0}
    assert played(monkeypatch, lambda i: check_alike({})) == [None] * 3
    offsets = {0: 0.0, 1: -4000.0, 2: 1.0}
    errors = played(monkeypatch, lambda i: check_alike({}))
    assert len(set(map(str, errors))) == 1 and "its clock is -4000 s from the others': set it" in str(errors[0])
    assert str(errors[0]).startswith("process 1 (")


def test_problems_of_one_are_raised_by_all(monkeypatch):
    errors = played(monkeypatch, lambda i: raise_together("no room" if i == 1 else None))
    assert [str(error) for error in errors] == ["process 1: no room"] * 3
    assert played(monkeypatch, lambda i: raise_together(None)) == [None] * 3


def test_a_lost_process_is_one_line(monkeypatch):
    def lose(index):
        with named_loss("go on with --resume"):
            raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore")

    (error, _) = played(monkeypatch, lose, count=2)
    assert str(error) == (
        f"process 0 of 2 ({socket.gethostname()}) has lost another process (UNKNOWN: Gloo all-reduce failed: "
        "Connection closed by peer more): its own log says why it left; go on with --resume"
    )

    def fail(index):
        with named_loss(""):
            raise ValueError("negative axis")

    assert {str(error) for error in played(monkeypatch, fail, count=2)} == {"negative axis"}


def test_a_folder_is_one_for_all(monkeypatch, tmp_path):
    assert played(monkeypatch, lambda i: check_shared(tmp_path / "new" / "run")) == [None] * 3
    assert not list((tmp_path / "new" / "run").iterdir())
    errors = played(monkeypatch, lambda i: check_shared(tmp_path / f"machine{i // 2}"))
    assert len(set(map(str, errors))) == 1
    assert str(errors[0]).startswith(f"process 2: {tmp_path}/machine1 is not the folder that process 0 sees")
    (tmp_path / "file").write_text("")
    errors = played(monkeypatch, lambda i: check_shared(tmp_path / ("file" if i == 1 else "machine0")))
    assert len(set(map(str, errors))) == 1
    assert str(errors[0]).startswith(f"process 1: cannot write to {tmp_path}/file: File exists; make it writable")
