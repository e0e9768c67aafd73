"""Whether an experiment fits a TPU slice: the real step of each stage, compiled ahead of time from shapes alone.

No TPU and no memory for weights is needed, only the `libtpu` package, which holds the compiler.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import AlmError, ConfigError, UsageError
from alm_jax.core.mesh import batch_sharding, make_mesh
from alm_jax.core.precision import MIXED
from alm_jax.core.sequence import Batch, Row, collate
from alm_jax.models.alm import AlmConfig
from alm_jax.train.config import Experiment, Stage
from alm_jax.train.features import DTYPE as FEATURE_DTYPE
from alm_jax.train.objectives import OBJECTIVES
from alm_jax.train.optim import make_optimizer
from alm_jax.train.state import abstract_state
from alm_jax.train.step import make_step
from alm_jax.train.weights import StageModel

GIB = 2**30

# Asked of libtpu before it is loaded: look for no TPU and no cloud metadata, share the machine, write no log files.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Chip:
    """What is published of a TPU generation (cloud.google.com/tpu/docs/system-architecture-tpu-vm).

    Attributes:
        hbm: GiB of a chip. devices: JAX devices of a chip, which share its HBM evenly.
        example: a slice of it. options: what libtpu has to be told to make devices as such a machine has them.
    """

    hbm: int
    example: str
    devices: int = 1
    options: tuple[tuple[str, str], ...] = ()


CHIPS: dict[str, Chip] = {
    "v4": Chip(32, "v4:2x2x4", options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(16, "v5e:4x4"),
    "v5p": Chip(95, "v5p:2x2x4"),
    "v6e": Chip(32, "v6e:4x4"),
    "tpu7x": Chip(192, "tpu7x:2x2x2", devices=2),
}


@dataclass(frozen=True)
class Topology:
    """A slice of TPU chips that a step can be compiled for.

    Attributes:
        name: `v5e:4x4`. devices: as JAX would see them there. hbm: bytes of a device.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]

    @property
    def hbm(self) -> int:
        return self.chip.hbm * GIB // self.chip.devices


@dataclass(frozen=True)
class StagePlan:
    """A stage's step on one device (all are alike).

    Attributes:
        stage: its name. same_as: a stage before with the same step, whose numbers these are.
        rows, length: of the global batch in the largest bucket.
        mesh: devices along each axis.
        arguments: bytes of what the step is given: `frozen` and `trained` weights, `optimizer` state, `batch`, and the
            `padding` of these to the device's tiles.
        temporaries, outputs, program: further bytes; outputs do not count what takes the place of a donated argument.
            None where the compiler gave up, which says no more than the total.
        total: bytes of all of these. hbm: bytes that the device has.
        fits: whether it compiled; the compiler keeps about 2 % of the HBM for itself.
        compile_seconds: of lowering and compiling.
    """

    stage: str
    same_as: str | None
    rows: int
    length: int
    mesh: Mapping[str, int]
    arguments: Mapping[str, int]
    temporaries: int | None
    outputs: int | None
    program: int | None
    total: int
    hbm: int
    fits: bool
    compile_seconds: float

    @property
    def headroom(self) -> float:
        """Share of the HBM that is left; below 0 where the step does not fit."""
        return 1 - self.total / self.hbm


