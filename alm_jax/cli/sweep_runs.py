"""The runs of a sweep: which there are, and how each is run in a process of its own."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alm_jax.core.config import apply_overrides, to_json
from alm_jax.core.errors import ConfigError, UsageError
from alm_jax.core.mesh import MeshConfig
from alm_jax.models.registry import named_config
from alm_jax.train.checkpoint import RunFolder
from alm_jax.train.config import Experiment, LoopConfig, run_config

Status = Literal["waiting", "done", "failed", "stopped"]


@dataclass
class Run:
    """One variant with one seed: its folder, the experiment, what became of it, and the launcher's command."""

    variant: str
    overrides: Mapping[str, Any]
    seed: int
    folder: Path
    experiment: Experiment
    status: Status = "waiting"
    error: str | None = None
    launch: Sequence[str] = ()

    @property
    def config(self) -> Path:
        """The experiment as JSON, from which the run is started."""
        return self.folder.with_suffix(".json")

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder.with_suffix(".log")


def plan_runs(
    base: Experiment, items: Sequence[Mapping[str, Any]], seeds: int, out: Path, launch: Sequence[str] = ()
) -> list[Run]:
    """All runs of a sweep, seed by seed, so that every variant has a first result early.

    Args:
        launch: command that runs `alm train` with what is put behind it; () runs it on this machine.

    Raises:
        ConfigError: a variant does not fit the config, two are the same, or there is none.
    """
    if seeds < 1:
        raise UsageError(f"--seeds is {seeds}; expected at least 1")
    if not items:
        raise ConfigError("the config's sweep() gives no variants")
    variants = [(item, apply_overrides(base, item, named_config)) for item in items]
    digests = [_digest(variant) for _, variant in variants]
    names = labels(items)
    runs = []
    for n in range(seeds):
        for (item, variant), digest, name in zip(variants, digests, names):
            if digests.count(digest) > 1:
                raise ConfigError(f"the sweep gives one variant twice: {name}")
            if "seed" in item:
                raise ConfigError("the config's sweep() sets seed; leave it out and give --seeds")
            experiment = replace(variant, seed=variant.seed + n)
            # Named by the item alone: the folders stay when the sweep gets more variants.
            folder = out / f"{_slug(labels([item])[0])}-{digest}" / f"seed{experiment.seed}"
            unique = name if names.count(name) == 1 else f"{name} ({digest})"
            runs.append(Run(unique, item, experiment.seed, folder, experiment, launch=launch))
    return runs


def labels(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The variants in short: `learning_rate=0.001, encoder=WhisperConfig`, with as much of a path as tells it apart."""
    paths = list(dict.fromkeys(path for item in items for path in item))

    def tail(path: str) -> str:
        parts = path.split(".")
        tails = (".".join(parts[-size:]) for size in range(1, len(parts)))
        return next((tail for tail in tails if sum(f".{p}".endswith(f".{tail}") for p in paths) == 1), path)

    return [", ".join(f"{tail(path)}={_spell(value)}" for path, value in item.items()) or "base" for item in items]


def run_all(runs: Sequence[Run]) -> None:
    """Run what is not done yet, one after another, each in a process of its own."""
    for run in runs:
        if finished(run):
            run.status = "done"
    width = max(len(run.variant) for run in runs)
    for n, run in enumerate(runs, start=1):
        head = f"[{n}/{len(runs)}] {run.variant:{width}}  seed {run.seed}"
        if run.status == "done":
            print(f"{head}  already done")
            continue
        print(f"{head}  running, log in {run.log}", flush=True)
        start = time.monotonic()
        _run_one(run)
        reason = f": {run.error}" if run.error else ""
        print(f"{head}  {run.status} after {time.monotonic() - start:.0f} s{reason}", flush=True)


def command(run: Run) -> list[str]:
    """The command line of a run; a process of its own, so that a crash takes nothing else down."""
    start = [*run.launch, "--"] if run.launch else [sys.executable, "-m", "alm_jax", "train"]
    return [*start, str(run.config), "--out", str(run.folder), "--resume"]


def _run_one(run: Run) -> None:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    run.config.write_text(json.dumps(run_config(run.experiment), indent=1))
    with run.log.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(command(run), stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            run.status = "stopped"
            process.terminate()  # it saves a checkpoint
            process.wait()
            raise
    run.status = "failed" if code else "done" if finished(run) else "stopped"
    run.error = _reason(code, run.log, log_start) if code else None


def _reason(code: int, log: Path, begin: int) -> str:
    """Why a run failed: its last line of error, or the signal that ended it."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    for start in ("alm: error: ", "launch: error: ", "launch: process ", "launch: "):
        if errors := [line for line in lines if line.startswith(start)]:
            return errors[-1].partition(": ")[2].removeprefix("error: ")
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def finished(run: Run) -> bool:
    """Whether every stage of a run has come to its end."""
    folder = RunFolder(run.folder)
    stages = run.experiment.stages
    return all(folder.stage(i, stage.name).finished is not None for i, stage in enumerate(stages))


def _digest(experiment: Experiment) -> str:
    """Of what the experiment computes: not of its seed, nor of where and how it runs."""
    computed = replace(experiment, seed=0, mesh=MeshConfig(), loop=LoopConfig())
    return hashlib.sha256(json.dumps(to_json(computed), sort_keys=True).encode()).hexdigest()[:8]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", text)[:80].strip("_")


def _spell(value: Any) -> str:
    if is_dataclass(value):
        return type(value).__name__
    return f"{value:g}" if isinstance(value, float) else str(value)
