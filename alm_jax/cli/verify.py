"""`alm verify`: our forward pass against `transformers` on the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from alm_jax.cli.parse import parse
from alm_jax.core.display import print_table, progress
from alm_jax.core.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from alm_jax.cli.convert_source import Weights


@dataclass
class Verify:
    """Compare our forward pass with that of transformers on the same weights, layer by layer.

    Random inputs go through both in float32, which takes 4 bytes a parameter. An error is max|a - b| / max(1, max|b|)
    of the stream after a layer (with the final norm) or of an output; one above the tolerance is exit code 1. Of a
    system the encoder and the decoder are compared, LoRA included; what transformers does not have is named.

    Where PyTorch is not installed, or for models that transformers does not have, give a recording: --record writes one
    where PyTorch is; docs/weights.md says what another program has to write.

    examples:
      alm verify HuggingFaceTB/SmolLM2-135M-Instruct
      alm verify runs/mine
      alm verify ltu_ori_paper.bin --base vicuna_ltu
      alm verify openai/whisper-base --record whisper.npz
      alm verify out/whisper --recording whisper.npz
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """a run's folder; a checkpoint's file or folder; or a model's name on the hub"""
    base: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    """a checkpoint that SRC was trained over, for what SRC lacks; once for each"""
    tolerance: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """largest error (default: 1e-4)"""
    record: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """also write inputs and what transformers made of them"""
    recording: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """compare with these instead of transformers"""


def run(args: list[str]) -> int:
    """Print the errors of each layer; 1 if one is too large."""
    options = parse(Verify, args, "verify")
    if options.record and options.recording:
        raise UsageError("--record writes what transformers computes, --recording takes its place: leave one out")

    from alm_jax.api import is_run
    from alm_jax.cli.convert_source import from_checkpoint, from_run
    from alm_jax.convert.reference import TOLERANCE, in_transformers, read_recordings, save_recordings

    weights = from_run(options.src) if is_run(options.src) else from_checkpoint(options.src, options.base, None, False)
    parts = parts_of(weights)
    given = read_recordings(options.recording) if options.recording else {}
    if options.recording and not given.keys() & parts.keys():
        raise CheckpointError(
            f"{options.recording} holds {_named(given)}; {weights.name} has {_named(parts)}: nothing to compare"
        )
    chosen = {n: part for n, part in parts.items() if (n in given if given else in_transformers(part.config))}
    for name, part in parts.items():
        if name not in chosen:
            print(f"not compared: {name or 'the model'} ({_kind(part)})")
    if not chosen:
        raise CheckpointError(
            f"transformers has no counterpart of {weights.name}; give a --recording of the code that it comes from"
        )
    if lacking := [name or "the model" for name, part in chosen.items() if len(part.adapters) == len(part.arrays)]:
        raise CheckpointError(f"{weights.name} holds adapters alone of {', '.join(lacking)}: give the model as --base")
    recordings = {name: given[name] if given else _reference(part) for name, part in chosen.items()}
    if options.record:
        save_recordings(options.record, recordings)
    return _report(chosen, recordings, TOLERANCE if options.tolerance is None else options.tolerance)


def parts_of(weights: Weights) -> dict[str, Weights]:
    """A system's parts by name, or the model under ""."""
    if not weights.is_system:
        return {"": weights}
    held = dict.fromkeys(path.split(".")[0] for path in weights.arrays)
    return {name: weights.part(name) for name in ("encoder", "aligner", "decoder") if name in held}


def _reference(part: Weights) -> Any:
    from alm_jax.cli.convert_source import merged
    from alm_jax.convert.checkpoint import heads_untold
    from alm_jax.convert.reference import reference

    if untold := heads_untold(part.config, part.folder):
        raise CheckpointError(f"{part.name}: {'; '.join(untold)}")
    whole = merged(part, "float32") if part.adapters else part
    return reference(whole.config, whole.arrays)


def _report(parts: Mapping[str, Weights], recordings: Mapping[str, Any], tolerance: float) -> int:
    """Print a table and the largest error; 1 if it is too large or no number."""
    table, largest, missed = Table("part", "layer or output", "error"), (-1.0, ""), 0
    for name, layer, error in _errors(parts, recordings):
        good = error <= tolerance
        missed += not good
        where = f"{name} {layer}".strip()
        largest = max(largest, (error if error == error else float("inf"), where))
        table.add_row(*map(escape, (name, layer, f"{error:.2e}" + ("" if good else "  MISS"))))
    print_table(table)
    print(f"largest error {largest[0]:.2e} at {largest[1]}; {missed or 'none'} above {tolerance:g}")
    return 1 if missed else 0


def _errors(parts: Mapping[str, Weights], recordings: Mapping[str, Any]) -> Iterable[tuple[str, str, float]]:
    import jax.numpy as jnp
    import numpy as np

    from alm_jax.convert.reference import compare

    for name, part in parts.items():
        recording = recordings[name]
        # The config says that adapters are there, and how they are scaled.
        config = replace(part.config, lora=part.lora) if part.adapters else part.config
        arrays = {}
        for path, leaf in part.arrays.items():
            dtype = jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
            arrays[path] = jnp.asarray(np.asarray(leaf), dtype)
        total = sum(map(len, recording.streams.values())) + len(recording.outputs)
        with progress(f"layers of {name or 'the model'}") as shown:
            for done, (layer, error) in enumerate(compare(config, arrays, recording), 1):
                shown(done, total)
                yield name, layer, error


def _kind(part: Weights) -> str:
    return type(part.config).__name__.removesuffix("Config")


def _named(parts: Iterable[str]) -> str:
    return ", ".join(name or "one model" for name in parts) or "nothing"
