#!/usr/bin/env python
"""Write what every shipped config comes to as text, so that a change of code shows what it changes of them.

    python tools/config_text.py               write tests/train/config_text/*.txt anew; then read the diff
    python tools/config_text.py --check       exit 1 if one of them differs (the test suite does the same)

A text holds the config flat, a line a value, and the parameters of each stage: path, dtype, shape, logical axes, how
the mesh divides them, and a star before those that train. Of a later stage only the lines that differ are shown.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from alm_jax.core import mesh as meshes
from alm_jax.core import tree
from alm_jax.core.config import flat, load_config_file, shipped_configs
from alm_jax.core.files import write_text
from alm_jax.train.config import Experiment, Stage
from alm_jax.train.weights import StageModel

TEXTS = Path(__file__).parents[1] / "tests" / "train" / "config_text"


def names() -> list[str]:
    """Of all shipped configs, as `alm train` takes them."""
    folder = shipped_configs()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py"))


def path_of(name: str) -> Path:
    """Where a config's text is."""
    return TEXTS / f"{name.replace('/', '_')}.txt"


def tables(experiment: Experiment) -> dict[str, list[str]]:
    """A line a parameter, by stage."""
    return {stage.name: list(_parameters(experiment, stage)) for stage in experiment.stages}


def text_of(experiment: Experiment, stages: dict[str, list[str]]) -> str:
    """The text of a config, given its `tables`."""
    lines = [f"{path} = {value!r}" for path, value in flat(experiment).items()]
    before: list[str] = []
    for name, table in stages.items():
        lines += ["", f"stage {name}", *(_changes(before, table) if before else table)]
        before = table
    return "\n".join(lines) + "\n"


def _parameters(experiment: Experiment, stage: Stage) -> Iterator[str]:
    # One device: how a mesh divides an axis is told by names, whatever its size.
    mesh = meshes.make_mesh(meshes.MeshConfig(), devices=jax.devices()[:1])
    model = StageModel(experiment.stage_model(stage), stage, mesh, experiment.stage_precision())
    axes, specs = tree.logical_axes(model.like), meshes.specs(model.like)
    for path, leaf in model.target.items():
        star = "*" if path in model.trained else " "
        divided = ", ".join("+".join(axis) if isinstance(axis, tuple) else str(axis or "-") for axis in specs[path])
        named = ", ".join(str(axis or "-") for axis in axes[path])
        yield f"{star} {path} {leaf.dtype}{list(leaf.shape)} ({named}) ({divided})"


def _changes(before: list[str], after: list[str]) -> list[str]:
    """Lines that went (-) and that came (+)."""
    found = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    return found or ["the same"]


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a text differs")
    options = parser.parse_args(argv)
    experiments = {name: load_config_file(name).get_config() for name in names()}
    texts = {path_of(name): text_of(config, tables(config)) for name, config in experiments.items()}
    stale = [path for path in TEXTS.glob("*.txt") if path not in texts]
    different = [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    for path in different + stale:
        print(f"{path.name}: {'differs' if options.check else 'removed' if path in stale else 'written'}")
    if options.check:
        return int(bool(different + stale))
    TEXTS.mkdir(parents=True, exist_ok=True)
    for path in different:
        write_text(path, texts[path])
    for path in stale:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
