"""Launchers: what they would run is golden text; restarts, stops and the scripts for clusters are run with small stand-ins.

`python -m tests.launch.test_launch` writes the golden text anew.
"""  # noqa: E501

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch import gke, local, slurm, tpu_vm
from launch.common import HOPELESS, STOPPED, Job, Place, Step, main, pause, shell_pause

PLACES = {"local": local.Local, "tpu_vm": tpu_vm.TpuVm, "slurm": slurm.Slurm, "gke": gke.Gke}
TEXTS = Path(__file__).parent / "dry_run"
TRAIN = ["--", "ltu/vicuna_7b", "--out", "/shared/runs/ltu", "--set", "mesh.fsdp=8"]
COMMANDS = {
    "local": ["--processes", "2", "--devices", "4", "--env", "ALM_CACHE=/shared/my cache"],
    "local_alone": [],
    "tpu_vm": [
        "--tpu",
        "pod1",
        "--zone",
        "us-west4-a",
        "--setup",
        ". venv/bin/activate",
        "--env",
        "ALM_CACHE=/shared/c",
    ],
    "tpu_vm_made": ["--tpu", "pod1", "--zone", "us-west4-a", "--accelerator-type", "v5litepod-16", "--spot"],
    "slurm": ["--nodes", "2", "--gpus", "8", "--sbatch", "partition=gpu", "--setup", ". venv/bin/activate"],
    "slurm_detached": ["--nodes", "1", "--gpus", "4", "--alm", "apptainer exec --nv alm.sif alm", "--detach"],
    "gke": ["--topology", "v5e:4x4", "--image", "IMAGE", "--claim", "shared=/shared", "--env", "ALM_CACHE=/shared/c"],
    "gke_slices": shlex.split(
        "--topology v5p:2x2x4 --slices 2 --image IMAGE --claim shared=/shared --queue multislice-queue --spot --detach"
    ),
}


def place_of(name):
    return PLACES[name if name in PLACES else name.rpartition("_")[0]]


def dry_run(name, capture):
    assert main(place_of(name), [*COMMANDS[name], "--dry-run", *TRAIN]) == 0
    return capture().replace(sys.executable, "python")


@pytest.mark.parametrize("name", COMMANDS)
def test_dry_runs(name, capsys):
    assert dry_run(name, lambda: capsys.readouterr().out) == (TEXTS / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_dry_runs_are_shell(name):
    subprocess.run(["bash", "-n"], input=(TEXTS / f"{name}.txt").read_text(), text=True, check=True)


def commands_in(text):
    """(launcher's name, arguments) of every `python -m launch.NAME ...` in a text; a backslash joins lines."""
    lines = re.findall(r"python -m launch\.(\w+) (.*)", text.replace("\\\n", ""))
    return [(name, shlex.split(line)) for name, line in lines if "-- " in line]


def check_commands(found):
    for name, args in found:
        split = args.index("--")
        assert (
            main(PLACES[name], [*args[:split], *["--dry-run"] * ("--dry-run" not in args[:split]), *args[split:]]) == 0
        )


@pytest.mark.parametrize("name", PLACES)
def test_examples_in_help(name, capsys):
    assert main(PLACES[name], ["--help"]) == 0
    found = commands_in(capsys.readouterr().out)
    assert len(found) >= 2
    check_commands(found)


def test_documents(repo):
    found = commands_in((repo / "docs" / "launch.md").read_text())
    assert {name for name, _ in found} == set(PLACES)
    check_commands(found)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("local", [], "what to train is missing: python -m launch.local [OPTIONS] -- ltu/tiny --out runs/tiny"),
        ("local", ["--", "ltu/tiny"], "--out"),
        ("local", ["--proceses", "2", *TRAIN], "proceses"),
        ("local", ["--processes", "0", *TRAIN], "--processes and --devices are 1 or more"),
        ("local", ["--restarts", "-1", *TRAIN], "--restarts and --backoff are 0 or more"),
        ("local", ["--env", "A", *TRAIN], "--env takes NAME=VALUE, got 'A'"),
        ("slurm", ["--nodes", "1", "--gpus", "0", *TRAIN], "--nodes and --gpus are 1 or more"),
        (
            "slurm",
            ["--nodes", "1", "--gpus", "1", "--sbatch=--x=1", *TRAIN],
            "--sbatch takes NAME=VALUE without dashes",
        ),
        (
            "gke",
            ["--topology", "v9:4x4", "--image", "I", "--claim", "r=/shared", *TRAIN],
            "expected a generation (v4, v5e",
        ),
        ("gke", ["--topology", "v5e:4x4", "--image", "I", "--claim", "r", *TRAIN], "expected NAME=PATH"),
        ("gke", ["--topology", "v5e:4x4", "--image", "I", "--claim", "r=/data", *TRAIN], "is not on the volume"),
    ],
)
def test_mistakes(name, args, message, capsys):
    assert main(PLACES[name], args) == 2
    err = capsys.readouterr().err
    assert err.startswith("launch: error: ") and message in err and err.count("\n") == 1


