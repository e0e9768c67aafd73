#!/usr/bin/env python
"""Plan every config that names topologies, and write the tables of docs/plan.md.

    python tools/plan_configs.py --out plans
    python tools/plan_configs.py --out plans --only ltu/vicuna_7b --only apt/vicuna_7b

runs `alm plan CONFIG --topology T --json` for each, some minutes a stage, and keeps what it prints in a file of the
folder. What is there is not planned again unless its config has changed since, so that the same command goes on where
one was stopped. The exit code is 1 if a step does not fit, or leaves less than a tenth of the memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from config_text import names

from alm_jax.core.config import load_config_file
from alm_jax.core.files import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "plan.md"
BEGIN, END = "<!-- the tables are written by tools/plan_configs.py -->\n", "<!-- end of the tables -->"
LEFT_FREE = 0.1
Planned = Mapping[str, Any]  # what `alm plan --json` prints


def wanted(only: list[str]) -> Iterator[tuple[str, str, str]]:
    """(config, topology, digest of the experiment) of each that names one."""
    for name in only or names():
        experiment = load_config_file(name).get_config()
        digest = hashlib.sha256(repr(experiment).encode()).hexdigest()
        yield from ((name, topology, digest) for topology in experiment.topologies)


def planned(config: str, topology: str, digest: str, out: Path) -> Planned | None:
    """From the folder, or made and kept there; None where `alm plan` failed, which it told on stderr."""
    path = out / f"{config.replace('/', '.')}@{topology.replace(':', '-')}.json"
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8")))["experiment"] == digest:
        return found
    print(f"planning {config} on {topology}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "alm_jax", "plan", config, "--topology", topology, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        return None
    found = {"experiment": digest, **json.loads(done.stdout)}
    write_text(path, json.dumps(found, indent=1) + "\n")
    return found


def table(topology: str, plans: Mapping[str, Planned]) -> str:
    """Each distinct step, a line."""
    lines = [
        "| Config | Stage | Rows x positions | holds | left | step at least | by | MFU at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for config, plan in plans.items():
        for stage in plan["stages"]:
            if stage["same_as"] is None:
                same = [each["stage"] for each in plan["stages"] if each["same_as"] == stage["stage"]]
                cells = [f"`{config}`", ", ".join([stage["stage"], *same]), *_cells(stage)]
                lines.append(f"| {' | '.join(cells)} |")
    how = (
        "counted from shapes" if any(each["estimated"] for p in plans.values() for each in p["stages"]) else "compiled"
    )
    return "\n".join([f"`{topology}`, {how}, a device:", "", *lines]) + "\n"


def _cells(stage: Mapping[str, Any]) -> list[str]:
    shape = f"{stage['rows']} x {stage['length']}"
    if stage["micro_batch"] < stage["rows"]:
        shape += f", {stage['micro_batch']} at a time"
    holds, left = f"{stage['total'] / 2**30:.1f} GiB", f"{stage['headroom']:.0%}"
    if (bounds := stage["roofline"]) is None:
        return [shape, holds, left, "", "", ""]
    by = max(("compute", "memory", "network"), key=bounds.__getitem__)
    return [shape, holds, left, f"{bounds['seconds'] * 1e3:.0f} ms", by, f"{bounds['mfu']:.0%}"]


def page(text: str, plans: Mapping[str, Mapping[str, Planned]]) -> str:
    """The page with its tables made anew."""
    head, _, rest = text.partition(BEGIN)
    tables = "\n".join(table(*each) for each in plans.items())
    return f"{head}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what is planned")
    parser.add_argument("--only", action="append", metavar="CONFIG", help="this config alone; the page stays as it is")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    plans: dict[str, dict[str, Planned]] = {}
    bad = []
    for config, topology, digest in wanted(options.only or []):
        found = planned(config, topology, digest, options.out)
        if found is None:
            bad.append(f"{config} on {topology} could not be planned")
            continue
        plans.setdefault(topology, {})[config] = found
        tight = [each["stage"] for each in found["stages"] if not each["fits"] or each["headroom"] < LEFT_FREE]
        bad += [f"{config} on {topology}: stage {stage} leaves less than a tenth" for stage in tight]
    for topology, each in plans.items():
        print(table(topology, each))
    print("".join(f"{line}\n" for line in bad), file=sys.stderr, end="")
    if not options.only and not bad:
        write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), plans))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
