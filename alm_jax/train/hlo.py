"""What a compiled program does on one device, counted from its text (optimised HLO).

XLA's own analysis (`Compiled.cost_analysis`) counts the body of a loop once, however often it runs; here it counts each
time. What Pallas kernels compute is not in the text (`train.traced`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0}
_COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
BETWEEN_SLICES = "between slices"
_LINE = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLEES = re.compile(r"(?:calls|to_apply|branch_computations|true_computation|false_computation)=(%[^\s,]+|\{[^}]+\})")
# Neither read nor write memory, or were counted where they began.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
        *("opt-barrier", "while", "conditional", "call", "async-start", "async-update", "async-done", "copy-done"),
        *(f"{kind}-done" for kind in _COLLECTIVES),
    )
)


@dataclass(frozen=True)
class Collective:
    """Exchanges of one kind in a step.

    Attributes:
        kind: as XLA calls it, or `BETWEEN_SLICES`. count: how often. bytes: of the whole arrays that are gathered,
            summed or moved. received: bytes that reach a device at least, by the algorithm that moves the fewest.
    """

    kind: str
    count: int
    bytes: int
    received: int


@dataclass(frozen=True)
class Cost:
    """A run of the program on one device.

    Attributes:
        flops: of matrix products and convolutions. bytes: read from and written to HBM; arrays as large as their
            elements, without what tiles add. collectives: by kind.
        unknown_loops: loops whose number of trips the text does not tell; counted once.
    """

    flops: int
    bytes: int
    collectives: tuple[Collective, ...]
    unknown_loops: int


def cost(text: str, devices: int) -> Cost:
    """Count a program (`Compiled.as_text()`) that runs on so many devices."""
    return _Count(_Program(text), devices).result


@dataclass(frozen=True)
class _Shape:
    """One array: `size` bytes, in HBM or in a memory of the core."""

    dims: tuple[int, ...]
    size: int
    hbm: bool


@dataclass
class _Instruction:
    name: str
    text: str  # of the result's shape
    kind: str
    operands: tuple[str, ...]
    rest: str  # operands and attributes

    @cached_property
    def shapes(self) -> tuple[_Shape, ...]:
        """Arrays of the result; several if it is a tuple."""
        return tuple(_shape(*found) for found in _SHAPE.findall(self.text))

    @property
    def size(self) -> int:
        return sum(shape.size for shape in self.shapes)

    @property
    def in_hbm(self) -> int:
        """Bytes of the result that are in HBM."""
        return sum(shape.size for shape in self.shapes if shape.hbm)

    def attribute(self, name: str) -> str:
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return found[1] if found else ""

    def callees(self) -> list[str]:
        """Computations that it runs, but for a loop's."""
        return [name.strip("{} %") for group in _CALLEES.findall(self.rest) for name in group.split(",")]