def test_a_job_keeps_its_name_and_goes_on():
    job = Job.of(["ltu/tiny", "--out", "runs/My Run!", "--resume"])
    assert re.fullmatch(r"alm-my-run-[0-9a-f]{6}", job.name) and job == Job.of([*job.args])
    assert job.name != Job.of(["ltu/tiny", "--out", "other/My Run!"]).name
    assert job.command(distributed=False) == ["alm", "train", *job.args, "--stopped-code", "75"]


def test_pauses():
    waits = [pause(n, 30) for n in range(30)]
    assert waits[:3] == [0, 30, 60] and waits[-1] == 600
    shell = shell_pause("n", 30).removeprefix("sleep ")
    script = f"for n in $(seq 0 29); do echo {shell}; done"
    assert list(map(int, subprocess.check_output(["bash", "-c", script]).split())) == waits


@dataclass(kw_only=True)
class Shell(Place):
    """Two processes that run a line of bash, which sees which it is and how often it has been tried."""

    line: str = ""
    backoff: int = 0

    def attempt(self, job, number):
        where = self.folder(job)
        env = lambda index: {"INDEX": str(index), "ATTEMPT": str(number)}
        script = ("bash", "-c", self.line)
        return [[Step(script, env(i), where / f"process-{i}.log", name=f"process {i}") for i in range(2)]]


def launch(tmp_path, line, *args):
    return main(Shell, ["--line", line, "--backoff", "0", *args, "--", "ltu/tiny", "--out", str(tmp_path / "run")])


def logs(tmp_path):
    return [(tmp_path / "run.logs" / f"process-{i}.log").read_text() for i in range(2)]


def test_what_fails_is_started_again(tmp_path, capsys):
    line = 'echo "$ATTEMPT $INDEX"; [ $ATTEMPT = 0 ] && exit $INDEX; [ $ATTEMPT = 1 ] && exit 75; exit 0'
    assert launch(tmp_path, line) == 0
    assert logs(tmp_path) == ["0 0\n1 0\n2 0\n", "0 1\n1 1\n2 1\n"]
    err = capsys.readouterr().err.splitlines()
    assert err == [
        f"launch: process 1 failed with exit code 1 ({tmp_path}/run.logs/process-1.log)",
        "launch: attempt 1 failed: starts again in 0 s (20 restarts left)",
        "launch: attempt 2 was stopped: starts again in 0 s (19 restarts left)",
    ]


def test_it_gives_up(tmp_path, capsys):
    line = 'echo "alm: error: no clip $ATTEMPT" >&2; echo later; [ $INDEX = 1 ] && kill -9 $$; exit 1'
    assert launch(tmp_path, line, "--restarts", "2") == 1
    err = capsys.readouterr().err
    assert "process-0.log): no clip 2\n" in err and "process 1 was killed by SIGKILL" in err
    assert err.endswith("launch: failed after 2 restarts; --restarts allows more\n")
    assert logs(tmp_path)[0].count("later") == 3


