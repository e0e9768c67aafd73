"""What a training step has to compute, counted from shapes, and how much of the devices' peak that is (MFU)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from alm_jax.core.config import apply_overrides, flat
from alm_jax.core.mesh import MESH_AXES
from alm_jax.core.sequence import Batch
from alm_jax.core.tree import Arrays
from alm_jax.train import traced
from alm_jax.train.objectives import OBJECTIVES
from alm_jax.train.optim import Optimizer
from alm_jax.train.state import TrainState
from alm_jax.train.step import make_step
from alm_jax.train.weights import StageModel

Given = tuple[TrainState, Arrays, Batch]

_NONE = AbstractMesh((), ())
_HOST = AbstractDevice("host", None, "cpu")  # for which no kernel is picked
_ONE = AbstractMesh((1,) * len(MESH_AXES), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES), abstract_device=_HOST)
_PLAIN = {"remat": "none", "cross_entropy": "auto"}


def step_jaxpr(
    model: StageModel, optimizer: Optimizer, given: Given, micro_batch: int | None = None
) -> jax.extend.core.Jaxpr:
    """A stage's step, traced from the shapes of what it is given as if one device held them."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given)
    objective = OBJECTIVES[model.stage.objective]
    step = make_step(model.like, optimizer, model.precision, objective=objective, micro_batch=micro_batch)
    return step.trace(*shapes).jaxpr.jaxpr


def model_flops(model: StageModel, optimizer: Optimizer, given: Given) -> int:
    """FLOPs of all products and convolutions of a step that computes nothing twice, on all devices together.

    They are the same whatever the platform: where a kernel would compute more, its reference counts.
    """
    wanted = lambda path, value: _PLAIN.get(path.rpartition(".")[2], value)
    changes = {path: wanted(path, value) for path, value in flat(model.config).items() if wanted(path, value) != value}
    if changes:
        model = replace(model, config=apply_overrides(model.config, changes))
    with use_abstract_mesh(_NONE), use_abstract_mesh(_ONE):  # JAX takes a mesh of another size only in place of none
        return traced.work(step_jaxpr(model, optimizer, given)).flops


class Utilization:
    """How fast the steps of a stage are by the FLOPs that they have to do.

    Args:
        model, optimizer: of the stage. peak: FLOP/s of a device; None where nothing is published of it (a CPU), for
            which nothing is counted: tracing a step takes as long again as before its compilation.
    """

    def __init__(self, model: StageModel, optimizer: Optimizer, peak: float | None):
        self._model, self._optimizer, self._peak = model, optimizer, peak
        self._counts: dict[Any, int] = {}
        self._counted = False
        self._flops, self._seconds = 0, 0.0

    def knows(self, batch: Batch) -> bool:
        """Whether a step of this shape was counted."""
        return _shape(batch) in self._counts

    def flops(self, state: TrainState, frozen: Arrays, batch: Batch) -> int:
        """Of a step on one device. The first of a shape is counted: ask when it is begun and the devices are busy."""
        if not self.knows(batch):
            whole = 0 if self._peak is None else model_flops(self._model, self._optimizer, (state, frozen, batch))
            self._counts[_shape(batch)] = whole // self._model.mesh.size
            self._counted = True
        return self._counts[_shape(batch)]

    def took(self, flops: int, seconds: float) -> dict[str, float]:
        """A step of so many FLOPs took so long: what `metrics.jsonl` says of its speed."""
        if not self._counted:
            self._flops, self._seconds = self._flops + flops, self._seconds + seconds
        self._counted = False
        if self._peak is None:
            return {}
        speed = {"tflops_per_s_per_device": flops / seconds / 1e12, "mfu": flops / seconds / self._peak}
        return {name: float(f"{value:.4g}") for name, value in speed.items()}

    @property
    def mfu(self) -> float | None:
        """Of all steps but those beside which a shape was counted, since it was compiled then; None if unknown."""
        return self._flops / self._seconds / self._peak if self._peak and self._seconds else None


def _shape(batch: Batch) -> tuple[Any, ...]:
    """What a step is compiled for: positions, slots, lengths of texts."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))
