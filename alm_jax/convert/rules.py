"""Invertible rules between a model's parameters and the tensors of a checkpoint layout.

A `Table` is one layout of one model. Each `Rule` says which tensors make one parameter and how their axes move; nothing
else is needed to read a checkpoint (`convert.load`) and to write the same bits back (`convert.save`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import einops
import numpy as np

Slices = tuple[slice, ...]


class Rearrange:
    """An einops pattern from a checkpoint tensor's axes to a parameter's, e.g. `"o i -> i o"`.

    Args:
        pattern: every axis of the left side stands on the right side too, so that it can be undone.
        sizes: lengths of axes that neither side tells alone.
    """

    def __init__(self, pattern: str, **sizes: int):
        self.source, self.target = (part.strip() for part in pattern.split("->"))
        self.sizes = sizes
        self._source, self._target = _axes(self.source), _axes(self.target)

    def __repr__(self) -> str:
        return f"Rearrange({f'{self.source} -> {self.target}'!r})"

    def forward(self, tensor: np.ndarray) -> np.ndarray:
        """Checkpoint tensor -> parameter (a view where NumPy can make one)."""
        return einops.rearrange(tensor, f"{self.source} -> {self.target}", **self.sizes)

    def inverse(self, parameter: np.ndarray) -> np.ndarray:
        """Parameter -> checkpoint tensor (a view where NumPy can make one)."""
        return einops.rearrange(parameter, f"{self.target} -> {self.source}", **self.sizes)

    @cached_property
    def undone(self) -> Rearrange:
        """The way back."""
        return Rearrange(f"{self.target} -> {self.source}", **self.sizes)

    def shape(self, source: Sequence[int]) -> tuple[int, ...]:
        """Shape of the parameter that a tensor of shape `source` makes; ValueError if it does not fit the pattern."""
        if len(source) != len(self._source):
            raise ValueError(f"{len(source)} axes do not fit {self.source!r}")
        lengths = dict(self.sizes)
        for names, size in zip(self._source, source):
            known = prod(lengths.get(name, 1) for name in names)
            unknown = [name for name in names if name not in lengths]
            if len(unknown) > 1 or size % known or (not unknown and size != known):
                raise ValueError(f"axis of {size} does not fit {self.source!r} with {self.sizes}")
            lengths.update({name: size // known for name in unknown})
        return tuple(prod(lengths[name] for name in names) for names in self._target)

    @cached_property
    def moves(self) -> tuple[int | None, ...]:
        """For each source axis, the target axis that it becomes unchanged; None for an axis that is split or merged."""
        return tuple(self._target.index(names) if len(names) == 1 and names in self._target else None
                     for names in self._source)  # fmt: skip

    def window(self, wanted: Slices, source: Sequence[int]) -> tuple[Slices, Slices]:
        """What to read of a tensor of shape `source` for the slice `wanted` of the parameter.

        Returns:
            (block, rest) with `forward(tensor[block])[rest]` equal to `forward(tensor)[wanted]`.
        """
        block = tuple(slice(0, size) if to is None else wanted[to] for size, to in zip(source, self.moves))
        rest = tuple(slice(None) if axis in self.moves else part for axis, part in enumerate(wanted))
        return block, rest


def _axes(side: str) -> tuple[tuple[str, ...], ...]:
    """`"(f t) 1 d"` -> `(("f", "t"), (), ("d",))`."""
    groups = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return tuple(tuple(name for name in (inner or single).split() if name != "1") for inner, single in groups)


SCALAR = Rearrange(" -> ")
VECTOR = Rearrange("d -> d")
TABLE = Rearrange("n d -> n d")
LINEAR = Rearrange("o i -> i o")
CONV1D = Rearrange("o i k -> k i o")


@dataclass(frozen=True)
class Part:
    """The `index`-th of `of` equal parts of a packed tensor along `axis` (query, key and value in one matrix)."""

    index: int
    of: int
    axis: int = 0

    def shape(self, packed: Sequence[int]) -> tuple[int, ...]:
        """Shape of the part; ValueError if the tensor does not divide."""
        if self.axis >= len(packed) or packed[self.axis] % self.of:
            raise ValueError(f"shape {tuple(packed)} does not divide into {self.of} parts along axis {self.axis}")
        return tuple(size // self.of if axis == self.axis else size for axis, size in enumerate(packed))

    def take(self, packed: np.ndarray) -> np.ndarray:
        """The part of a packed tensor."""
        return np.split(packed, self.of, self.axis)[self.index]

    def within(self, block: Slices, part: Sequence[int]) -> Slices:
        """A slice of the part (of shape `part`) as a slice of the packed tensor."""
        start = self.index * part[self.axis]
        moved = slice(start + block[self.axis].start, start + block[self.axis].stop)
        return tuple(moved if axis == self.axis else piece for axis, piece in enumerate(block))


@dataclass(frozen=True)
class Rule:
    """One parameter and the tensors that make it.

    Attributes:
        path: of the parameter, e.g. `blocks.attn.q.kernel`; None for a part of a packed tensor for which the model has
            no parameter and which must hold zeros (the key bias of Whisper in CTranslate2).
        keys: one key, or for a stacked parameter the key of each layer in order (`each`).
        arrange: how a tensor's axes become those of the parameter (of one layer of it).
        part: which part of the tensor, where several parameters share it.
    """

    path: str | None
    keys: str | tuple[str, ...]
    arrange: Rearrange
    part: Part | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All keys in order."""
        return (self.keys,) if isinstance(self.keys, str) else self.keys

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading axis of layers."""
        return not isinstance(self.keys, str)

    def shape(self, tensor: Sequence[int]) -> tuple[int, ...]:
        """Shape of the parameter (of one layer) that a tensor makes; ValueError if it cannot."""
        return self.arrange.shape(self.part.shape(tensor) if self.part else tensor)

    def window(self, wanted: Slices, tensor: Sequence[int]) -> tuple[Slices, Slices]:
        """(block of the tensor to read, slice of the rearranged block) for a slice of the parameter (of one layer)."""
        shape = self.part.shape(tensor) if self.part else tuple(tensor)
        block, rest = self.arrange.window(wanted, shape)
        return (self.part.within(block, shape) if self.part else block), rest


@dataclass(frozen=True)
class Table:
    """One checkpoint layout of one model, under canonical names (`convert.names`).

    Attributes:
        rules: one a parameter. A rule none of whose keys a file holds is no error in itself: other files may.
        dead: keys of tensors that exist and are never used. They are kept beside a checkpoint (`convert.load.dead`), so
            that an export is bit-identical.
        ignored: shell-style patterns of keys of another model in the same file (Whisper's text decoder).
        tied: (key, key whose values it repeats): tensors that some files write out twice.
        bare: prefixes that some files leave off all keys (`model.` in a dump of the inner model).
    """

    rules: tuple[Rule, ...] = ()
    dead: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    bare: tuple[str, ...] = ()
    packs: dict[tuple[str, ...], tuple[Rule, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        packs: dict[tuple[str, ...], list[Rule]] = {}
        for rule in self.rules:
            packs.setdefault(rule.names, []).append(rule)
        for names, rules in packs.items():
            rules.sort(key=lambda rule: rule.part.index if rule.part else 0)
            parts = [(rule.part.index, rule.part.of) if rule.part else (0, 1) for rule in rules]
            if parts != [(index, len(rules)) for index in range(len(rules))]:
                raise ValueError(f"{names[0]} has the parts {parts}: expected each once")
        paths = [rule.path for rule in self.rules if rule.path is not None]
        keys = [*(key for names in packs for key in names), *self.dead, *(alias for alias, _ in self.tied)]
        if twice := _repeated(paths) | _repeated(keys):
            raise ValueError(f"a table names {sorted(twice)} more than once")
        object.__setattr__(self, "packs", {names: tuple(rules) for names, rules in packs.items()})

    def __add__(self, other: Table) -> Table:
        names = ("rules", "dead", "ignored", "tied", "bare")
        return Table(**{name: (*getattr(self, name), *getattr(other, name)) for name in names})

    def without(self, paths: Collection[str]) -> Table:
        """The same table for a file beside another that fills these parameters: their keys are ignored."""
        kept = tuple(rule for rule in self.rules if rule.path not in paths)
        known = {key for rule in kept for key in rule.names}
        dropped = {key for rule in self.rules for key in rule.names} - known
        return replace(self, rules=kept, ignored=(*self.ignored, *sorted(dropped)))

    def under(self, ours: str = "", theirs: str = "") -> Table:
        """The same table for a part of a larger model: every path below `ours`, every key below `theirs`."""

        def moved(rule: Rule) -> Rule:
            keys = theirs + rule.keys if isinstance(rule.keys, str) else tuple(theirs + key for key in rule.keys)
            return replace(rule, path=None if rule.path is None else ours + rule.path, keys=keys)

        return Table(
            rules=tuple(moved(rule) for rule in self.rules),
            dead=tuple(theirs + key for key in self.dead),
            ignored=tuple(theirs + pattern for pattern in self.ignored),
            tied=tuple((theirs + alias, theirs + key) for alias, key in self.tied),
            bare=tuple(theirs + prefix for prefix in self.bare),
        )


def each(pattern: str, layers: Iterable[int]) -> tuple[str, ...]:
    """The key of every layer: `each("layers.{i}.norm.weight", range(0, 12, 2))`."""
    return tuple(pattern.format(i=i) for i in layers)


def _repeated(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}
