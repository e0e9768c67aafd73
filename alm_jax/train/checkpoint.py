"""Run folders and checkpoints; the only file that touches Orbax.

    RUN/config.json                        the experiment and the folder's format number
    RUN/stages/<i>_<name>/sources.json     where pretrained weights came from, and which leaves are carried
    RUN/stages/<i>_<name>/carried/         leaves that are frozen in this stage and are in no pretrained source
    RUN/stages/<i>_<name>/checkpoints/<step>/   `TrainState` alone, in two items: weights and optimizer

A checkpoint counts only once it is whole: Orbax writes under another name and renames.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax.core.errors import AlmError, CheckpointError
from alm_jax.core.files import new_file
from alm_jax.core.tree import Arrays
from alm_jax.train.state import TrainState

RUN_FORMAT = 1
_METRIC = "validation_loss"
# In the folder of a run.
_MADE = ("config.json", "metrics.jsonl", "stages", "tensorboard", "*tokenizer", "leaks-*.jsonl")

Wanted = Mapping[str, jax.ShapeDtypeStruct]
"""`{path: shape, dtype and sharding}` of arrays to load."""


@dataclass(frozen=True)
class Source:
    """A pretrained source that a stage drew weights from.

    Attributes:
        name: as the config names it. revision: of the hub, a package version, or empty.
        sha256: of each file read, by file name. patterns: parameter paths that it filled.
    """

    name: str
    revision: str
    sha256: dict[str, str]
    patterns: tuple[str, ...]


class RunFolder:
    """A folder that holds everything a run made. `create` or `open` it."""

    def __init__(self, path: Path):
        self.path = path.expanduser().absolute()  # Orbax refuses relative paths

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """Begin a run in a folder; `config` is what `config` gives back (plain JSON values)."""
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            _write_json(path / "config.json", {"format": RUN_FORMAT, **config})
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """
        Raises:
            CheckpointError: the folder is no run, or one of a newer format.
        """
        folder = cls(path)
        folder.config()
        return folder

    def config(self) -> dict[str, Any]:
        """What `create` was given."""
        file = self.path / "config.json"
        if not file.is_file():
            raise CheckpointError(
                f"{self.path} is no run folder: it holds no config.json; give the --out of a training"
            )
        content = _read_json(file)
        found = content.pop("format", None)
        if not isinstance(found, int):
            raise CheckpointError(f"{file} has no format number: it is no config of a run")
        if found > RUN_FORMAT:
            raise CheckpointError(
                f"{self.path} has run format {found}, this version of alm_jax reads up to {RUN_FORMAT}: upgrade alm_jax"
            )
        return content

    @property
    def has_checkpoint(self) -> bool:
        """Whether any of its stages has one that is whole."""
        return any(StageFolder(path).steps() for path in self.path.glob("stages/*"))

    def clear(self) -> None:
        """Remove what a run made before its first checkpoint, but for its log."""
        with writing(self.path):
            if jax.process_index() == 0:
                for path in (path for pattern in _MADE for path in self.path.glob(pattern)):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def stage(self, index: int, name: str) -> StageFolder:
        """The folder of a stage, whether it has begun or not."""
        return StageFolder(self.path / "stages" / f"{index}_{name}")


class StageFolder:
    """What one stage keeps beside its checkpoints: its sources and the leaves that it carries along."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def begun(self) -> bool:
        """Whether `begin` was finished."""
        return (self.path / "sources.json").is_file()

    def begin(self, carried: Arrays, sources: Sequence[Source]) -> None:
        """Save once, before the first step, what later checkpoints need beside the pretrained sources."""
        from orbax.checkpoint import v1 as ocp

        with writing(self.path), _quiet_orbax():
            self.path.mkdir(parents=True, exist_ok=True)
            if carried:
                ocp.save(self.path / "carried", carried, overwrite=True)
            record = {"sources": [asdict(source) for source in sources], "carried": sorted(carried)}
            _write_json(self.path / "sources.json", record)

    def sources(self) -> list[Source]:
        """The sources given to `begin`."""
        records = _read_json(self.path / "sources.json")["sources"]
        return [Source(**{**record, "patterns": tuple(record["patterns"])}) for record in records]

    def carried(self, wanted: Wanted | None = None) -> Arrays:
        """The carried leaves, all on the default device or those of `wanted` as it wants them."""
        if not self.carried_names():
            return {}
        return _load_flat(self.path / "carried", None, wanted)

    def carried_names(self) -> list[str]:
        """Paths of the carried leaves."""
        return _read_json(self.path / "sources.json")["carried"]

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending."""
        from orbax.checkpoint import v1 as ocp

        root = self.path / "checkpoints"
        found = [entry for entry in root.iterdir() if entry.name.isdigit()] if root.is_dir() else []
        return sorted(int(entry.name) for entry in found if ocp.is_orbax_checkpoint(entry))

    def best(self) -> int | None:
        """The step whose checkpoint has the lowest validation loss, None if none was validated."""
        losses = {step: self._validation_loss(step) for step in self.steps()}
        return min((step for step in losses if losses[step] is not None), key=losses.get, default=None)

    def validation_loss(self) -> float | None:
        """The lowest validation loss of a kept checkpoint."""
        best = self.best()
        return None if best is None else self._validation_loss(best)

    def weights(self, step: int, wanted: Wanted | None = None) -> Arrays:
        """Trained parameters of a checkpoint, all on the default device or those of `wanted` as it wants them."""
        return _load_flat(self._checkpoint(step), "weights", wanted)

    def weight_names(self, step: int) -> list[str]:
        """Paths of the trained parameters of a checkpoint."""
        return list(_stored(self._checkpoint(step), "weights"))

    def finish(self, step: int) -> None:
        """Note that the stage has ended after `step` updates, whose checkpoint is whole."""
        with writing(self.path):
            _write_json(self.path / "finished.json", {"step": step})

    @property
    def finished(self) -> int | None:
        """The step that the stage ended at; None before its end."""
        file = self.path / "finished.json"
        return _read_json(file)["step"] if file.is_file() else None

    def _checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / str(step)

    def _validation_loss(self, step: int) -> float | None:
        from orbax.checkpoint import v1 as ocp

        path = self._checkpoint(step)
        with _reading(path):
            return ocp.checkpointables_metadata(path).custom_metadata.get(_METRIC)


class Checkpoints:
    """Saves and restores the `TrainState` of one stage; a context manager that waits for what it writes.

    Args:
        folder: of the stage.
        keep: how many of the latest checkpoints stay; the best by validation loss stays beside them.
    """

    def __init__(self, folder: StageFolder, keep: int = 2):
        from orbax.checkpoint import v1 as ocp

        decisions, preservations = ocp.training.save_decision_policies, ocp.training.preservation_policies
        best = preservations.BestN(
            n=1, get_metric_fn=lambda m: m[_METRIC], reverse=True, keep_checkpoints_without_metrics=False
        )
        self.folder = folder
        self._quiet = ExitStack()
        self._quiet.enter_context(_quiet_orbax())
        with writing(folder.path):
            self._checkpointer = ocp.training.Checkpointer(
                folder.path / "checkpoints",
                # When to save is the loop's decision, which asks with `force`.
                save_decision_policy=decisions.SpecificStepsPolicy(()),
                preservation_policy=preservations.AnyPreservationPolicy([preservations.LatestN(keep), best]),
                cleanup_tmp_directories=True,
            )
        self._pending = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None and jax.process_count() > 1:
            return  # a save in flight waits for the other processes, which may be gone
        try:
            if kind is None:
                self.wait()
        finally:
            self._close()

    @property
    def latest(self) -> int | None:
        """Step of the latest whole checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState, step: int, validation_loss: float | None = None) -> None:
        """Begin to write a checkpoint; waits for the one before. Does nothing if `step` has one already.

        Raises:
            AlmError: the disk is full or cannot be written (also where that befell the checkpoint before).
        """
        self.wait()
        if self.latest == step:
            return
        metrics = None if validation_loss is None else {_METRIC: float(validation_loss)}
        with writing(self.folder.path):
            self._pending = self._checkpointer.save_checkpointables_async(
                step, _items(state), force=True, metrics=metrics, custom_metadata=metrics
            )

    def wait(self) -> None:
        """Return when the last `save` is on disk; raises as `save`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with writing(self.folder.path):
                pending.result()

    def restore(self, abstract: TrainState) -> TrainState:
        """The latest checkpoint, as the shapes, dtypes and shardings of `abstract` want it.

        Raises:
            CheckpointError: it is damaged or of another model; the message lists what differs.
        """
        path = self.folder.path / "checkpoints" / str(self.latest)
        wanted = _items(abstract)
        for name, item in wanted.items():
            _check_fits(path, name, item)
        with _reading(path):
            items = self._checkpointer.load_checkpointables(self.latest, wanted)
        rest = jax.tree.structure(_rest(abstract))
        rest = jax.tree.unflatten(rest, [items["optimizer"][name] for name in wanted["optimizer"]])
        return TrainState(params={path: items["weights"][path] for path in wanted["weights"]}, **rest)

    def _close(self) -> None:
        try:
            self._checkpointer.close()
        except Exception as error:
            # `wait` has raised the failure of a save, or it gives way to the error that ended the run.
            logging.getLogger(__name__).debug("closing checkpoints: %s", error)
        finally:
            self._quiet.close()


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Orbax logs a failed save with a traceback for each of its threads; the raised error says the same."""
    logger, hide = logging.getLogger("absl"), lambda record: "orbax" not in record.pathname
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)