@pytest.mark.parametrize("code", HOPELESS)
def test_a_wrong_config_is_not_started_again(tmp_path, code):
    assert launch(tmp_path, f"echo once; exit $(( INDEX ? {code} : 0 ))") == code
    assert logs(tmp_path) == ["once\n", "once\n"]


def test_the_others_are_ended_when_one_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.common._GRACE", 0.2)
    assert launch(tmp_path, "[ $INDEX = 1 ] && exit 1; sleep 600", "--restarts", "0") == 1


def test_sigterm_is_passed_on_and_nothing_is_started_again(tmp_path, capsys):
    line = f"trap 'echo saved; exit {STOPPED}' TERM; echo began; while true; do sleep 0.05; done"

    def stop():
        while not all(path.is_file() and path.read_text() for path in map(tmp_path.joinpath, names)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    names = [f"run.logs/process-{i}.log" for i in range(2)]
    threading.Thread(target=stop).start()
    assert launch(tmp_path, line) == 0
    assert logs(tmp_path) == ["began\nsaved\n"] * 2
    assert "SIGTERM: stopping, with a checkpoint" in capsys.readouterr().err


def test_logs_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert launch(tmp_path, "exit 0", "--logs", str(tmp_path / "file" / "logs")) == 2
    assert "cannot write logs to" in capsys.readouterr().err


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Puts programs of a few lines of bash on PATH; each notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.txt"))

    def put(**programs):
        for name, lines in programs.items():
            program = folder / name
            program.write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{lines}\n')
            program.chmod(0o755)

    put.calls = lambda: (tmp_path / "calls.txt").read_text().splitlines()
    return put


@pytest.mark.parametrize(("codes", "code"), [("1 75 0", 0), ("1 1 1", 1), ("2", 2)])
def test_the_batch_script_starts_again(stand_ins, tmp_path, codes, code, capfd):
    tries = tmp_path / "tries"
    srun = f"n=$(cat {tries} 2> /dev/null || echo 0); echo $((n + 1)) > {tries}; codes=({codes}); exit ${{codes[$n]}}"
    stand_ins(sbatch="bash", srun=srun, sleep="")
    args = ["--nodes", "1", "--gpus", "2", "--restarts", "2", "--backoff", "5"]
    assert main(slurm.Slurm, [*args, "--", "ltu/tiny", "--out", str(tmp_path / "run")]) == (1 if code == 1 else code)
    pauses = [call for call in stand_ins.calls() if call.startswith("sleep")]
    assert pauses == {0: ["sleep 0", "sleep 5", "sleep 300", "sleep 10"], 1: ["sleep 0", "sleep 5", "sleep 10"]}.get(
        code, ["sleep 0"]
    )
    assert sum(call.startswith("srun") for call in stand_ins.calls()) == len(codes.split())


def test_the_batch_job_is_queued_again_when_its_time_is_up(stand_ins, tmp_path):
    """SLURM tells the script, which has the processes save."""
    term = tmp_path / "term"
    srun = f"kill -USR1 $PPID; until [ -f {term} ]; do /bin/sleep 0.02; done; exit {STOPPED}"
    stand_ins(
        sbatch="bash", srun=srun, sleep="", scancel=f"touch {term}; /bin/sleep 0.2", scontrol=""
    )  # srun has ended
    args = ["--nodes", "1", "--gpus", "2", "--", "ltu/tiny", "--out", str(tmp_path / "run")]
    os.environ["SLURM_JOB_ID"] = "17"
    try:
        assert main(slurm.Slurm, args) == 0
    finally:
        del os.environ["SLURM_JOB_ID"]
    assert stand_ins.calls()[-2:] == ["scancel --signal=TERM 17", "scontrol requeue 17"]


@pytest.mark.parametrize(
    ("state", "verbs"),
    [("READY", []), ("", ["create"]), ("PREEMPTED", ["delete", "create"])],
)
def test_a_tpu_vm_is_made_where_it_is_not_ready(stand_ins, tmp_path, state, verbs):
    stand_ins(gcloud=f'[ "$4" = describe ] && echo {state}; exit 0')
    out = ["--", "ltu/tiny", "--out", str(tmp_path / "run")]
    assert main(tpu_vm.TpuVm, ["--tpu", "a", "--zone", "b", "--accelerator-type", "v4-8", *out]) == 0
    assert [call.split()[4] for call in stand_ins.calls()] == ["describe", *verbs, "ssh", "ssh"]
    assert (tmp_path / "run.logs" / "attempt-0").is_dir()


def test_a_tpu_vm_that_fails_is_tried_again(stand_ins, tmp_path, capsys):
    stand_ins(gcloud='case "$*" in *--output-directory*) exit 1 ;; esac')
    args = ["--tpu", "a", "--zone", "b", "--restarts", "1", "--backoff", "0"]
    assert main(tpu_vm.TpuVm, [*args, "--", "ltu/tiny", "--out", str(tmp_path / "run")]) == 1
    assert len(stand_ins.calls()) == 4  # left over processes are stopped before each
    assert "a failed with exit code 1" in capsys.readouterr().err


def test_leftovers_are_found_and_the_search_is_not(stand_ins, tmp_path):
    """The pattern, tried on processes of this machine."""
    stand_ins(sudo='"$@"')
    mine = [sys.executable, "-c", "import time; time.sleep(600)"]
    left = subprocess.Popen([*mine, "--out", str(tmp_path / "run"), "--resume"])
    other = subprocess.Popen([*mine, "--out", str(tmp_path / "run2")])
    try:
        job = Job.of(["ltu/tiny", "--out", str(tmp_path / "run")])
        (*_, ssh), *_ = [step.argv for (step,) in tpu_vm.TpuVm(tpu="a", zone="b").attempt(job, 0)]
        subprocess.run(["bash", "-c", ssh.removeprefix("--command=")], check=True)
        assert left.wait(timeout=60) == -signal.SIGTERM and other.poll() is None
    finally:
        left.kill()
        other.kill()


@pytest.mark.parametrize(("state", "code"), [("Completed", 0), ("Failed", 1)])
def test_a_job_set_is_waited_for(stand_ins, tmp_path, state, code):
    stand_ins(kubectl=f"[ $1 = create ] && cat > {tmp_path}/made.yaml; [ $1 = get ] && echo {state}; exit 0")
    args = ["--topology", "v5e:4x4", "--image", "I", "--claim", f"runs={tmp_path}"]
    assert main(gke.Gke, [*args, "--", "ltu/tiny", "--out", str(tmp_path / "run")]) == code
    assert [call.split()[1] for call in stand_ins.calls()] == ["create", "wait", "get"]
    assert "kind: JobSet" in (tmp_path / "made.yaml").read_text()
    assert not (tmp_path / "run.logs").exists()


def test_a_missing_program_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(gke.Gke, [*COMMANDS["gke"], *TRAIN]) == 2
    assert "kubectl is not installed here" in capsys.readouterr().err


def test_topologies(capsys):
    job = Job.of(TRAIN[1:])

    def pods(topology):
        spec = gke.Gke(topology=topology, image="I", claim="shared=/shared").manifest(job)["spec"]
        jobs = spec["replicatedJobs"][0]["template"]["spec"]
        container = jobs["template"]["spec"]["containers"][0]
        return jobs["completions"], container["resources"]["limits"]["google.com/tpu"]

    assert [pods(t) for t in ("v5e:1x1", "v6e:2x2", "v4:2x2x4", "v5p:8x8x8")] == [(1, 1), (1, 4), (4, 4), (128, 4)]


if __name__ == "__main__":
    import contextlib
    import io

    for each in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            text = dry_run(each, lambda shown=shown: shown.getvalue())
        (TEXTS / f"{each}.txt").write_text(text)
