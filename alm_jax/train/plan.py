"""Whether an experiment fits chips that need not be there, and how fast its step can be on them at best.

For TPUs the real step of each stage is compiled ahead of time from shapes alone: no TPU and no memory for weights is
needed, only the `libtpu` package, which holds the compiler. For GPUs, whose compiler wants one, it is traced and
counted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from alm_jax.core import axes as ax
from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import AlmError, ConfigError
from alm_jax.core.mesh import DEFAULT_RULES, batch_sharding, make_mesh
from alm_jax.core.precision import MIXED
from alm_jax.core.sequence import Batch, Row, collate
from alm_jax.data.waveforms import Waveforms
from alm_jax.models.alm import AlmConfig
from alm_jax.train import hlo, traced
from alm_jax.train.chips import GIB, Topology
from alm_jax.train.config import Experiment, Stage
from alm_jax.train.features import DTYPE as FEATURE_DTYPE
from alm_jax.train.hlo import Collective
from alm_jax.train.model_flops import model_flops, step_jaxpr
from alm_jax.train.objectives import OBJECTIVES
from alm_jax.train.optim import Optimizer, make_optimizer
from alm_jax.train.state import TrainState, abstract_state
from alm_jax.train.step import make_step
from alm_jax.train.weights import StageModel

LEFT_FREE = 0.1
"""Share of the HBM that a step should leave to other buckets, validation and checkpoints."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Roofline:
    """The least time that a step can take on one device, by what is published of it.

    Attributes:
        flops: that the step does, of matrix products and convolutions. model_flops: those that it has to do: of a step
            that computes nothing twice.
        bytes: between the device and its HBM. collectives: what devices exchange.
        compute, memory, network: seconds that each would take by itself.
        mfu: share of the device's peak that `model_flops` are in the longest of the three; a real step's is lower.
        unknown_loops: loops that were counted once, since nothing tells how often they run.
    """

    flops: int
    model_flops: int
    bytes: int
    collectives: tuple[Collective, ...]
    compute: float
    memory: float
    network: float
    mfu: float
    unknown_loops: int

    @property
    def seconds(self) -> float:
        """Of a step, if computing, memory and network wait for nothing."""
        return max(self.compute, self.memory, self.network)


@dataclass(frozen=True)
class StagePlan:
    """A stage's step on one device (all are alike).

    Attributes:
        stage: its name. same_as: a stage before with the same step, whose numbers these are.
        rows, length: of the global batch in the largest bucket. micro_batch: rows at a time.
        mesh: devices along each axis.
        arguments: bytes of what the step is given: `frozen` and `trained` weights, `optimizer` state, `batch`, and the
            `padding` of these to the device's tiles.
        temporaries, outputs, program: further bytes; outputs do not count what takes the place of a donated argument.
            None where the compiler gave up, which says no more than the total, or was not asked.
        total: bytes of all of these. hbm: bytes that the device has.
        fits: whether it compiled; the compiler keeps about 2 % of the HBM for itself.
        estimated: whether temporaries and exchanges were counted from shapes, without a compiler.
        roofline: None where there is no program.
        compile_seconds: of tracing, lowering and compiling.
        largest_micro_batch: with which `LEFT_FREE` of the HBM is left; 0 if none does, None if it was not looked for.
    """

    stage: str
    same_as: str | None
    rows: int
    length: int
    micro_batch: int
    mesh: Mapping[str, int]
    arguments: Mapping[str, int]
    temporaries: int | None
    outputs: int | None
    program: int | None
    total: int
    hbm: int
    fits: bool
    estimated: bool
    roofline: Roofline | None
    compile_seconds: float
    largest_micro_batch: int | None = None

    @property
    def headroom(self) -> float:
        """Share of the HBM that is left; below 0 where the step does not fit."""
        return 1 - self.total / self.hbm


