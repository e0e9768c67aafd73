"""`alm inspect`: the parameters of a run, or the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from alm_jax.cli.parse import parse
from alm_jax.core.display import print_table
from alm_jax.core.errors import CheckpointError, UsageError


@dataclass
class Inspect:
    """List the parameters of a run, or the tensors of a checkpoint or published model, and their totals.

    Of a run: path, shape, dtype, logical axes, and what trains. Of a checkpoint: which layout it has and which parts of
    its system, and what becomes of each tensor: the parameter that it makes, dead (never used), tied, ignored (of
    another model) or unmapped. Totals come by part, with dtypes and the share that trains or is in adapters.

    examples:
      alm inspect runs/tiny
      alm inspect pytorch_model.bin
      alm inspect openai/whisper-base
      alm inspect runs/tiny --stage 0
    """

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """a run's folder; a checkpoint's file or folder in any known format; or a model's name on the hub"""
    stage: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """which stage of a run, counted from 0 (default: the last that has begun)"""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """list every tensor, not one line for those that differ in the layer's number alone"""


def run(args: list[str]) -> None:
    """Print what is in the path that `args` name."""
    options = parse(Inspect, args, "inspect")

    from alm_jax.api import is_run

    if is_run(options.path):
        _inspect_run(Path(options.path), options.stage)
    else:
        _inspect_checkpoint(options.path, options.all)


def _inspect_run(path: Path, index: int | None) -> None:
    from alm_jax.core import tree
    from alm_jax.core.mesh import MeshConfig, make_mesh
    from alm_jax.train.checkpoint import RunFolder
    from alm_jax.train.config import experiment_of
    from alm_jax.train.weights import StageModel

    run = RunFolder.open(path)
    experiment = experiment_of(run.config(), path)
    folders = [run.stage(i, stage.name) for i, stage in enumerate(experiment.stages)]
    if index is None:
        index = max((i for i, folder in enumerate(folders) if folder.begun), default=0)
    if not 0 <= index < len(folders):
        raise UsageError(f"--stage {index}: the run has stages 0 to {len(folders) - 1}")
    stage = experiment.stages[index]
    model = StageModel(experiment.stage_model(stage), stage, make_mesh(MeshConfig()), experiment.stage_precision())
    axes = tree.logical_axes(model.like)
    leaves = [
        Leaf(
            name,
            tuple(leaf.shape),
            leaf.dtype.name,
            ", ".join(map(str, axes[name])),
            name in model.trained,
            name.split(".")[0],
        )
        for name, leaf in model.target.items()
    ]
    for i, folder in enumerate(folders):
        steps = ", ".join(map(str, folder.steps())) or "none"
        best = (
            "" if folder.best() is None else f"; best {folder.best()}, validation loss {folder.validation_loss():.4f}"
        )
        print(f"stage {i} {experiment.stages[i].name}: checkpoints at steps {steps}{best}")
    print(f"parameters of stage {index} {stage.name}:")
    _print_leaves(leaves, "axes")
    _print_totals(leaves, "train")


@dataclass(frozen=True)
class Leaf:
    """One line of a table: an array, what is to be said of it (its axes, what it becomes), and what it is counted
    under."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    remark: str
    trains: bool = False
    part: str = ""
    count: int = 1

    @property
    def size(self) -> int:
        """Values."""
        return prod(self.shape) * self.count

    @property
    def bytes(self) -> int:
        """In memory, at the dtype's width."""
        import jax.numpy as jnp

        return self.size * jnp.dtype(self.dtype).itemsize


def _inspect_checkpoint(name: str, every: bool) -> None:
    from alm_jax.convert.checkpoint import open_checkpoint
    from alm_jax.convert.formats import open_tensors
    from alm_jax.convert.hub import resolve
    from alm_jax.convert.layouts import detect
    from alm_jax.convert.peft import is_adapter

    found = resolve(name)
    file = open_tensors(found.path)
    fates: dict[str, str] = {}
    becomes: dict[str, list[str]] = {}
    whole = ""
    try:
        layout = detect(file.keys(), whole=True)
    except CheckpointError as error:  # nothing is known of the keys; the tensors are listed all the same
        print(f"{file.path}: {error}")
    else:
        opened = open_checkpoint(name)
        print(f"{file.path}: layout {layout}")
        print(_described(opened))
        becomes, fates = _fates(opened)
        whole = type(opened.config).__name__.removesuffix("Config")
    leaves = [
        Leaf(
            key,
            tuple(file.shape(key)),
            file.dtype(key).name,
            fates.get(key, ""),
            trains=any(map(is_adapter, becomes.get(key, ()))),
            part=_part(fates.get(key, ""), becomes.get(key, ()), whole),
        )
        for key in file.keys()
    ]
    _print_leaves(leaves if every else _folded(leaves), "becomes")
    _print_totals(leaves, "in adapters" if any(leaf.trains for leaf in leaves) else "")


