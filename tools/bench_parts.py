"""What a run needs around the arithmetic of its steps: the front end, compiling, dispatching, checkpoints."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from bench_cases import on_cpu
from bench_systems import (
    TRAINED,
    Shape,
    Side,
    System,
    abstract_model,
    drawn,
    our_step,
    shapes,
    their_step,
    torch_device,
)

SECONDS, MELS = 10.0, 80  # of a clip; kaldi-native-fbank refuses LTU's 128 bands, of which one is empty
DEPTH = 32  # of the decoder of 7B models


def front_end() -> Iterator[System]:
    """Filterbanks of clips, from samples on the host, against kaldi-native-fbank, which takes one core.

    Raises:
        AlmError: the features of the sides differ.
    """
    import jax
    import numpy as np
    from bench_input import TOLERANCE, kaldi_fbank, kaldi_options

    from alm_jax.audio import KaldiFbank
    from alm_jax.core.errors import AlmError
    from alm_jax.data.mixing import noise

    ours, options, clips = KaldiFbank(num_mels=MELS), kaldi_options(MELS), 8 if on_cpu() else 64
    rng = np.random.default_rng(0)
    waves = np.stack([noise(1.0, int(SECONDS * ours.sample_rate), ours.sample_rate, rng) for _ in range(clips)])
    waves = (0.3 * waves / np.abs(waves).max()).astype(np.float32)
    lengths, jitted = np.full(clips, waves.shape[1]), jax.jit(ours.jax)
    sides: dict[str, Callable[[], Any]] = {
        "numpy": lambda: [ours.numpy(wave) for wave in waves],
        "jax": lambda: jax.block_until_ready(jitted(waves, lengths)),
    }
    theirs = lambda: [kaldi_fbank(options, wave) for wave in waves]
    expected = theirs()
    for name, side in sides.items():
        apart = float(np.abs(np.stack(side()) - np.stack(expected)).max())
        if not apart <= TOLERANCE:
            raise AlmError(f"features of KaldiFbank.{name} are {apart:.3g} off, more than {TOLERANCE}: not measured")
        title = f"KaldiFbank.{name}, {clips} clips of {SECONDS:g} s, {MELS} bands"
        note = f"Features of KaldiFbank.{name} are at most {apart:.1g} from kaldi-native-fbank's."
        yield System(title, *(partial(Side, _silent(run)) for run in (side, theirs)), clips, "clips", note)


def _silent(work: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        work()

    return run


def compiling() -> Iterator[System]:
    """From LTU's training step, as shapes, to a program, nothing kept from before; against the same step with the scans
    over its layers unrolled, which is what a compiler gets of layers that are called one after the other.

    The other side is not traced layer by layer: its trace is ours, rewritten.
    """
    shape = shapes(rows=4, text=96)[-1]
    yield System(shape.title, partial(_compiling, shape, False), partial(_compiling, shape, True))


def _compiling(shape: Shape, unrolled: bool) -> Side:
    import jax
    from jax.extend.core import jaxpr_as_fun

    jax.config.update("jax_enable_compilation_cache", False)

    def run() -> dict[str, float]:
        jax.clear_caches()
        step, make = our_step(shape)
        arguments = jax.eval_shape(make)
        began = time.perf_counter()
        traced = step.trace(*arguments)
        if unrolled:
            depths = {shape.config.encoder.depth, shape.config.decoder.depth}
            flat = jax.jit(jaxpr_as_fun(unroll(traced.jaxpr, depths)))
            traced = flat.trace(*jax.tree.leaves(arguments))
        lowered = traced.lower()
        middle = time.perf_counter()
        lowered.compile()
        return {"trace and lower": middle - began, "compile": time.perf_counter() - middle}

    return Side(run)


def unroll(jaxpr: Any, lengths: set[int]) -> Any:
    """The same function with scans of these lengths written out, wherever they are in it."""
    from jax.extend.core import ClosedJaxpr, Jaxpr

    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.replace(jaxpr=unroll(jaxpr.jaxpr, lengths))
    if type(jaxpr) is tuple:  # branches
        return tuple(unroll(each, lengths) for each in jaxpr)
    if not isinstance(jaxpr, Jaxpr):
        return jaxpr
    eqns = []
    for eqn in jaxpr.eqns:
        params = {name: unroll(value, lengths) for name, value in eqn.params.items()}
        if eqn.primitive.name == "scan" and params["length"] in lengths:
            params["unroll"] = params["length"]
        eqns.append(eqn.replace(params=params))
    return jaxpr.replace(eqns=eqns)


def host() -> Iterator[System]:
    """What a training step costs beside its arithmetic: LTU's depth, but so narrow that hardly any arithmetic is left.

    On a CPU, where the host itself computes, the end of the step says more than its dispatch.
    """
    from alm_jax.models.decoders.llama import LlamaConfig
    from alm_jax.models.encoders.cav_mae import CavMaeConfig

    decoder = LlamaConfig(vocab_size=256, dim=32, depth=DEPTH, heads=2, kv_heads=2, mlp_dim=64)
    shape = Shape(f"{DEPTH} narrow layers", decoder, CavMaeConfig(frames=256, mels=32, dim=16, heads=2), 2, 8)
    note = "" if not on_cpu() else "PyTorch computes on the host here: what it dispatches is done when it returns."
    yield System(shape.title, partial(_our_dispatch, shape), partial(_their_dispatch, shape), note=note)


def _our_dispatch(shape: Shape) -> Side:
    import jax

    step, make = our_step(shape)
    state, frozen, batch = jax.device_put(make())
    held = {"state": state}

    def dispatch() -> Any:
        held["state"], metrics = step(held["state"], frozen, batch)
        return metrics["loss"]

    return Side(_dispatched(dispatch))


def _their_dispatch(shape: Shape) -> Side:
    import torch

    torch.set_num_threads(1)  # products this small gain nothing by more, and wait for them on a busy machine
    return Side(_dispatched(their_step(shape)[0]))


def _dispatched(step: Callable[[], Any]) -> Callable[[], dict[str, float]]:
    """Times a step until it returns its loss, and until the loss is there."""

    def run() -> dict[str, float]:
        began = time.perf_counter()
        loss = step()
        middle = time.perf_counter()
        loss.item()
        return {"until it is dispatched": middle - began, "until its end": time.perf_counter() - began}

    return run


def checkpoint() -> Iterator[System]:
    """How long training stands still for a save of what LTU trains and its moments, and until that is on disk, against
    `torch.save` of the same. Both write to the folder for temporary files (TMPDIR).
    """
    import jax

    from alm_jax.train.checkpoint import Checkpoints, StageFolder

    for shape in _saved():
        state = _trained(shape)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        title = f"LTU over {shape.name}, {size / 1e6:.1f} MB"
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work, "ours")
            folder.mkdir()
            with Checkpoints(StageFolder(folder)) as checkpoints:
                yield System(title, partial(_our_saves, checkpoints, state), partial(_their_saves, Path(work), state))


def _saved() -> list[Shape]:
    """Models that checkpoints are of: of what is frozen nothing is made, so that LTU fits anywhere."""
    from alm_jax.models.encoders.cav_mae import CavMaeConfig
    from alm_jax.models.registry import named_config

    small = shapes(rows=1, text=1)[:1] if on_cpu() else []
    return [*small, Shape("vicuna_7b", named_config("vicuna_7b"), CavMaeConfig(), 1, 1)]


def _trained(shape: Shape) -> Any:
    """What a run over this shape trains, and its moments, without what is frozen."""
    import jax

    from alm_jax.train.optim import OptimConfig, make_optimizer
    from alm_jax.train.state import create_state

    params = drawn(abstract_model(shape, TRAINED)[1][0], "float32")
    optimizer = make_optimizer(OptimConfig(), 100)
    return jax.block_until_ready(create_state(params, optimizer, jax.random.key(1)))


def _our_saves(checkpoints: Any, state: Any) -> Side:
    steps = count(1)

    def run() -> dict[str, float]:
        began = time.perf_counter()
        checkpoints.save(state, next(steps))
        middle = time.perf_counter()
        checkpoints.wait()
        return {"training stands still": middle - began, "until it is on disk": time.perf_counter() - began}

    return Side(run)


def _their_saves(folder: Path, state: Any) -> Side:
    import numpy as np
    import torch

    device = torch_device()
    params = {path: torch.tensor(np.asarray(leaf), device=device) for path, leaf in state.params.items()}
    optimizer = torch.optim.AdamW([leaf.requires_grad_() for leaf in params.values()])
    for leaf in params.values():
        leaf.grad = torch.zeros_like(leaf)
    optimizer.step()  # makes the moments
    steps = count(1)

    def run() -> dict[str, float]:
        step, began = next(steps), time.perf_counter()
        with (folder / f"{step}.pt").open("wb") as file:
            torch.save({"weights": params, "optimizer": optimizer.state_dict()}, file)
            middle = time.perf_counter()
            file.flush()
            os.fsync(file.fileno())
        (folder / f"{step - 2}.pt").unlink(missing_ok=True)  # ours keep two, too
        return {"training stands still": middle - began, "until it is on disk": time.perf_counter() - began}

    return Side(run)


SYSTEMS = {"front_end": front_end, "compile": compiling, "host": host, "checkpoint": checkpoint}
