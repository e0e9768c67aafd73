"""`alm plan`: does an experiment fit a TPU slice or some GPUs, and how fast can it be there?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from alm_jax.cli.parse import overridden, parse
from alm_jax.cli.train import read_experiment
from alm_jax.core.errors import UsageError

if TYPE_CHECKING:
    from alm_jax.train.chips import Topology
    from alm_jax.train.plan import Roofline, StagePlan


@dataclass
class Plan:
    """Compile the training step of each stage for a TPU slice and show what it takes of each chip: memory, and time.

    No TPU is needed, and no weights: only the tpu extra (pip install 'alm_jax[tpu]'), and a minute or two a stage. The
    exit code is 1 if a stage does not fit. TOPOLOGY is a generation (v4, v5e, v5p, v6e, tpu7x) and the chips along each
    side of the slice, or of each of mesh.slices; v4, v5p and tpu7x have three sides. Of GPUs (a100, h100, h200, b200)
    it is their number; their figures are estimated from shapes, without a compiler.

    examples:
      alm plan ltu/vicuna_7b
      alm plan ltu/vicuna_7b --topology v5p:2x2x1 --stage open
      alm plan ltu/vicuna_7b --topology v6e:4x4 --set mesh.data=4 --set model.decoder.remat=dots
      alm plan ltu/vicuna_7b --stage open --largest-micro-batch
      alm plan ltu/vicuna_7b --topology h100:8
      alm plan my_config.py --topology v4:2x2x2 --json
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """path of a config file, a shipped one such as ltu/vicuna_7b, or a run's folder"""
    topology: Annotated[str | None, tyro.conf.arg(metavar="TOPOLOGY")] = None
    """the chips: v5e:4x4, v5p:2x2x4, h100:8, ...; without it the first that the config names"""
    stage: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """only this stage"""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH=VALUE")] = ()
    """change a value of the config"""
    largest_micro_batch: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """look for the largest micro-batch that leaves a tenth of the memory; compiles two or three more a stage"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print one JSON object: sizes in bytes, times in seconds"""


def run(args: list[str]) -> int:
    """Compile, print a table a stage as it is done, and say by the exit code whether all fit."""
    options = parse(Plan, args, "plan")
    experiment = overridden(read_experiment(options.config), options.set)
    if options.topology is None and not experiment.topologies:
        raise UsageError(f"{options.config} names no topology: say which by --topology, such as v5e:4x4")

    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine has no part in it

    from alm_jax.train.chips import find_topology
    from alm_jax.train.plan import plan

    topology = find_topology(options.topology or experiment.topologies[0], max(1, experiment.mesh.slices))
    tell = lambda line: print(f"{line} ...", file=sys.stderr, flush=True)
    fits, results = True, []
    stages = plan(experiment, topology, options.stage, largest=options.largest_micro_batch, progress=tell)
    for number, result in enumerate(stages):
        fits &= result.fits
        results.append(result)
        if not options.json:
            heading = f"{experiment.name} on {_chips(topology)}; mesh {_mesh(result)}\n" if number == 0 else ""
            print(f"{heading}\n{table(result, topology)}", flush=True)
    if options.json:
        chips = len(topology.devices) // topology.chip.devices
        entries = [_entry(result) for result in results]
        print(json.dumps({"topology": topology.name, "chips": chips, "fits": fits, "stages": entries}, indent=2))
    return 0 if fits else 1


def _entry(result: StagePlan) -> dict[str, Any]:
    entry = {**asdict(result), "headroom": round(result.headroom, 4)}
    if result.roofline is not None:
        entry["roofline"]["seconds"] = result.roofline.seconds
    return entry


