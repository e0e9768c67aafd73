"""What a traced function computes and holds, from shapes alone: counted on its jaxpr, before any compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


class Work(NamedTuple):
    """Matrix products and convolutions, of all devices together.

    Attributes:
        flops: a multiplication and an addition are two. in_kernels: those of them that Pallas kernels do.
        bytes: of what each product reads and writes; other operations are taken to be fused with them.
    """

    flops: int
    in_kernels: int
    bytes: int


def work(jaxpr: Jaxpr) -> Work:
    """Count what a function computes.

    Bodies of scans count as often as they run, loops without a known end once, of branches the dearest; a Pallas
    kernel's body once for each point of its grid, also where it skips its work.
    """
    total = Work(0, 0, 0)
    for eqn in jaxpr.eqns:
        inside = [work(each) for each in _inside(eqn)]
        if eqn.primitive.name == "pallas_call":
            flops = prod(eqn.params["grid_mapping"].grid) * sum(each.flops for each in inside)
            done = Work(flops, flops, 0)
        elif eqn.primitive.name == "cond":
            done = max(inside)
        elif inside:
            done = Work(*(_times(eqn) * sum(numbers) for numbers in zip(*inside)))
        else:
            done = _product(eqn)
        total = Work(*map(sum, zip(total, done)))
    return total


def most_held(jaxpr: Jaxpr, size: Callable[[jax.core.AbstractValue], int]) -> int:
    """Bytes of the values that are held at once, at most, beside the arguments.

    Each value is held from where it is made to where it is last read, as if nothing were fused; in a scan's body also
    what it reads of its stacked arguments.

    Args:
        size: bytes of a value by its shape and dtype.
    """
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars if not isinstance(var, Literal)}
    last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if not isinstance(var, Literal)}
    ends: dict[int, list[Any]] = {}
    held = most = 0
    for i, eqn in enumerate(jaxpr.eqns):
        made = sum(size(var.aval) for var in eqn.outvars)
        inside = max((most_held(each, size) for each in _inside(eqn)), default=0)
        if eqn.primitive.name == "scan":  # its results are those of all its steps
            fixed = eqn.params["num_consts"] + eqn.params["num_carry"]
            inside += made + sum(size(var.aval) for var in eqn.params["jaxpr"].jaxpr.invars[fixed:])
        most = max(most, held + max(made, inside))
        for var in eqn.outvars:
            if last.get(var, i) > i:
                held += size(var.aval)
                ends.setdefault(last[var], []).append(var)
        held -= sum(size(var.aval) for var in ends.pop(i, []))
    return most


def _inside(eqn: Any) -> Iterator[Jaxpr]:
    """The jaxprs that an operation runs."""
    for value in eqn.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, (ClosedJaxpr, Jaxpr)):
                yield getattr(each, "jaxpr", each)


def _times(eqn: Any) -> int:
    """How often an operation runs what is inside it, over all devices."""
    if eqn.primitive.name == "shard_map":  # written for one device
        return eqn.params["mesh"].size
    return eqn.params["length"] if eqn.primitive.name == "scan" else 1


def _product(eqn: Any) -> Work:
    name, result = eqn.primitive.name, eqn.outvars[0].aval if eqn.outvars else None
    if name == "dot_general":
        shape, ((contracted, _), _) = eqn.invars[0].aval.shape, eqn.params["dimension_numbers"]
        flops = 2 * prod(result.shape) * prod(shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
        kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
        flops = 2 * prod(result.shape) * prod(kernel) // kernel[spec[0]]
    else:
        return Work(0, 0, 0)
    arrays = (result, *(var.aval for var in eqn.invars))
    return Work(flops, 0, sum(prod(each.shape) * each.dtype.itemsize for each in arrays))
