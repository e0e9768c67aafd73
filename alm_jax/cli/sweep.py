"""`alm sweep`: a config's variants and seeds, each a run of its own, compared at the end."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from alm_jax.cli.parse import check_folder, overridden, parse, parse_settings
from alm_jax.core.config import load_config_file
from alm_jax.core.errors import UsageError


@dataclass
class Sweep:
    """Run every variant that the config's sweep() gives, with each seed, and compare them.

    The same command again skips runs that are done, goes on with one that was stopped, and tries failed ones anew. A
    run is known by its whole config: after a change to it, a new one begins. DIR gets a folder a run (with its log
    beside it), sweep.json, sweep.csv and sweep.png; the exit code is 1 if a run failed.

    examples:
      alm sweep ltu/tiny --out runs/tiny-sweep
      alm sweep ltu/tiny --out runs/tiny-sweep --seeds 3
      alm sweep my_config.py --out runs/mine --set stages.0.steps=100
      alm sweep ltu/tiny --out runs/tiny-sweep --launch "python -m launch.local --processes 2"
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """path of a config file, or a shipped one such as ltu/tiny; without sweep() its seeds alone are run"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """folder of the sweep"""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """runs a variant: with the config's seed, and the N - 1 that follow it"""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH=VALUE")] = ()
    """change a value of the config before every variant"""
    launch: Annotated[str, tyro.conf.arg(metavar="COMMAND")] = ""
    """launcher of every run (docs/launch.md); DIR has to be a folder that its machines see"""


def run(args: list[str]) -> int:
    """Run the sweep that `args` describe, print its table, and return 1 if a run is not done."""
    options = parse(Sweep, args, "sweep")
    check_folder(options.out)

    from alm_jax.cli.sweep_report import report
    from alm_jax.cli.sweep_runs import plan_runs, run_all

    file = load_config_file(options.config)
    base, items = overridden(file.get_config(), options.set), file.sweep()
    if twice := sorted({path for item in items for path in item} & set(parse_settings(options.set))):
        raise UsageError(f"--set {twice[0]}: the config's sweep() sets it for each variant")
    launch = shlex.split(options.launch)
    if launch and shutil.which(launch[0]) is None:
        raise UsageError(f"--launch {options.launch}: {launch[0]} is not installed here")
    runs = plan_runs(base, items, options.seeds, options.out, launch)
    stopped = False
    try:
        with _sigterm_interrupts():
            run_all(runs)
    except KeyboardInterrupt:
        stopped = True
    print()
    report(options.out, runs)
    if stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return int(any(run.status != "done" for run in runs))


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM stops the sweep as Ctrl-C does: the run saves a checkpoint, and the table shows what there is."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
