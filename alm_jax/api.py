"""The Python API: a model to ask, from a run or a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from alm_jax.convert.formats import open_tensors
from alm_jax.convert.hub import resolve
from alm_jax.convert.layouts import detect
from alm_jax.core.config import apply_overrides, did_you_mean
from alm_jax.core.errors import CheckpointError, UsageError
from alm_jax.core.precision import Precision
from alm_jax.data.tokenizer import load_tokenizer
from alm_jax.infer.checkpoint import load_checkpoint
from alm_jax.infer.clap import LAYOUTS_OF_CLAP, LoadedClap, published_clap
from alm_jax.infer.loaded import LoadedModel, Spec
from alm_jax.infer.memory import Bank, memory_of
from alm_jax.models.clap_training import clap_arrays, clap_config, is_clap
from alm_jax.models.santa import SantaConfig
from alm_jax.train.checkpoint import RunFolder
from alm_jax.train.config import experiment_of
from alm_jax.train.run import Run, load_run

Name = str | PathLike[str]


def load(
    source: Name,
    *,
    which: Literal["last", "best"] = "last",
    base: Name | Sequence[Name] | None = None,
    tokenizer: Name | None = None,
    memory: Name | None = None,
    santa: Mapping[str, Any] | None = None,
    dtype: Any = None,
) -> LoadedModel:
    """A model that answers questions about sounds.

    Args:
        source: a run's folder; or a checkpoint of a whole system: what `alm convert RUN` wrote, or one in the layout
            that LTU or LTU-AS was published in (file, folder, or name on the hub).
        which: of a run, the latest checkpoint or the one with the lowest validation loss.
        base: checkpoints of what a published checkpoint lacks: for `ltu_ori_paper.bin` the Vicuna that it was trained
            over. LTU-AS listens through `openai/whisper-large`, unless a Whisper is given here.
        tokenizer: of a checkpoint: file, folder or name; by default what lies beside it or beside the base's LLaMA.
        memory: a bank of texts (`alm memory build`) that clips are drawn towards; of a model that hears through a CLAP.
        santa: how, where it is not as the model's own config says: `{"share": 0.5}` (`models.santa.SantaConfig`).
        dtype: `float32` or `bfloat16`, of weights that did not train in a run (all of a checkpoint) and of activations;
            by default float32 on CPU, bfloat16 on accelerators, where a checkpoint's own tensors are held as they are.

    Raises:
        CheckpointError: not found, damaged, or in want of a piece; the message says which argument gives it.
        UsageError: arguments that `source` has no use for.
    """
    if santa and memory is None:
        raise UsageError("santa says how a memory is used, and none is given: give one as memory (alm ask: --memory)")
    bank = None if memory is None else Bank.open(fspath(memory))
    model = _load(source, which, base, tokenizer, dtype)
    if bank is None:
        return model
    config = apply_overrides(model.config.santa or SantaConfig(), dict(santa or {}))
    return model.with_memory(memory_of(bank, model, config, fspath(memory)), config)


def _load(source: Name, which: str, base: Name | Sequence[Name] | None, tokenizer: Name | None, dtype: Any):
    """`load` without memory."""
    if which not in ("last", "best"):
        raise UsageError(f"which is {which!r}; expected 'last' or 'best'")
    bases = [] if base is None else [base] if isinstance(base, str | PathLike) else list(base)
    precision = _precision(dtype)
    if is_run(source):
        if bases or tokenizer is not None:
            raise UsageError(f"{source} is a run, which has its own base and tokenizer: leave those arguments out")
        return loaded_run(load_run(fspath(source), which, precision=precision), dtype)
    check_source(fspath(source))
    if which == "best":
        raise UsageError(f"{source} is no run: only a run has a best checkpoint")
    given = None if tokenizer is None else fspath(tokenizer)
    return load_checkpoint(fspath(source), base=[fspath(name) for name in bases], tokenizer=given, precision=precision)


def clap_by_itself(source: Name) -> bool:
    """Whether a run or a checkpoint is a CLAP, which `load_clap` takes, and no model that listens through one.

    Raises:
        CheckpointError: it cannot be found or read.
    """
    if is_run(source):
        folder = RunFolder.open(Path(fspath(source)).expanduser())
        return is_clap(experiment_of(folder.config(), folder.path).model)
    check_source(fspath(source))
    return detect(open_tensors(resolve(fspath(source)).path).keys(), whole=True) in LAYOUTS_OF_CLAP


def loaded_run(run: Run, dtype: Any = None) -> LoadedModel:
    """The model of a run that has been read; `dtype` of activations."""
    folders = [run.path / name for name in ("aligner_tokenizer", "encoder_tokenizer")]
    readers = [load_tokenizer(folder) if folder.is_dir() else None for folder in folders]
    return LoadedModel(spec_of(run), run.arrays, load_tokenizer(run.path / "tokenizer"), dtype, *readers)


def spec_of(run: Run) -> Spec:
    """A run's system beside its weights; it answers greedily unless asked otherwise."""
    return Spec(run.model, run.experiment.layout, run.experiment.template)


def is_run(path: Name) -> bool:
    """Whether a path is the folder of a run, one that has trained nothing yet included."""
    folder = Path(path).expanduser()
    if (folder / "stages").is_dir():
        return True
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "experiment" in content


def check_source(source: str) -> None:
    """Raise CheckpointError where a path is misspelt: it is not looked for on the hub."""
    path = Path(source).expanduser()
    if not path.exists() and path.parent.is_dir() and path.parent != Path():
        guess = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
        raise CheckpointError(f"{source}: no such run or checkpoint{guess}")


def _precision(dtype: Any) -> Precision | None:
    if dtype is None:
        return None
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = None
    if name not in ("float32", "bfloat16"):
        raise UsageError(f"dtype is {dtype!r}; expected 'float32' or 'bfloat16'")
    return Precision(name, name)


def load_clap(
    source: Name, *, which: Literal["last", "best"] = "last", tokenizer: Name | None = None, dtype: Any = None
) -> LoadedClap:
    """A CLAP, which embeds clips and texts in one space.

    Args:
        source: a run that trained one (`configs/clap`); or MS-CLAP 2023 or a LAION CLAP as published (file, folder, or
            name on the hub).
        which, dtype: see `load`. tokenizer: of a checkpoint's text tower; by default what lies beside it.

    Raises:
        CheckpointError: not found, damaged, or another model. UsageError: arguments that `source` has no use for.
    """
    precision = _precision(dtype)
    if is_run(source):
        if tokenizer is not None:
            raise UsageError(f"{source} is a run, which has its own tokenizer: leave that argument out")
        run = load_run(fspath(source), which, precision=precision)
        if not is_clap(run.model):
            raise CheckpointError(f"{source} is a run of another model than CLAP: load it by alm_jax.load")
        words, longest = load_tokenizer(run.path / "aligner_tokenizer"), run.experiment.stage_layout(run.stage)
        arrays = clap_arrays(run.arrays)
        return LoadedClap(clap_config(run.model), arrays, words, longest.aligner_text_tokens, dtype)
    check_source(fspath(source))
    if which != "last":
        raise UsageError(f"{source} is no run: only a run has a best checkpoint")
    return published_clap(fspath(source), None if tokenizer is None else fspath(tokenizer), dtype)