def table(result: StagePlan, topology: Topology) -> str:
    """A stage's memory, a kind a line, the verdict, and what bounds its time."""
    title = f"stage {result.stage}: {result.rows} rows x {result.length} positions"
    if result.same_as is not None:
        return f"{title}: the same step as stage {result.same_as}, {_verdict(result)}"
    if result.micro_batch < result.rows:
        title += f", {result.micro_batch} rows at a time"
    names = {
        "frozen": "frozen weights",
        "trained": "trained weights",
        "optimizer": "optimiser state",
        "batch": "batch",
        "padding": "padding to tiles",
    }
    sizes = {names[kind]: size for kind, size in result.arguments.items()}
    further = {"temporaries": result.temporaries, "outputs": result.outputs, "program": result.program}
    if result.temporaries is None:
        further = {"temporaries and the rest": result.total - sum(result.arguments.values())}
    sizes |= {name: size for name, size in further.items() if size is not None}
    how = "counted from shapes" if result.estimated else "compiled"
    lines = {name: _size(size) for name, size in sizes.items()}
    took = f" ({how} in {result.compile_seconds:.0f} s)" if result.compile_seconds else ""
    lines["total"] = f"{_size(result.total)} of {_size(result.hbm).strip()}: {_verdict(result)}{took}"
    if result.roofline is not None:
        lines |= _times(result.roofline, topology)
    if result.largest_micro_batch is not None:
        lines["largest micro-batch"] = f"{result.largest_micro_batch or 'none'} with a tenth of the memory left"
    width = max(map(len, lines))
    return "\n".join([title, *(f"  {name:{width}} {text}" for name, text in lines.items())])


def _times(roofline: Roofline, topology: Topology) -> dict[str, str]:
    from alm_jax.train.hlo import BETWEEN_SLICES

    arrives = sum(each.received for each in roofline.collectives if each.kind != BETWEEN_SLICES)
    done, needed = roofline.flops / 1e12, roofline.model_flops / 1e12
    speeds = topology.peak / 1e12, topology.bandwidth / 1e9, topology.link / 1e9
    lines = {
        "compute": f"{_ms(roofline.compute)} {done:.2f} TFLOP ({needed:.2f} of the model), {speeds[0]:.0f} TFLOP/s",
        "memory": f"{_ms(roofline.memory)} {roofline.bytes / 1e9:.1f} GB, {speeds[1]:.0f} GB/s",
        "network": f"{_ms(roofline.network)} {arrives / 1e9:.2f} GB arrive, {speeds[2]:.0f} GB/s",
    }
    for each in roofline.collectives:
        lines[f"  {each.kind}"] = (
            f"{each.count:8} of {each.bytes / 1e9:.2f} GB in all, {each.received / 1e9:.2f} GB arrive"
        )
        if each.kind == BETWEEN_SLICES:
            rate = f"{topology.network / 1e9:.0f} GB/s" if topology.network else "at a rate that is not known"
            lines[f"  {each.kind}"] += f", {rate}"
    lines["step"] = f"{_ms(roofline.seconds)}at least, MFU {roofline.mfu:.0%} at most"
    if roofline.unknown_loops:
        lines["step"] += f"; loops of unknown length, counted once: {roofline.unknown_loops}"
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:8.1f} ms "


def _verdict(result: StagePlan) -> str:
    if not result.fits:
        return f"does not fit; {_hints(result)}"
    return f"fits, headroom {result.headroom:.0%}" + ("" if result.headroom >= 0.1 else "; leave a tenth")


def _hints(result: StagePlan) -> str:
    arguments = sum(result.arguments.values())
    if arguments > result.hbm // 2:
        return "divide the weights further (mesh.fsdp, mesh.tensor) or take a larger slice"
    return "lower micro_batch, take remat=full in the decoder and encoder, or a larger slice"


def _chips(topology: Topology) -> str:
    chips = len(topology.devices) // topology.chip.devices
    note = "" if topology.chip.devices == 1 else f", each {topology.chip.devices} devices, figures for one"
    if topology.chip.kind == "gpu":
        note = ", estimated from shapes: nothing was compiled"
    return f"{topology.name}: {chips} chips of {topology.chip.hbm} GiB{note}"


def _mesh(result: StagePlan) -> str:
    return " x ".join(f"{name} {size}" for name, size in result.mesh.items())


def _size(size: int) -> str:
    return f"{size / 2**30:8.2f} GiB" if size >= 2**26 else f"{size / 2**20:8.2f} MiB"