@dataclass
class _Computation:
    name: str
    instructions: dict[str, _Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of each parameter by its name."""
        found = (i for i in self.instructions.values() if i.kind == "parameter")
        return {i.name: int(i.rest.partition(")")[0]) for i in found}

    @cached_property
    def users(self) -> dict[str, list[_Instruction]]:
        result = defaultdict(list)
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                result[name].append(instruction)
        return result


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, _Computation] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            if line[:1] in ("%", "E") and line.endswith("{"):
                name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
                current = self.computations[name] = _Computation(name)
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif current is not None and (found := _LINE.match(line)):
                root, name, shape, kind, rest = found.groups()
                operands = tuple(re.findall(r"%([\w.-]+)", rest.partition(")")[0]))
                current.instructions[name] = _Instruction(name, shape, kind, operands, rest)
                current.root = name if root else current.root

    def trips(self, loop: _Instruction, outside: _Computation, around: dict[str, tuple]) -> int | None:
        """How often a loop runs that counts up to a constant; None if it does not."""
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        test = condition.instructions[condition.root]
        if test.kind == "fusion":  # of the comparison alone
            inner = self.computations[test.callees()[0]]
            compared = inner.instructions[inner.root]
            names = [test.operands[inner.parameters[name]] for name in compared.operands if name in inner.parameters]
            test, names = compared, names if len(names) == 2 else []
        else:
            names = test.operands
        if test.kind != "compare" or test.attribute("direction") not in ("LT", "LE") or len(names) != 2:
            return None
        index, limit = (condition.instructions[name] for name in names)
        around = {**around, condition.name: (loop, outside)}
        end, start = self.constant(limit, condition, around), self.constant(index, condition, around)
        if end is None or start is None:
            return None
        steps = end - start + (test.attribute("direction") == "LE")
        return max(0, -(-steps // self.stride(loop, int(index.attribute("index") or 0))))

    def stride(self, loop: _Instruction, index: int) -> int:
        """What a loop adds to its counter."""
        body = self.computations[loop.attribute("body").lstrip("%")]
        root = body.instructions[body.root]
        added = body.instructions.get(root.operands[index]) if root.kind == "tuple" else None
        while added is not None and added.kind in ("copy", "bitcast"):
            added = body.instructions[added.operands[0]]
        if added is None or added.kind != "add":
            return 1
        steps = [self.constant(body.instructions[name], body, {}) for name in added.operands]
        return next((step for step in steps if step), 1)

    def constant(self, value: _Instruction, at: _Computation, around: dict[str, tuple]) -> int | None:
        """The number that a scalar is, followed out of the loops `around` (computation -> loop, computation)."""
        if value.kind == "constant":
            number = value.rest.partition(")")[0]
            return int(number) if re.fullmatch(r"-?\d+", number) else None
        if value.kind in ("copy", "bitcast", "copy-done", "copy-start"):
            return self.constant(at.instructions[value.operands[0]], at, around)
        if value.kind != "get-tuple-element":
            return None
        index, source = int(value.attribute("index")), at.instructions[value.operands[0]]
        if source.kind == "parameter" and at.name in around:
            loop, at = around[at.name]
            source = at.instructions[loop.operands[0]]
        if source.kind == "tuple":
            return self.constant(at.instructions[source.operands[index]], at, around)
        return None


class _Count:
    def __init__(self, program: _Program, devices: int):
        self.program, self.devices = program, devices
        self.flops = self.bytes = self.unknown_loops = 0
        self.exchanged: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        self.visit(program.computations[program.entry], 1, {})
        kinds = sorted(self.exchanged.items(), key=lambda item: -item[1][2])
        exchanges = tuple(Collective(kind, *numbers) for kind, numbers in kinds)
        self.result = Cost(self.flops, self.bytes, exchanges, self.unknown_loops)

    def visit(self, at: _Computation, times: int, around: dict[str, tuple]) -> None:
        """Count what runs in a computation that is no fusion's."""
        for each in at.instructions.values():
            if each.kind == "while":
                trips = self.program.trips(each, at, around)
                self.unknown_loops += trips is None
                body = self.program.computations[each.attribute("body").lstrip("%")]
                self.visit(body, times * (1 if trips is None else trips), {**around, body.name: (each, at)})
            elif each.kind in ("call", "conditional", "async-start"):
                for name in each.callees():
                    self.visit(self.program.computations[name], times, around)
            elif each.kind == "fusion":
                self.fused(self.program.computations[each.callees()[0]], times)
                self.bytes += times * (self.read(each, at) + self.written(each))
            else:
                self.arithmetic(each, at, times)
                self.exchange(each, at, times)
                self.bytes += times * _moved(each, at)

    def fused(self, at: _Computation, times: int) -> None:
        """Count what is computed and exchanged inside a fusion."""
        # An exchange that runs beside others' work is written in each fusion that it runs beside.
        begins = any("AsyncCollectiveStart" in each.rest for each in at.instructions.values())
        for each in at.instructions.values():
            if each.kind == "fusion":
                self.fused(self.program.computations[each.callees()[0]], times)
            self.arithmetic(each, at, times)
            if begins or "chain_id" not in each.rest:
                self.exchange(each, at, times, fused=True)

    def arithmetic(self, each: _Instruction, at: _Computation, times: int) -> None:
        if each.kind == "dot":
            dims = at.instructions[each.operands[0]].shapes[0].dims
            contracted = [dims[int(i)] for i in re.findall(r"\d+", each.attribute("lhs_contracting_dims"))]
            self.flops += times * 2 * prod(each.shapes[0].dims) * prod(contracted)
        elif each.kind == "convolution":
            self.flops += times * _convolution(each, *(at.instructions[name].shapes[0].dims for name in each.operands))

    def exchange(self, each: _Instruction, at: _Computation, times: int, fused: bool = False) -> None:
        kind = each.kind.removesuffix("-start")
        if kind == "recv" and "megascale" in each.rest:  # hosts do the sums; each device is sent its part of the result
            size, slices = each.shapes[0].size, re.search(r'target="\{([\d,]+)\}', each.rest)
            own = size // len(slices[1].split(",")) if slices and "ALL_GATHER" in each.rest else 0
            for i, number in enumerate((1, size, size - own)):
                self.exchanged[BETWEEN_SLICES][i] += times * number
            return
        if kind not in _COLLECTIVES or each.kind.endswith("-done"):
            return
        given = sum(at.instructions[name].size for name in each.operands)
        whole = each.size - (given if each.kind == "all-gather-start" else 0) if kind == "all-gather" else given
        if kind == "all-reduce" and fused:  # each device cuts its part out of the sum: never made whole
            kind = "reduce-scatter"
        group = _group(each.attribute("replica_groups") + each.rest, self.devices)
        share = 1.0 if kind.startswith("collective") else (2 if kind == "all-reduce" else 1) * (group - 1) / group
        for i, number in enumerate((1, whole, round(whole * share))):
            self.exchanged[kind][i] += times * number

    def read(self, fusion: _Instruction, at: _Computation) -> int:
        """Bytes of HBM that a fusion reads: of an operand of which it takes slices, those."""
        inner = self.program.computations[fusion.callees()[0]]
        names = {number: name for name, number in inner.parameters.items()}
        total = 0
        for number, operand in enumerate(fusion.operands):
            shape = at.instructions[operand].shapes[0]
            if shape.hbm:
                total += min(shape.size, self.used(names[number], inner))
        return total

    def used(self, name: str, at: _Computation) -> int:
        total = 0
        for user in at.users[name]:
            first = user.operands[0] == name
            if user.kind in ("dynamic-slice", "slice", "gather") and first:
                total += user.size
            elif user.kind == "bitcast":
                total += self.used(user.name, at)
            elif user.kind == "fusion":
                inner = self.program.computations[user.callees()[0]]
                numbers = {number: inside for inside, number in inner.parameters.items()}
                total += sum(self.used(numbers[i], inner) for i, each in enumerate(user.operands) if each == name)
            elif not (user.kind == "dynamic-update-slice" and first) and not _passes_on(user):
                total += at.instructions[name].size
        return total

    def written(self, fusion: _Instruction) -> int:
        """Bytes of HBM that a fusion writes: where it updates a slice in place, of the slice."""
        inner = self.program.computations[fusion.callees()[0]]
        root = inner.instructions[inner.root]
        made = [inner.instructions[name] for name in root.operands] if root.kind == "tuple" else [root]
        if len(made) != len(fusion.shapes):
            return fusion.in_hbm
        return sum(min(shape.size, self.update(each, inner)) for shape, each in zip(fusion.shapes, made) if shape.hbm)

    def update(self, made: _Instruction, at: _Computation) -> int:
        while made.kind == "bitcast":
            made = at.instructions[made.operands[0]]
        if made.kind == "dynamic-update-slice":
            return at.instructions[made.operands[1]].size
        if made.kind == "fusion":
            inner = self.program.computations[made.callees()[0]]
            return self.update(inner.instructions[inner.root], inner)
        return 0 if made.kind == "parameter" or _passes_on(made) else made.size


def _passes_on(each: _Instruction) -> bool:
    """Whether it hands on what it is given: buffers of an exchange that goes on, results of a fusion."""
    return each.kind == "tuple" or "chain_id" in each.rest or "AsyncCollective" in each.rest


def _moved(each: _Instruction, at: _Computation) -> int:
    """Bytes of HBM that an instruction by itself reads and writes."""
    if each.kind in _FREE or (each.kind == "custom-call" and "tpu_custom_call" not in each.rest):
        return 0
    if each.kind in ("copy-start", "slice-start"):  # destination, source, a context
        return sum(shape.size for shape in each.shapes[:2] if shape.hbm)
    operands = [at.instructions[name] for name in each.operands]
    if each.kind in ("dynamic-slice", "slice", "gather"):
        return each.in_hbm + (each.size if operands[0].in_hbm else 0)
    if each.kind in ("dynamic-update-slice", "scatter"):
        update = operands[1 if each.kind == "dynamic-update-slice" else -1]
        return update.in_hbm + (update.size if each.in_hbm else 0)
    return each.in_hbm + sum(operand.in_hbm for operand in operands)


def _convolution(each: _Instruction, image: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Twice its multiplications. TPUs write matrix products so, a batch of them as a dilated window that mostly meets
    nothing, which does not count."""
    images, kernels, results = re.fullmatch(r"(\w+)_(\w+)->(\w+)", each.attribute("dim_labels")).groups()
    result = each.shapes[0].dims
    window = dict(re.findall(r"(\w+)=([\w-]+)", each.attribute("window")))
    option = lambda i, name, default: window[name].split("x")[i] if name in window else default
    met = 1
    for i in range(len(results) - 2):
        outputs, taps, inputs = (
            dims[labels.index(str(i))] for dims, labels in ((result, results), (kernel, kernels), (image, images))
        )
        at = np.arange(outputs)[:, None] * int(option(i, "stride", 1)) - int(option(i, "pad", "0_0").split("_")[0])
        at = at + np.arange(taps) * int(option(i, "rhs_dilate", 1))
        apart = int(option(i, "lhs_dilate", 1))
        met *= int(np.sum((at >= 0) & (at % apart == 0) & (at // apart < inputs)))
    return 2 * met * result[results.index("b")] * result[results.index("f")] * kernel[kernels.index("i")]


def _group(text: str, devices: int) -> int:
    """Devices of one group of `replica_groups`, as lists, as a grid of devices, or as axes of a named mesh."""
    groups = text.partition("replica_groups=")[2]
    if named := re.match(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}", groups):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return prod(int(part) if part else sizes[name] for name, part in axes) or devices
    if grid := re.match(r"\[(\d+),(\d+)\]", groups):
        return int(grid[2])
    listed = re.match(r"\{\{([\d,]+)\}", groups)
    return len(listed[1].split(",")) if listed else devices


def _shape(kind: str, dims: str, layout: str) -> _Shape:
    """Memory space 0, the default, is HBM."""
    sizes = tuple(int(size) for size in dims.split(",") if size)
    bits = int(found[0]) if (found := re.findall(r"^[suf](\d+)", kind)) else None
    each = _BYTES[kind] if kind in _BYTES else bits / 8
    return _Shape(sizes, int(prod(sizes) * each), not re.search(r"S\([1-9]", layout))
