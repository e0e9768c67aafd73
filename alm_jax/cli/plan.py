"""`alm plan`: does an experiment fit a TPU slice?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from alm_jax.cli.parse import overridden, parse
from alm_jax.cli.train import read_experiment

if TYPE_CHECKING:
    from alm_jax.train.plan import StagePlan, Topology


@dataclass
class Plan:
    """Compile the training step of each stage for a TPU slice and show what it takes of each chip's memory.

    No TPU is needed, and no weights: only the tpu extra (pip install 'alm_jax[tpu]'), and a minute or two a stage. The
    exit code is 1 if a stage does not fit. TOPOLOGY is a generation (v4, v5e, v5p, v6e, tpu7x) and the chips along each
    side of the slice; v4, v5p and tpu7x have three sides.

    examples:
      alm plan ltu/vicuna_7b --topology v5e:4x4
      alm plan ltu/vicuna_7b --topology v5p:2x2x1 --stage open
      alm plan ltu/vicuna_7b --topology v6e:4x4 --set mesh.data=4 --set model.decoder.remat=dots
      alm plan my_config.py --topology v4:2x2x2 --json
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """path of a config file, a shipped one such as ltu/vicuna_7b, or a run's folder"""
    topology: Annotated[str, tyro.conf.arg(metavar="TOPOLOGY")]
    """the slice: v5e:4x4, v5p:2x2x4, ..."""
    stage: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """only this stage"""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH=VALUE")] = ()
    """change a value of the config"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print one JSON object, sizes in bytes"""


def run(args: list[str]) -> int:
    """Compile, print a table a stage as it is done, and say by the exit code whether all fit."""
    options = parse(Plan, args, "plan")
    experiment = overridden(read_experiment(options.config), options.set)

    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine has no part in it

    from alm_jax.train.plan import plan, tpu_topology

    topology = tpu_topology(options.topology)
    fits, results = True, []
    for number, result in enumerate(plan(experiment, topology, options.stage)):
        fits &= result.fits
        results.append(result)
        if not options.json:
            heading = f"{experiment.name} on {_slice(topology)}; mesh {_mesh(result)}\n" if number == 0 else ""
            print(f"{heading}\n{table(result)}", flush=True)
    if options.json:
        stages = [{**asdict(result), "headroom": round(result.headroom, 4)} for result in results]
        chips = len(topology.devices) // topology.chip.devices
        print(json.dumps({"topology": topology.name, "chips": chips, "fits": fits, "stages": stages}, indent=2))
    return 0 if fits else 1


def table(result: StagePlan) -> str:
    """A stage's memory, a kind a line, and the verdict."""
    title = f"stage {result.stage}: {result.rows} rows x {result.length} positions"
    if result.same_as is not None:
        return f"{title}: the same step as stage {result.same_as}, {_verdict(result)}"
    names = {
        "frozen": "frozen weights",
        "trained": "trained weights",
        "optimizer": "optimiser state",
        "batch": "batch",
        "padding": "padding to tiles",
    }
    lines = {names[kind]: size for kind, size in result.arguments.items()}
    if result.temporaries is not None:
        lines |= {"temporaries": result.temporaries, "outputs": result.outputs, "program": result.program}
    else:
        lines["temporaries and the rest"] = result.total - sum(result.arguments.values())
    width = max(map(len, lines))
    body = [f"  {name:{width}} {_size(size)}" for name, size in lines.items()]
    verdict = f"  {'total':{width}} {_size(result.total)} of {_size(result.hbm).strip()}: {_verdict(result)}"
    return "\n".join([title, *body, f"{verdict} (compiled in {result.compile_seconds:.0f} s)"])


def _verdict(result: StagePlan) -> str:
    if result.fits:
        return f"fits, headroom {result.headroom:.0%}"
    return f"does not fit; {_hints(result)}"


def _hints(result: StagePlan) -> str:
    arguments = sum(result.arguments.values())
    if arguments > result.hbm // 2:
        return "divide the weights further (mesh.fsdp, mesh.tensor) or take a larger slice"
    return "lower micro_batch, take remat=full in the decoder and encoder, or a larger slice"


def _slice(topology: Topology) -> str:
    chips = len(topology.devices) // topology.chip.devices
    note = "" if topology.chip.devices == 1 else f", each {topology.chip.devices} devices, figures for one"
    return f"{topology.name}: {chips} chips of {topology.chip.hbm} GiB{note}"


def _mesh(result: StagePlan) -> str:
    return " x ".join(f"{name} {size}" for name, size in result.mesh.items())


def _size(size: int) -> str:
    return f"{size / 2**30:8.2f} GiB" if size >= 2**26 else f"{size / 2**20:8.2f} MiB"
