"""Writing files so that a killed process or a full disk never leaves half of one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alm_jax.core.errors import CheckpointError

_PARTIAL = re.compile(r"\..+\.(\d+)\.partial")


def partial_path(path: Path) -> Path:
    """Where this process writes what is to stand at `path`, beside it: `.NAME.PID.partial`."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path to write to, which stands at `target` once the block has ended without an error; else the old file does.

    Raises:
        OSError: it cannot be put there.
    """
    partial = partial_path(target)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as a `new_file`.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path) -> None:
    """Remove the `partial_path`s in a folder that no living process of this machine writes."""
    for path in folder.glob(".*"):
        if (match := _PARTIAL.fullmatch(path.name)) and not _lives(int(match[1])):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which stands at `target` once the block has ended without an error, and nowhere otherwise.

    It is made beside `target`, so that one rename publishes it; a killed process leaves `.NAME.*.partial` there.

    Raises:
        CheckpointError: `target` holds something already, or cannot be written.
    """
    target = target.expanduser().resolve()
    partial = partial_path(target)
    try:
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"{target} is a file: give a new or empty folder")
        if target.is_dir() and (held := sorted(entry.name for entry in target.iterdir())):
            raise CheckpointError(f"{target} holds {_some(held)} already: give a new or empty folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            yield partial
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error}") from error


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