def plan(
    experiment: Experiment,
    topology: Topology,
    stages: Sequence[str] = (),
    *,
    largest: bool = False,
    progress: Progress = lambda line: None,
) -> Iterator[StagePlan]:
    """Plan the step of each stage for some chips, one after the other.

    Kernels are those that a TPU slice would take. Precision is the experiment's, or bfloat16 over a frozen bfloat16
    base.

    Args:
        stages: names of those to plan; empty for all. A stage that differs from one before in nothing that the
            compiler sees takes its numbers.
        largest: look for the largest micro-batch, too, by compiling more of them.
        progress: is told what is compiled next.

    Raises (before anything is compiled):
        ConfigError: a name that no stage has, or the mesh does not fit the devices, the parameters, heads or a batch.
    Raises:
        AlmError: the compiler failed for another reason than memory.
    """
    names = [stage.name for stage in experiment.stages]
    if unknown := [name for name in stages if name not in names]:
        raise ConfigError(
            f"no stage is named {unknown[0]!r}{did_you_mean(unknown[0], names) or '.'} Stages: {', '.join(names)}"
        )
    mesh = _mesh(experiment, topology)
    wanted = [stage for stage in experiment.stages if not stages or stage.name in stages]
    steps = {stage.name: _stage_step(experiment, stage, topology, mesh) for stage in wanted}
    for step in steps.values():
        step.check()
    done: list[tuple[Any, StagePlan]] = []
    for stage in wanted:
        step = steps.pop(stage.name)
        key = (step.model.config, *_seen_by_compiler(stage), step.aligner_length)
        same = next((result for known, result in done if known == key), None)
        if same is not None:
            yield replace(same, stage=stage.name, same_as=same.stage, compile_seconds=0.0)
            continue
        result = step.planned(progress)
        if largest:
            result = replace(result, largest_micro_batch=_largest_micro_batch(step, result, progress))
        done.append((key, result))
        yield result


def _mesh(experiment: Experiment, topology: Topology) -> Mesh | AbstractMesh:
    try:
        mesh = make_mesh(experiment.mesh, topology.devices)
    except ConfigError as error:
        raise ConfigError(f"topology {topology.name}: {error}") from error
    return mesh if topology.chip.kind == "tpu" else mesh.abstract_mesh


def _stage_step(experiment: Experiment, stage: Stage, topology: Topology, mesh: Mesh | AbstractMesh) -> _StageStep:
    model = StageModel(experiment.stage_model(stage), stage, mesh, experiment.precision or MIXED)
    _ = model.trained  # patterns fit; features are cached of frozen encoders alone
    if stage.features == "cached":
        model = model.reader()
    return _StageStep(model, topology, experiment.stage_layout(stage).aligner_text_tokens)


def _seen_by_compiler(stage: Stage) -> tuple[Any, ...]:
    """What of a stage, beside its model, makes a difference to the compiled step."""
    data, optim = stage.data, replace(stage.optim, learning_rate=1.0, warmup_steps=0)
    step = (stage.trainable, optim, stage.objective, stage.loss_group, stage.micro_batch, stage.features, stage.hears)
    return (*step, stage.front_end, data.batch_size, data.buckets[-1], data.max_slots)


def _largest_micro_batch(step: _StageStep, known: StagePlan, progress: Progress) -> int:
    """By bisection among those that divide the batch, given the plan of one."""
    rows, shards = known.rows, step.shards
    sizes = [size for size in range(shards, rows + 1, shards) if rows % size == 0]
    fits = lambda result: result.fits and result.headroom >= LEFT_FREE
    at = sizes.index(known.micro_batch)
    low, high = (at, len(sizes)) if fits(known) else (-1, at)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(step.of(sizes[middle]).planned(progress)) else (low, middle)
    return sizes[low] if low >= 0 else 0


