#!/usr/bin/env python
"""Ours against the alternative: time and memory, measured in turn.

    python tools/bench.py train_step
    python tools/bench.py cross_entropy --rounds 9 --json cross_entropy.json
    python tools/bench.py cross_entropy --record
    python tools/bench.py cross_entropy --check

Both sides of a case are set up and run once, then timed alternately, so that both see the same load of the machine. A
ratio is ours over theirs: medians of the times, and the most memory that the compiler plans for (arguments, results,
temporaries) or PyTorch had. Prints Markdown.

--record keeps the measurements in tools/bench_results, a folder for each device; --check compares the ratios with
those kept for this device, --against with those of a file: the exit code is 1 where one is over 1.15 times the recorded
one, and 2 where there is nothing to compare with.

Systems, against PyTorch (pip install -e ".[test]" brings all that they need; `bench_systems.py`, `bench_parts.py`):
train_step and generation of LTU, front_end (kaldi-native-fbank), host (what a step costs beside its arithmetic),
checkpoint, and compile, whose other side is the same step with its layers unrolled. Where the device's peak is
published train_step has the share of it that both reach (MFU).

Kernels of `alm_jax/kernels`, as `auto` picks them here, against their reference (`bench_cases.py`): attention, the
head and its cross_entropy and window_attention with their gradients, decode_attention, log_mel. Where `auto` takes none
that is more than plain JAX the report says that no kernel was measured. int8_matmul is compared with a kernel that is
not quantised.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import bench_parts
import bench_systems
from bench_cases import BENCHES, Case
from bench_systems import System, bytes_of

from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import AlmError, UsageError

REGRESSION = 1.15
RECORDS = Path(__file__).parent / "bench_results"
SYSTEMS: dict[str, Callable[[], Iterator[System]]] = bench_systems.SYSTEMS | bench_parts.SYSTEMS
SIDES = ("ours", "theirs")
_PACKAGES = ("jax", "jaxlib", "numpy")
_THEIRS = {
    "checkpoint": ("orbax-checkpoint", "torch"),
    "front_end": ("kaldi-native-fbank",),
    **dict.fromkeys(("generation", "host", "train_step"), ("torch", "transformers", "peft")),
}
_KERNELS = ("tpu_custom_call", "xla.gpu.triton", "cudnn")  # how programs call what is no plain JAX


def measure(case: Case, rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds of each round and bytes of both sides, and their ratios; whether ours has a kernel in it."""
    import jax

    arguments = jax.block_until_ready(case.arguments())
    lowered = {name: jax.jit(getattr(case, name)).lower(*arguments) for name in SIDES}
    sides = {name: side.compile() for name, side in lowered.items()}

    def run(side: str) -> None:
        jax.block_until_ready(sides[side](*arguments))

    timed = in_turn({name: lambda name=name: run(name) for name in SIDES}, rounds)
    row = _row(case.name, {name: [parts[""] for parts in runs] for name, runs in timed.items()})
    row["kernel"] = any(name in lowered["ours"].as_text() for name in _KERNELS)
    yield _with_bytes(row, {name: bytes_of(side.memory_analysis()) for name, side in sides.items()})


def measure_system(system: System, rounds: int) -> Iterator[dict[str, Any]]:
    """As `measure`, a row for each part of the work; bytes where they can be told of a side."""
    sides = {name: getattr(system, name)() for name in SIDES}
    timed = in_turn({name: side.run for name, side in sides.items()}, rounds)
    sizes = {name: side.bytes() for name, side in sides.items()}
    told = {"work": system.work, "unit": system.unit, "note": system.note, "flops": sides["ours"].flops()}
    for part in timed["ours"][0]:
        title = f"{system.name}: {part}" if part else system.name
        row = _row(title, {name: [parts[part] for parts in runs] for name, runs in timed.items()})
        yield _with_bytes(row | told, sizes)