def tpu_topology(name: str) -> Topology:
    """The devices of a slice such as `v5e:4x4`: a generation of `CHIPS` and the chips along each side.

    Raises:
        UsageError: there is no such slice.
        AlmError: `libtpu` is not installed.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    examples = ", ".join(chip.example for chip in CHIPS.values())
    if not found or found[1] not in CHIPS:
        guess = did_you_mean(found[1], CHIPS) if found else ""
        raise UsageError(f"topology {name!r} is no GENERATION:SHAPE that is known{guess or ','} such as {examples}")
    chip = CHIPS[found[1]]
    sides = chip.example.count("x", chip.example.index(":")) + 1
    if len(found[2].split("x")) != sides:
        raise UsageError(f"topology {name!r}: slices of {found[1]} have {sides} sides, as in {chip.example}")
    if importlib.util.find_spec("libtpu") is None:
        raise AlmError("compiling for a TPU needs the libtpu package: pip install 'alm_jax[tpu]'")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        made = topologies.get_topology_desc(platform="tpu", topology_name=name, **dict(chip.options))
    except (jax.errors.JaxRuntimeError, IndexError) as error:  # a host of the slice would have no whole 2 x 2 chips
        detail = str(error).partition("\n")[0]
        raise UsageError(f"topology {name!r} cannot be made ({detail}); slices are such as {examples}") from error
    return Topology(name, chip, tuple(made.devices))


def plan(experiment: Experiment, topology: Topology, stages: Sequence[str] = ()) -> Iterator[StagePlan]:
    """Compile the step of each stage for a slice, one after the other.

    Kernels are those that the slice would take. Precision is the experiment's, or bfloat16 over a frozen bfloat16 base.

    Args:
        stages: names of those to compile; empty for all. A stage that differs from one before in nothing that the
            compiler sees takes its numbers.

    Raises:
        ConfigError: a name that no stage has, or the mesh does not fit the slice, the parameters or a batch.
        AlmError: the compiler failed for another reason than memory.
    """
    names = [stage.name for stage in experiment.stages]
    if unknown := [name for name in stages if name not in names]:
        raise ConfigError(
            f"no stage is named {unknown[0]!r}{did_you_mean(unknown[0], names) or '.'} Stages: {', '.join(names)}"
        )
    mesh = make_mesh(experiment.mesh, topology.devices)
    done: list[tuple[Any, StagePlan]] = []
    for stage in experiment.stages:
        if stages and stage.name not in stages:
            continue
        config, texts = experiment.stage_model(stage), experiment.stage_layout(stage).aligner_text_tokens
        seen = (*_seen_by_compiler(stage), texts)
        same = next((result for key, result in done if key == (config, seen)), None)
        if same is not None:
            yield replace(same, stage=stage.name, same_as=same.stage, compile_seconds=0.0)
            continue
        model = StageModel(config, stage, mesh, experiment.precision or MIXED)
        result = _compile(model, topology, texts)
        done.append(((config, seen), result))
        yield result


def _seen_by_compiler(stage: Stage) -> tuple[Any, ...]:
    """What of a stage, beside its model, makes a difference to the compiled step's memory."""
    data, optim = stage.data, replace(stage.optim, learning_rate=1.0, warmup_steps=0)
    step = (stage.trainable, optim, stage.objective, stage.loss_group, stage.micro_batch, stage.features, stage.hears)
    return (*step, data.batch_size, data.buckets[-1], data.max_slots)


def _compile(model: StageModel, topology: Topology, aligner_length: int) -> StagePlan:
    stage, mesh = model.stage, model.mesh
    _ = model.trained  # patterns fit; features are cached of frozen encoders alone
    if stage.features == "cached":
        model = model.reader()
    optimizer = make_optimizer(stage.optim, stage.steps or 1000)  # a constant of the schedule
    trained = {path: leaf for path, leaf in model.target.items() if path in model.trained}
    frozen = {path: leaf for path, leaf in model.target.items() if path not in model.trained}
    state = abstract_state(trained, optimizer, model.shardings, mesh)
    batch = abstract_batch(model.config, stage, mesh, aligner_length)
    step = make_step(
        model.like,
        optimizer,
        model.precision,
        objective=OBJECTIVES[stage.objective],
        loss_group=stage.loss_group,
        micro_batch=stage.micro_batch,
        mesh=mesh,
        state=state,
    )
    arguments = {
        "frozen": _bytes(frozen),
        "trained": _bytes(state.params),
        "optimizer": _bytes((state.step, state.opt_state, state.key)),
        "batch": _bytes(batch),
    }
    shared = {"stage": stage.name, "same_as": None, "rows": batch.shape[0], "length": batch.shape[1]}
    shared |= {"mesh": dict(mesh.shape), "hbm": topology.hbm}
    start = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = step.lower(state, frozen, batch)
        try:
            memory = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            return StagePlan(
                **shared,
                arguments=arguments,
                temporaries=None,
                outputs=None,
                program=None,
                total=_needed(error, stage),
                fits=False,
                compile_seconds=time.monotonic() - start,
            )
    arguments["padding"] = memory.argument_size_in_bytes - sum(arguments.values())
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    further = memory.temp_size_in_bytes, outputs, memory.generated_code_size_in_bytes
    return StagePlan(
        **shared,
        arguments=arguments,
        temporaries=further[0],
        outputs=further[1],
        program=further[2],
        total=memory.argument_size_in_bytes + sum(further),
        fits=True,
        compile_seconds=time.monotonic() - start,
    )


def abstract_batch(config: AlmConfig, stage: Stage, mesh: Mesh, aligner_length: int = 0) -> Batch:
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
    shapes = replace(shapes, audio=jax.ShapeDtypeStruct((rows, slots, *window), dtype))
    place = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)


def _bytes(tree: Any) -> int:
    """On one device."""
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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