def _rest(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key}


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """The state as flat dictionaries: names in a checkpoint do not depend on the optimiser's classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(_rest(state))
    rest = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    return {"weights": dict(state.params), "optimizer": rest}


def _stored(path: Path, name: str | None) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """(shape, dtype) of every array of an item of a checkpoint, or of a checkpoint without items."""
    from orbax.checkpoint import v1 as ocp

    with _reading(path):
        metadata = (
            ocp.metadata(path).metadata if name is None else ocp.checkpointables_metadata(path).metadata.get(name)
        )
        if metadata is None:
            raise ValueError(f"files of its {name or 'arrays'} are missing")
        return {key: (tuple(leaf.shape), np.dtype(leaf.dtype)) for key, leaf in metadata.items()}


def _check_fits(path: Path, name: str, wanted: Mapping[str, Any]) -> None:
    found = _stored(path, name)
    problems = [f"{key} is missing" for key in wanted if key not in found]
    problems += [f"{key} has no place in this model" for key in found if key not in wanted]
    for key in wanted.keys() & found.keys():
        expected = tuple(wanted[key].shape), np.dtype(wanted[key].dtype)
        if found[key] != expected:
            problems.append(f"{key} is {found[key][1]}{list(found[key][0])}, expected {expected[1]}{list(expected[0])}")
    if problems:
        raise CheckpointError(f"{path} is a checkpoint of another model ({name}): " + "; ".join(sorted(problems)))


def _load_flat(path: Path, name: str | None, wanted: Wanted | None) -> Arrays:
    """`{path: array}` of an item, on as many devices as are wanted, whatever it was saved from."""
    from orbax.checkpoint import v1 as ocp

    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = _stored(path, name)
    if wanted is None:
        wanted = {key: jax.ShapeDtypeStruct(*stored[key], sharding=default) for key in stored}
    problems = [
        f"{key} is {stored[key][0] if key in stored else 'missing'}, expected {tuple(leaf.shape)}"
        for key, leaf in wanted.items()
        if key not in stored or stored[key][0] != tuple(leaf.shape)
    ]
    if problems:
        raise CheckpointError(f"{path} is a checkpoint of another model: " + "; ".join(problems))
    abstract = {key: wanted.get(key, ocp.PLACEHOLDER) for key in stored}
    with _reading(path):
        arrays = ocp.load(path, abstract) if name is None else ocp.load_checkpointables(path, {name: abstract})[name]
    return {key: arrays[key] for key in wanted}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds for damaged files
        # Of errors inside Orbax, which stumbles over files that are not there, the text says nothing to a user.
        reason = _first_line(error) if isinstance(error, OSError | ValueError) else "files are missing"
        raise CheckpointError(
            f"{path} cannot be read ({reason}): half written or damaged; remove this folder to go on from the "
            "checkpoint before it"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into one line that says what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        # TensorStore reports the operating system's errors as ValueError.
        if isinstance(error, ValueError) and "os_error_code" not in str(error):
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC or f"os_error_code='{errno.ENOSPC}'" in str(error)
        reason = "the disk is full" if full else _first_line(error)
        raise AlmError(
            f"cannot write to {path}: {reason}; earlier checkpoints are whole: make room or mend the disk, then go on "
            "with --resume"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}): half written or damaged") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file so that it is there as a whole or not at all; on one process of several."""
    if jax.process_index() != 0:
        return
    with new_file(path) as partial, partial.open("w") as handle:
        json.dump(content, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