def in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of the parts of each run (`""`: all of it) of both sides, alternately; the first compiles or warms up."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            parts = run()
            seconds[name].append(parts or {"": time.perf_counter() - start})
    return seconds


def _row(case: str, timed: Mapping[str, list[float]]) -> dict[str, Any]:
    seconds = {name: times[1:] for name, times in timed.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = {name: times[0] for name, times in timed.items()}
    ratios = {"time": medians["ours"] / medians["theirs"]}
    return {"case": case, "first": first, "seconds": seconds, "median": medians, "ratios": ratios}


def _with_bytes(row: dict[str, Any], sizes: Mapping[str, int | None]) -> dict[str, Any]:
    row["bytes"] = dict(sizes)
    if None not in sizes.values():
        row["ratios"]["memory"] = sizes["ours"] / sizes["theirs"]
    return row


def machine(bench: str) -> dict[str, Any]:
    """What a bench is measured on, and its device's peak in FLOP/s where that is published.

    Raises:
        UsageError: a package of the other side is missing.
    """
    import jax

    from alm_jax.train.chips import peak_of

    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *_THEIRS.get(bench, ())):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise UsageError(f"{bench} needs {name}, which is not installed: pip install -e '.[test]'") from None
    device = jax.devices()[0].device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    on = {"device": device, "peak": peak_of(device), "cores": cores, "machine": platform.machine()}
    return on | {"versions": versions}


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    head = (
        f"{result['bench']} on {result['device']} ({result['cores']} CPU cores, {result['machine']}), medians of "
        f"{result['rounds']} rounds; {versions}"
    )
    rows, peak = result["cases"], result["peak"]
    columns = [("case", lambda row: [row["case"]]), *_COLUMNS]
    if peak:
        columns.append(("MFU, ours | theirs", lambda row: _mfu(row, peak)))
    shown = [(title, cells) for title, cells in columns if any(cells(row) for row in rows)]
    blank = lambda title: ["–"] * (title.count("|") + 1)
    lines = [" | ".join(title for title, _ in shown)]
    lines.append("|".join("---" for _ in lines[0].split("|")))
    lines += [" | ".join(cell for title, cells in shown for cell in cells(row) or blank(title)) for row in rows]
    table = [f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines]
    return "\n".join([head, "", *table, *(f"\n{note}" for note in _notes(result))])


