#!/usr/bin/env python
"""Ours against the alternative: time and memory, measured in turn.

    python tools/bench.py cross_entropy
    python tools/bench.py cross_entropy --rounds 9 --json cross_entropy.json
    python tools/bench.py cross_entropy --against cross_entropy.json
    python tools/bench.py train_step

Both sides of a case are compiled and run once, then timed alternately, so that both see the same load of the machine.
A ratio is ours over theirs: medians of the times, and the most memory that the compiler plans for (arguments, results,
temporaries). Prints Markdown. With --against the exit code is 1 where a ratio is over 1.15 times the recorded one.

Each bench is a kernel of `alm_jax/kernels`, as `auto` picks it here, against its reference: attention, the head and its
cross_entropy and window_attention with their gradients, decode_attention, log_mel. Where `auto` takes none that is more
than plain JAX the report says that no kernel was measured. int8_matmul is compared with a kernel that is not quantised.
train_step and generation are LTU's, against the same in PyTorch (`bench_systems.py`; pip install -e ".[torch]" peft).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_cases import BENCHES, Case
from bench_systems import SYSTEMS, System

REGRESSION = 1.15
SIDES = ("ours", "theirs")
_PACKAGES = ("jax", "jaxlib", "numpy")
_THEIRS = ("torch", "transformers", "peft")
_KERNELS = ("tpu_custom_call", "xla.gpu.triton", "cudnn")  # how programs call what is no plain JAX


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of each round and bytes of both sides, and their ratios; whether ours has a kernel in it."""
    import jax

    arguments = jax.block_until_ready(case.arguments())
    lowered = {name: jax.jit(getattr(case, name)).lower(*arguments) for name in SIDES}
    sides = {name: side.compile() for name, side in lowered.items()}
    seconds, _ = in_turn(
        {name: lambda run=run: jax.block_until_ready(run(*arguments)) for name, run in sides.items()}, rounds
    )
    memory = {name: _bytes(run.memory_analysis()) for name, run in sides.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "case": case.name,
        "kernel": any(name in lowered["ours"].as_text() for name in _KERNELS),
        "seconds": seconds,
        "median": medians,
        "bytes": memory,
        "ratios": {"time": _ratio(medians), "memory": _ratio(memory)},
    }


def measure_system(system: System, rounds: int) -> dict[str, Any]:
    """Seconds of each round of both sides and of their first, which compiles, and the ratio of the medians."""
    began = {}
    runs = {}
    for name in SIDES:
        start = time.perf_counter()
        runs[name] = getattr(system, name)()
        began[name] = time.perf_counter() - start
    seconds, first = in_turn(runs, rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "case": system.name,
        "work": system.work,
        "unit": system.unit,
        "set_up": began,
        "first": first,
        "seconds": seconds,
        "median": medians,
        "ratios": {"time": _ratio(medians)},
    }


def in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(seconds of each round, of the first run, which compiles or warms up) of both sides, run alternately."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}, {name: times[0] for name, times in seconds.items()}


def _ratio(of: Mapping[str, float]) -> float:
    return of["ours"] / of["theirs"]


def _bytes(memory: Any) -> int:
    kinds = ("argument", "output", "temp")
    return sum(getattr(memory, f"{kind}_size_in_bytes") for kind in kinds) - memory.alias_size_in_bytes


def machine(packages: Sequence[str] = _PACKAGES) -> dict[str, Any]:
    """What the numbers were measured on."""
    import jax

    device = jax.devices()[0].device_kind
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return {"device": device, "cores": os.cpu_count(), "machine": platform.machine(), "versions": versions}


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    head = (
        f"{result['bench']} on {result['device']} ({result['cores']} CPU cores, {result['machine']}), medians of "
        f"{result['rounds']} rounds; {versions}"
    )
    return "\n".join([head, "", *(_systems if result["bench"] in SYSTEMS else _kernels)(result["cases"])])


def _systems(cases: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| case | ours, s | theirs, s | ratio | ours, a s | theirs, a s | first run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in cases:
        times = [f"{row['median'][name]:.4f}" for name in SIDES]
        rates = [f"{row['work'] / row['median'][name]:.0f} {row['unit']}" for name in SIDES]
        first = " and ".join(f"{row['first'][name]:.1f} s" for name in SIDES)
        ratio = f"{row['ratios']['time']:.2f}"
        lines.append(f"| {' | '.join([row['case'], *times, ratio, *rates, first])} |")
    return lines


def _kernels(cases: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| case | ours, s | theirs, s | ratio | ours, MB | theirs, MB | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in cases:
        times = [f"{row['median'][name]:.4f}" for name in SIDES]
        sizes = [f"{row['bytes'][name] / 1e6:.0f}" for name in SIDES]
        ratios = [f"{row['ratios'][name]:.2f}" for name in ("time", "memory")]
        lines.append(f"| {' | '.join([row['case'], *times, ratios[0], *sizes, ratios[1]])} |")
    if plain := [row["case"] for row in cases if not row["kernel"]]:
        lines += ["", f"Not measured: a Pallas or cuDNN kernel; `auto` takes none here for {'; '.join(plain)}."]
    return lines


def regressions(result: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Ratios that are worse than those recorded, a line each."""
    before = {row["case"]: row["ratios"] for row in recorded["cases"]}
    return [
        f"{row['case']}: {name} ratio {now:.2f}, was {before[row['case']][name]:.2f}"
        for row in result["cases"]
        if row["case"] in before
        for name, now in row["ratios"].items()
        if now > REGRESSION * before[row["case"]][name]
    ]


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=[*BENCHES, *SYSTEMS])
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    parser.add_argument("--against", type=Path, help="measurements to compare the ratios with")
    options = parser.parse_args(argv)
    recorded = json.loads(options.against.read_text(encoding="utf-8")) if options.against else {"cases": []}
    packages = _PACKAGES + (_THEIRS if options.bench in SYSTEMS else ())
    result = {"bench": options.bench, **machine(packages), "rounds": options.rounds, "cases": []}
    for case in (BENCHES | SYSTEMS)[options.bench]():
        print(f"measuring {case.name}", file=sys.stderr, flush=True)
        result["cases"].append((measure_system if isinstance(case, System) else measure)(case, options.rounds))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(report(result))
    worse = regressions(result, recorded)
    print("".join(f"slower or larger than recorded: {line}\n" for line in worse), file=sys.stderr, end="")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
