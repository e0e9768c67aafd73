#!/usr/bin/env python
"""Measure the block sizes of kernels on the device at hand, and write the fastest into their table.

    python tools/tune_kernels.py
    python tools/tune_kernels.py log_mel decode_attention --rounds 20

Every kernel that `auto` takes here in the cases of `tools/bench.py` is run with each of the block sizes that it can do
a shape with. The table (alm_jax/kernels/tuned.json) is written after every shape; shapes that it has for this kind of
device are not measured again, so that a run that was stopped goes on where it was. Commit the table to keep it.
The default stays where nothing else is 2 % faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_cases import BENCHES, Case

from alm_jax.core.files import write_text

_GAIN = 0.98  # of the default's time


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from alm_jax.core.mesh import device_kind
    from alm_jax.kernels import tuning

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=10, help="timed runs of each candidate (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure shapes that are in the table, too")
    parser.add_argument("--table", type=Path, default=tuning.TABLE, help="file to write (default: %(default)s)")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.kernels if name not in BENCHES]:
        parser.error(f"no kernel is called {', '.join(unknown)}: expected some of {', '.join(BENCHES)}")
    asked = 0
    for name in options.kernels or BENCHES:
        for case in BENCHES[name]():
            for kernel, shape, candidates in _asked(case):
                asked += 1
                table = json.loads(options.table.read_text(encoding="utf-8"))
                known = table.setdefault(device_kind(), {}).setdefault(kernel, {})
                if shape in known and not options.again:
                    _say(f"{kernel} {shape}: known, {known[shape]}")
                    continue
                _say(f"{kernel} {shape}: {len(candidates)} candidates, in {case.name}")
                known[shape] = _fastest(case, kernel, shape, candidates, options.rounds)
                write_text(options.table, json.dumps(table, indent=1, sort_keys=True) + "\n")
    if not asked:
        print(f"no kernel that runs on {device_kind()} has block sizes: tune on a TPU", file=sys.stderr)
        return 1
    return 0


def _asked(case: Case) -> Iterator[tuple[str, str, list[dict[str, int]]]]:
    """Kernel, shape and candidates of all that a case asks for."""
    import jax

    from alm_jax.kernels import tuning

    with tuning.trial({}) as trial:
        jax.eval_shape(_fresh(case), *jax.eval_shape(case.arguments))
    for (kernel, shape), candidates in trial.asked.items():
        yield kernel, shape, candidates


def _fastest(case: Case, kernel: str, shape: str, candidates: list[dict[str, int]], rounds: int) -> dict[str, int]:
    """The candidate of the least median time; the first, the default, unless another gains something."""
    import jax

    from alm_jax.kernels import tuning

    arguments, medians = jax.block_until_ready(case.arguments()), []
    for number, blocks in enumerate(candidates):
        try:
            with tuning.trial({(kernel, shape): blocks}):
                run = jax.jit(_fresh(case)).lower(*arguments).compile()
            jax.block_until_ready(run(*arguments))
        except jax.errors.JaxRuntimeError as error:  # more memory than it was thought to take, for one
            _say(f"  {number + 1}/{len(candidates)} {blocks}: does not run ({str(error).partition(chr(10))[0]})")
            medians.append(float("inf"))
            continue
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
        _say(f"  {number + 1}/{len(candidates)} {blocks}: {1e6 * medians[-1]:.0f} us")
    best = min(range(len(candidates)), key=medians.__getitem__)
    return candidates[best if medians[best] < _GAIN * medians[0] else 0]


def _fresh(case: Case) -> Any:
    """The case as a function that was never traced, since what is traced is kept with its block sizes."""
    return lambda *arguments: case.ours(*arguments)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