@dataclass(frozen=True)
class _StageStep:
    """The training step of a stage on some devices, from shapes alone."""

    model: StageModel
    topology: Topology
    aligner_length: int

    @property
    def stage(self) -> Stage:
        return self.model.stage

    @property
    def mesh(self) -> Mesh | AbstractMesh:
        return self.model.mesh

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Mesh axes that divide rows."""
        return dict(DEFAULT_RULES.mapping)[ax.BATCH]

    @property
    def shards(self) -> int:
        """Parts that rows are divided into."""
        return prod(self.mesh.shape[axis] for axis in self.row_axes)

    @property
    def micro_batch(self) -> int:
        return self.stage.micro_batch or self.stage.data.batch_size

    def of(self, micro_batch: int) -> _StageStep:
        """The same with another micro-batch."""
        stage = replace(self.stage, micro_batch=micro_batch)
        return replace(self, model=replace(self.model, stage=stage))

    def check(self) -> None:
        """
        Raises:
            ConfigError: the mesh does not divide a batch, the decoder's heads or a parameter.
        """
        try:
            self.model.check_batches()
            _ = self.model.target
        except ConfigError as error:
            raise ConfigError(f"topology {self.topology.name}: {error}") from error

    @cached_property
    def optimizer(self) -> Optimizer:
        return make_optimizer(self.stage.optim, self.stage.steps or 1000)  # a constant of the schedule

    @cached_property
    def given(self) -> tuple[TrainState, dict[str, Any], Batch]:
        """State, frozen weights and the largest batch."""
        model = self.model
        trained = {path: leaf for path, leaf in model.target.items() if path in model.trained}
        frozen = {path: leaf for path, leaf in model.target.items() if path not in model.trained}
        state = abstract_state(trained, self.optimizer, model.shardings, self.mesh)
        return state, frozen, abstract_batch(model.config, self.stage, self.mesh, self.aligner_length)

    @cached_property
    def arguments(self) -> dict[str, int]:
        """Bytes of a device's part of these."""
        state, frozen, batch = self.given
        return {
            "frozen": _bytes(frozen),
            "trained": _bytes(state.params),
            "optimizer": _bytes((state.step, state.opt_state, state.key)),
            "batch": _bytes(batch),
        }

    def planned(self, progress: Progress) -> StagePlan:
        """Compiled for TPUs, counted for GPUs; neither if its arguments are too large by themselves."""
        if (total := sum(self.arguments.values())) > self.topology.hbm:
            return self._result(total=total, fits=False, compile_seconds=0.0)
        on = f"stage {self.stage.name} on {self.topology.name}, {self.micro_batch} rows at a time"
        if self.topology.chip.kind == "gpu":
            progress(f"counting {on}")
            return self._counted()
        progress(f"compiling {on}")
        return self._compiled()

    def _result(self, total: int, fits: bool, **values: Any) -> StagePlan:
        data = self.stage.data
        shared = dict(stage=self.stage.name, same_as=None, rows=data.batch_size, length=data.buckets[-1])
        shared |= dict(micro_batch=self.micro_batch, mesh=dict(self.mesh.shape), arguments=self.arguments)
        shared |= dict(temporaries=None, outputs=None, program=None, estimated=False, roofline=None)
        return StagePlan(**{**shared, "total": total, "hbm": self.topology.hbm, "fits": fits, **values})

    def _compiled(self) -> StagePlan:
        start, state = time.monotonic(), self.given[0]
        step = make_step(
            self.model.like,
            self.optimizer,
            self.model.precision,
            objective=OBJECTIVES[self.stage.objective],
            loss_group=self.stage.loss_group,
            micro_batch=self.stage.micro_batch,
            mesh=self.mesh,
            state=state,
        )
        with jax.set_mesh(self.mesh):
            trace = step.trace(*self.given)
            lowered = trace.lower()
            try:
                compiled = lowered.compile()
            except jax.errors.JaxRuntimeError as error:
                seconds = time.monotonic() - start
                return self._result(total=_needed(error, self.stage), fits=False, compile_seconds=seconds)
        seconds, memory = time.monotonic() - start, compiled.memory_analysis()
        arguments = {**self.arguments, "padding": memory.argument_size_in_bytes - sum(self.arguments.values())}
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        further = memory.temp_size_in_bytes, outputs, memory.generated_code_size_in_bytes
        cost = hlo.cost(compiled.as_text(), self.mesh.size)
        flops = cost.flops + traced.work(trace.jaxpr.jaxpr).in_kernels // self.mesh.size
        return self._result(
            total=memory.argument_size_in_bytes + sum(further),
            fits=True,
            arguments=arguments,
            **dict(zip(("temporaries", "outputs", "program"), further)),
            roofline=self._roofline(flops, cost.bytes, cost.collectives, cost.unknown_loops),
            compile_seconds=seconds,
        )

    def _counted(self) -> StagePlan:
        start = time.monotonic()
        state, frozen, batch = self.given
        rows = lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0] // self.shards, *leaf.shape[1:]), leaf.dtype)
        alone = state, frozen, jax.tree.map(rows, batch)
        jaxpr = step_jaxpr(self.model, self.optimizer, alone, self.micro_batch // self.shards)
        held = {leaf.shape: prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in self.model.target.values()}
        size = lambda value: _itemsize(value) * held.get(value.shape, prod(value.shape))
        temporaries = traced.most_held(jaxpr, size)
        done = traced.work(jaxpr)
        total = sum(self.arguments.values()) + temporaries
        return self._result(
            total=total,
            fits=total <= self.topology.hbm,
            temporaries=temporaries,
            estimated=True,
            roofline=self._roofline(self._share(done.flops), self._share(done.bytes), self._exchanged(), 0),
            compile_seconds=time.monotonic() - start,
        )

    def _roofline(self, flops: int, moved: int, collectives: tuple[Collective, ...], unknown: int) -> Roofline:
        chip = self.topology
        needed = model_flops(self.model, self.optimizer, self.given) // self.mesh.size
        inside = sum(each.received for each in collectives if each.kind != hlo.BETWEEN_SLICES)
        outside = sum(each.received for each in collectives if each.kind == hlo.BETWEEN_SLICES)
        network = max(inside / chip.link, outside / chip.network if chip.network else 0.0)
        times = flops / chip.peak, moved / chip.bandwidth, network
        mfu = needed / chip.peak / max(times)
        return Roofline(flops, needed, moved, collectives, *times, mfu, unknown)

    def _share(self, number: int) -> int:
        """Of what a row's devices do together."""
        return number * self.shards // self.mesh.size

    def _exchanged(self) -> tuple[Collective, ...]:
        """What dividing weights over rows costs: each micro-batch gathers them forward and backward, in the compute
        dtype, and sums up gradients in float32. What `mesh.tensor` exchanges is not counted."""
        sums = {"all-gather": [0, 0, 0], "reduce-scatter": [0, 0, 0], "all-reduce": [0, 0, 0]}
        micros = self.stage.data.batch_size // self.micro_batch

        def add(kind: str, times: int, whole: int, received: float) -> None:
            for i, number in enumerate((times, times * whole, round(times * received))):
                sums[kind][i] += number

        for path, leaf in self.model.target.items():
            held, used = prod(leaf.sharding.shard_shape(leaf.shape)), jnp.dtype(self.model.precision.compute).itemsize
            axes = [axis for entry in leaf.sharding.spec for axis in (entry if isinstance(entry, tuple) else (entry,))]
            parts = prod(self.mesh.shape[axis] for axis in axes if axis in self.row_axes)
            alike = self.shards // parts
            if parts > 1:
                each = min(used, _itemsize(leaf)) * held
                add("all-gather", 2 * micros, each * parts, each * (parts - 1))
            if path in self.model.trained and parts > 1:
                add("reduce-scatter", micros, 4 * held * parts, 4 * held * (parts - 1))
            if path in self.model.trained and alike > 1:
                add("all-reduce", micros, 4 * held, 4 * held * 2 * (alike - 1) / alike)
        return tuple(Collective(kind, *numbers) for kind, numbers in sums.items() if numbers[0])


def abstract_batch(config: AlmConfig, stage: Stage, mesh: Mesh | AbstractMesh, aligner_length: int = 0) -> Batch:
    """Shapes, dtypes and shardings of the largest batch of a stage, as the data pipeline makes it.

    Each of its rows hears as much as `data.max_slots` allows, or one clip where that is None. `config` is the model
    that reads it: without its encoder where the stage's features are cached. `aligner_length` is that of the texts that
    its aligner reads.
    """
    rows, length, slots = stage.data.batch_size, stage.data.buckets[-1], stage.data.max_slots or 1
    none = np.zeros(0)
    shapes = collate([Row(*(none,) * 6)] * rows, length, slots=slots, aligner_length=aligner_length)
    dtype = jnp.dtype(FEATURE_DTYPE if config.encoder is None else jnp.float32)
    window = config.audio_shape
    if stage.hears == "text" and config.encoder is not None:
        window, dtype = (config.encoder.text_tokens,), jnp.int32
    if stage.front_end == "device":
        window = Waveforms(config.frontend).feature_shape
        shapes = replace(shapes, audio_samples=jax.ShapeDtypeStruct((rows, slots), jnp.int32))
    shapes = replace(shapes, audio=jax.ShapeDtypeStruct((rows, slots, *window), dtype))
    place = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)


def _bytes(tree: Any) -> int:
    """On one device."""
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf) for leaf in jax.tree.leaves(tree))


def _itemsize(leaf: Any) -> int:
    """Of an element; a typed key is two words."""
    return 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.dtype(leaf.dtype).itemsize


def _needed(error: Exception, stage: Stage) -> int:
    """Bytes that a step would take of the HBM, from the message of a compiler that ran out of it.

    Raises:
        AlmError: that is not what the message says.
    """
    message = str(error)
    found = re.search(r"([\d.]+)([KMG]?)\) exceeds available HBM", message)
    if not found:
        line = " ".join(message.split())[:500]
        raise AlmError(f"stage {stage.name!r}: the TPU compiler failed: {line}") from error
    return int(float(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": GIB}[found[2]])