def _described(opened: Any) -> str:
    """The parts of a system, and which of them a checkpoint lacks; or the one part that it is."""

    def named(config: Any) -> str:
        return type(config).__name__.removesuffix("Config")

    if not opened.is_system:
        return f"model: {named(opened.config)}"
    held = {path.split(".")[0] for paths in _fates(opened)[0].values() for path in paths if not path.endswith("lora_a")}
    full = {path.split(".")[0] for paths in _fates(opened)[0].values() for path in paths if path.endswith("embedding")}
    parts = []
    for name in ("vision", "encoder", "aligner", "decoder"):
        config = getattr(opened.config, name)
        if config is None:
            continue
        lacking = name not in held or (name == "decoder" and name not in full)
        parts.append(f"{name} {named(config)}" + (" (elsewhere, but for adapters)" if lacking else ""))
    return f"system: {', '.join(parts)}"


def _fates(opened: Any) -> tuple[dict[str, list[str]], dict[str, str]]:
    """By key: the parameters that it makes, and what is said of it."""
    from alm_jax.convert.load import contents

    table = opened.table
    found = contents(opened.file.keys(), table)
    paths: dict[str, list[str]] = {}
    for rule in table.rules:
        for key in rule.names:
            paths.setdefault(key, []).extend([rule.path] if rule.path else [])
    becomes = {raw: paths[key] for key, raw in found.mapped.items()}
    fates = {raw: _braced(names) for raw, names in becomes.items()}
    for fate in ("tied", "dead", "ignored", "unmapped"):
        fates |= dict.fromkeys(getattr(found, fate).values(), fate)
    return becomes, fates | dict.fromkeys(found.twice, "twice")


def _part(fate: str, paths: Sequence[str], whole: str) -> str:
    """What a tensor is counted under: its fate, the part of the system, or the model."""
    if not paths:
        return fate or "tensors"
    return paths[0].split(".")[0] if whole == "Alm" else whole


def _braced(paths: list[str]) -> str:
    """`attn.{q,k,v}.kernel` for the parameters that share a packed tensor."""
    columns = [dict.fromkeys(column) for column in zip(*(path.split(".") for path in paths))]
    return ".".join(next(iter(names)) if len(names) == 1 else f"{{{','.join(names)}}}" for names in columns)


def _folded(leaves: Iterable[Leaf]) -> list[Leaf]:
    """Tensors of all layers as one line, where nothing but the layer's number differs."""
    from alm_jax.convert.load import fold

    groups: dict[tuple[Any, ...], list[Leaf]] = {}
    for leaf in leaves:
        pattern = re.sub(r"(?<=[._/])\d+(?=[./])", "#", leaf.name, count=1)
        groups.setdefault((pattern, leaf.shape, leaf.dtype, leaf.remark), []).append(leaf)
    return [replace(group[0], name=fold(leaf.name for leaf in group)[0], count=len(group)) for group in groups.values()]


def _print_leaves(leaves: Iterable[Leaf], remark: str) -> None:
    table = Table("parameter" if remark == "axes" else "tensor", "shape", "dtype", remark)
    trains = remark == "axes"
    if trains:
        table.add_column("trains")
    table.add_column("values", justify="right")
    for leaf in leaves:
        cells = [leaf.name, " x ".join(map(str, leaf.shape)) or "scalar", leaf.dtype, leaf.remark]
        table.add_row(*map(escape, cells), *(["yes" if leaf.trains else ""] if trains else []), f"{leaf.size:,}")
    print_table(table)


def _print_totals(leaves: Sequence[Leaf], trains: str = "") -> None:
    """Sizes by part and in all, with the share that trains (or is in adapters) and the dtypes."""

    def line(name: str, leaves: Sequence[Leaf]) -> str:
        size = sum(leaf.size for leaf in leaves)
        trained = sum(leaf.size for leaf in leaves if leaf.trains)
        share = f", {trained:,} {trains} ({trained / size:.2%})" if trains and size else ""
        dtypes = ", ".join(dict.fromkeys(leaf.dtype for leaf in leaves))
        return f"{name}: {size:,} values, {sum(leaf.bytes for leaf in leaves) / 1e6:,.1f} MB{share}, {dtypes}"

    parts = dict.fromkeys(leaf.part for leaf in leaves)
    for part in parts:
        print(line(part, [leaf for leaf in leaves if leaf.part == part]))
    if len(parts) > 1:
        print(line("total", leaves))