def _digits(number: float) -> str:
    """At least three of them."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def _seconds(row: dict[str, Any]) -> list[str]:
    return [_digits(number) for number in (*(row["median"][name] for name in SIDES), row["ratios"]["time"])]


def _rates(row: dict[str, Any]) -> list[str]:
    if not row.get("unit"):
        return []
    return [f"{_digits(row['work'] / row['median'][name])} {row['unit']}" for name in SIDES]


def _sizes(row: dict[str, Any]) -> list[str]:
    sizes = [row["bytes"][name] for name in SIDES]
    ratio = _digits(row["ratios"]["memory"]) if "memory" in row["ratios"] else "–"
    return [*("–" if size is None else f"{size / 1e6:.0f}" for size in sizes), ratio] if any(sizes) else []


def _mfu(row: dict[str, Any], peak: float) -> list[str]:
    return [f"{row['flops'] / row['median'][name] / peak:.0%}" for name in SIDES] if row.get("flops") else []


_COLUMNS: list[tuple[str, Callable[[dict[str, Any]], list[str]]]] = [
    ("ours, s | theirs, s | ratio", _seconds),
    ("ours, a s | theirs, a s", _rates),
    ("ours, MB | theirs, MB | ratio", _sizes),
]


def _notes(result: dict[str, Any]) -> Iterator[str]:
    """What a reader has to know beside the table: what is not in it first of all."""
    rows = result["cases"]
    yield from dict.fromkeys(row["note"] for row in rows if row.get("note"))
    if plain := [row["case"] for row in rows if not row.get("kernel", True)]:
        yield f"Not measured: a Pallas or cuDNN kernel; `auto` takes none here for {'; '.join(plain)}."
    if any(row["bytes"]["ours"] and not row["bytes"]["theirs"] for row in rows):
        yield f"Not measured: PyTorch's memory, which it does not tell on {result['device']}."
    if any(row.get("flops") for row in rows):
        first = {name: ", ".join(f"{row['first'][name]:.1f}" for row in rows) for name in SIDES}
        yield f"First runs, which compile, in seconds: ours {first['ours']}; theirs {first['theirs']}."
        if not result["peak"]:
            yield f"Not measured: MFU, since no peak of {result['device']} is known."


def place(result: dict[str, Any]) -> str:
    """The machine, so far as ratios depend on it."""
    device = result["device"]
    return f"{device} ({result['machine']}, {result['cores']} cores)" if device == "cpu" else device


def record_file(result: dict[str, Any]) -> Path:
    """Where the record of a bench on a machine is kept."""
    folder = re.sub(r"[^a-z0-9]+", "_", place(result).lower()).strip("_")
    return RECORDS / folder / f"{result['bench']}.json"


def read_record(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """
    Raises:
        UsageError: it cannot be read, or is of another bench or machine.
    """
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        found = recorded["bench"], place(recorded)
    except FileNotFoundError:
        others = ", ".join(sorted(other.parent.name for other in RECORDS.glob(f"*/{path.name}")))
        others = f" (there are some of {others})" if others else ""
        raise UsageError(f"no record {path}{others}: measure {result['bench']} with --record first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no record of a bench: {error!r}") from error
    if found != (here := (result["bench"], place(result))):
        there, here = " on ".join(found), " on ".join(here)
        raise UsageError(f"{path} is a record of {there}, this is {here}: their ratios are not compared")
    return recorded


def regressions(result: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Ratios that are worse than those recorded, and recorded ones that were not measured, a line each."""
    now = {row["case"]: row["ratios"] for row in result["cases"]}
    lines = []
    for row in recorded["cases"]:
        for name, before in row["ratios"].items():
            if (found := now.get(row["case"], {}).get(name)) is None:
                lines.append(f"{row['case']}: {name} ratio was {_digits(before)}, and was not measured")
            elif found > REGRESSION * before:
                lines.append(f"{row['case']}: {name} ratio {_digits(found)}, was {_digits(before)}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", help=f"one of {', '.join(BENCHES | SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the measurements")
    records = parser.add_mutually_exclusive_group()
    records.add_argument("--record", action="store_true", help="keep the measurements as the record of this device")
    records.add_argument("--check", action="store_true", help="compare the ratios with the record of this device")
    records.add_argument("--against", type=Path, metavar="FILE", help="compare the ratios with measurements in a file")
    options = parser.parse_args(argv)
    try:
        return _run(options)
    except AlmError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave PyTorch some of the device's memory
    benches = BENCHES | SYSTEMS
    if options.bench not in benches:
        guess = did_you_mean(options.bench, benches) or ","
        raise UsageError(f"no bench is called {options.bench}{guess} expected one of {', '.join(benches)}")
    if options.rounds < 1:
        raise UsageError(f"--rounds {options.rounds}: expected 1 or more")
    if options.json and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json {options.json}: there is no folder {options.json.parent}")
    result = {"bench": options.bench, **machine(options.bench), "rounds": options.rounds, "cases": []}
    known = record_file(result) if options.check else options.against
    recorded = read_record(known, result) if known else {"cases": []}
    for case in benches[options.bench]():
        print(f"measuring {case.name}", file=sys.stderr, flush=True)
        for row in (measure_system if isinstance(case, System) else measure)(case, options.rounds):
            result["cases"].append(row)
            print(f"ratios of {row['case']}: {row['ratios']}", file=sys.stderr, flush=True)
    for path in filter(None, (options.json, record_file(result) if options.record else None)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(report(result))
    worse = regressions(result, recorded)
    print("".join(f"worse than recorded: {line}\n" for line in worse), file=sys.stderr, end="")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
