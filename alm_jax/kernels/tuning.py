"""Block sizes of kernels: those that were measured to be the fastest on a kind of device, else each kernel's default.

`tuned.json` holds `{device kind: {kernel: {shape: blocks}}}`; `tools/tune_kernels.py` measures and writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from alm_jax.core.mesh import device_kind

TABLE = Path(__file__).with_name("tuned.json")
Blocks = dict[str, int]


@dataclass(frozen=True)
class Trial:
    """Block sizes on trial, and what was asked for meanwhile; both by (kernel, shape).

    Attributes:
        blocks: taken instead of the table's. asked: the candidates of every kernel and shape.
    """

    blocks: Mapping[tuple[str, str], Blocks]
    asked: dict[tuple[str, str], list[Blocks]] = field(default_factory=dict)


_trial: ContextVar[Trial | None] = ContextVar("trial", default=None)


@contextmanager
def trial(blocks: Mapping[tuple[str, str], Blocks]) -> Iterator[Trial]:
    """While it lasts, kernels that are traced take these block sizes, whatever the table says."""
    token = _trial.set(Trial(blocks))
    try:
        yield _trial.get()
    finally:
        _trial.reset(token)


def choose(kernel: str, shape: Mapping[str, int], candidates: Iterable[Blocks]) -> Blocks | None:
    """Block sizes of a kernel for a call.

    Args:
        shape: the sizes that the best blocks depend on, by name.
        candidates: blocks that can do the call, the default first.

    Returns:
        The candidate that the table names for the shape on this kind of device, or else the first; None if there is
        none. What the table names and is no candidate (any more) is not taken.
    """
    candidates, key, on_trial = (
        list(candidates),
        ",".join(f"{name}={size}" for name, size in shape.items()),
        _trial.get(),
    )
    if on_trial is None:
        wanted = table().get(device_kind(), {}).get(kernel, {}).get(key)
    else:
        on_trial.asked[kernel, key] = candidates
        wanted = on_trial.blocks.get((kernel, key))
    return wanted if wanted in candidates else next(iter(candidates), None)


@cache
def table() -> dict[str, dict[str, dict[str, Blocks]]]:
    """The measured block sizes, by device kind, kernel and shape."""
    return json.loads(TABLE.read_text(encoding="utf-8"))
