"""Bookkeeping of a fixture: every recorded array is an input, compared, or documentation; any other is a failure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

# The fixtures' README: features, tokens, losses and logits 1e-5, gradients 1e-4, float16 1e-3, filterbanks 5e-3.
TOLERANCE, GRADIENT, HALF, FILTERBANK = 1e-5, 1e-4, 1e-3, 5e-3
DOCUMENTATION = ("predict_class_ranks", "head_single_*", "gen_ids_batched_leftpad_official")

# (Pattern of recorded names, how ours is computed, tolerance; None: ids that must be equal). The function is called
# with the fixture's results and the groups of the pattern.
Computed = tuple[str, Callable[..., Any], float | None]


def error(ours: Any, theirs: Any) -> float:
    """max|a-b| / max(1, max|b|); infinite if shapes, or places of infinities or NaNs, differ."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return math.inf
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(1.0, np.abs(b[finite]).max()))


class Report:
    """Prints a line an array and counts them."""

    def __init__(self, name: str):
        self.name = name
        self.compared, self.inputs, self.skipped = 0, 0, []
        self.failed = False

    def compare(self, name: str, ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> None:
        """Compare real numbers."""
        if np.asarray(theirs).dtype == np.float16:
            tolerance = max(tolerance, HALF)
        found = error(ours, theirs)
        self._line(name, f"error {found:.2e}  tolerance {tolerance:.0e}", found <= tolerance)

    def same(self, name: str, ours: Any, theirs: Any) -> None:
        """Compare ids or texts, which must be equal."""
        equal = np.array_equal(ours, theirs) if isinstance(theirs, np.ndarray) else ours == theirs
        self._line(name, "equal" if equal else f"differs: {_short(ours)} expected {_short(theirs)}", equal)

    def input(self, names: Iterable[str]) -> None:
        """Count arrays that are read, not compared."""
        self.inputs += len(set(names))

    def skip(self, name: str) -> None:
        """Count an array on the documentation-only list."""
        self.skipped.append(name)

    def fail(self, why: str) -> None:
        """Something other than a comparison went wrong."""
        self.failed = True
        print(f"  {why}  FAIL")

    def account(
        self, io: Mapping[str, Any], *, inputs: Sequence[str], computed: Sequence[Computed], results: Any
    ) -> None:
        """Compare every recorded array, or count it as input or documentation; one that nothing computes is a failure.

        Args:
            inputs: shell-style patterns of arrays that are read, not compared. computed: how the others are computed,
                the first whose pattern fits. results: what the functions are called with.
        """
        used = {name for name in io if any(fnmatchcase(name, pattern) for pattern in inputs)}
        self.input(used)
        for name in (name for name in io if name not in used):
            if any(fnmatchcase(name, pattern) for pattern in DOCUMENTATION):
                self.skip(name)
                continue
            found = next((c for c in computed if re.fullmatch(c[0], name)), None)
            if found is None:
                self.fail(f"{name}: recorded, but nothing here computes it")
                continue
            pattern, compute, tolerance = found
            ours = compute(results, *re.fullmatch(pattern, name).groups())
            if tolerance is None:
                self.same(name, ours, io[name])
            else:
                self.compare(name, ours, io[name], tolerance)

    def close(self) -> bool:
        """Print the last line; whether the fixture passed."""
        if self.compared == 0 and not self.failed:
            self.fail("nothing was compared")
        names = f" ({', '.join(self.skipped)})" if self.skipped else ""
        print(
            f"golden {self.name}: {self.compared} compared, {self.inputs} inputs, {len(self.skipped)} skipped{names}, "
            + ("FAIL" if self.failed else "ok"),
            flush=True,
        )
        return not self.failed

    def _line(self, name: str, text: str, good: bool) -> None:
        self.compared += 1
        self.failed |= not good
        print(f"  {name:32} {text}" + ("" if good else "  FAIL"))


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) < 160 else text[:157] + "..."
