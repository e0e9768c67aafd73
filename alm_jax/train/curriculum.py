"""A run: the stages of an experiment in order, in one folder, from wherever it was left."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax

from alm_jax import __version__
from alm_jax.core.config import flat
from alm_jax.core.errors import ConfigError, UsageError
from alm_jax.core.mesh import make_mesh
from alm_jax.core.processes import check_alike, check_joined, check_shared, named_loss
from alm_jax.train.batches import data_process, meet
from alm_jax.train.checkpoint import RunFolder, writing
from alm_jax.train.config import Experiment, check_same, experiment_of, run_config
from alm_jax.train.goodput import Goodput
from alm_jax.train.inputs import prepare_tokenizers
from alm_jax.train.interrupts import Interrupts
from alm_jax.train.loop import Session, StageResult, run_stage
from alm_jax.train.metrics import MetricsFile, Progress, TensorBoard, Tracker
from alm_jax.train.weights import StageModel


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        path: its folder. stages: how each stage that ran ended. stopped: whether it was asked to stop before its end.
    """

    path: Path
    stages: tuple[StageResult, ...]
    stopped: bool


def train(
    experiment: Experiment,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    trackers: Sequence[Tracker] = (),
    profile: tuple[int, int] | None = None,
) -> RunResult:
    """Run an experiment's stages in the folder `out`, which then holds all that inference and a resume need.

    Args:
        resume: go on from the last checkpoint in `out`; finished stages are passed over. A run that has none yet (it
            failed on its data, say) begins anew, whatever its config was. Without it `out` has to be new or empty.
        progress: whether a bar (on a terminal) or lines are shown on stderr; `out/log.txt` holds the lines anyway.
        trackers: more of them, beside `metrics.jsonl` and TensorBoard.
        profile: first and last step to trace of each stage, counted from 1, into `out/profile`.

    On SIGTERM and on the first Ctrl-C it saves a checkpoint after the step and returns with `stopped`.

    Raises:
        UsageError: `out` holds something and `resume` is off.
        ConfigError: the experiment does not fit together, or is not the one that is to be resumed.
        CheckpointError: `out` is no run, or cannot be read.
        AlmError: it failed while running.
    """
    out = Path(out).absolute()
    check_joined()
    with named_loss(f"go on with --resume --out {out}"), writing(out), ExitStack() as stack:
        if jax.process_count() > 1:
            check_alike(_common(experiment, out, resume))
        models = _models(experiment)
        # JAX lets go of the last batches when garbage is collected, and they of the shared memory of data workers.
        stack.callback(gc.collect)
        run, anew = _open(out, experiment, resume)
        main = jax.process_index() == 0
        display = stack.enter_context(closing(Progress(out / "log.txt" if main else None, show=progress and main)))
        stack.enter_context(_logged(display))
        goodput = Goodput(out / "goodput.json" if main else None)
        if anew:
            display.say(f"{out} has no finished checkpoint: the run begins anew, with this config")
        interrupts = stack.enter_context(Interrupts(display.say))
        tokenizers = prepare_tokenizers(experiment, out, display)
        metrics, opened = None, [display]
        if main:
            at = _position(experiment, run)
            metrics = MetricsFile(out / "metrics.jsonl", [stage.name for stage in experiment.stages], at)
            opened = [metrics, display, *trackers]
            if experiment.loop.tensorboard:
                opened.append(TensorBoard(out / "tensorboard", at))
        for tracker in opened:
            if tracker is not display:
                stack.callback(tracker.close)
        shared = (experiment, run, tokenizers, models, metrics, opened, display, interrupts)
        return _run_stages(Session(*shared, goodput, profile))


def _common(experiment: Experiment, out: Path, resume: bool) -> dict[str, str]:
    """What has to be the same on all processes: the config, where it runs, and what runs it."""
    libraries = ("flax", "grain", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
    code = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        code.update(f"{path.relative_to(root)} {path.read_bytes()}".encode())
    return {
        **{path: repr(value) for path, value in flat(experiment).items()},
        **{library: version(library) for library in libraries},
        "alm_jax": f"{__version__} (files {code.hexdigest()[:8]})",
        "--out": str(out),
        "--resume": str(resume),
    }


def _run_stages(session: Session) -> RunResult:
    results = []
    for index, stage in enumerate(session.experiment.stages):
        if session.run.stage(index, stage.name).finished is not None:
            session.progress.say(f"stage {stage.name}: finished before")
            continue
        result = run_stage(session, index)
        results.append(result)
        if result.step < result.total:
            session.progress.say(
                f"stopped in stage {stage.name} after step {result.step} of {result.total}; go on with --resume "
                f"--out {session.run.path}"
            )
            return RunResult(session.run.path, tuple(results), stopped=True)
    session.goodput.save()
    known = ", ".join(f"{result.name} {result.mfu:.1%}" for result in results if result.mfu is not None)
    session.progress.say(f"time: {session.goodput}" + (f"; MFU of the stages: {known}" if known else ""))
    return RunResult(session.run.path, tuple(results), stopped=False)


def _models(experiment: Experiment) -> list[StageModel]:
    """The stages' models, checked as far as that goes without reading anything."""
    mesh = make_mesh(experiment.mesh)
    models = []
    for stage in experiment.stages:
        model = StageModel(experiment.stage_model(stage), stage, mesh, experiment.stage_precision())
        _ = model.target  # patterns fit, and the mesh divides every parameter
        model.check_batches()
        data_process(mesh, stage.data.batch_size)
        _check_rows(model)
        _check_kernel(model)
        models.append(model)
    return models


def _check_rows(model: StageModel) -> None:
    """Raise ConfigError if rows may be longer than what the decoder was trained for, or hear what is not kept."""
    stage, decoder = model.stage, model.like.decoder
    specs = [("data", stage.data)] + ([("validation.data", stage.validation.data)] if stage.validation else [])
    for name, spec in specs:
        if stage.features == "cached" and spec.segments > 1:
            raise ConfigError(
                f"stage {stage.name!r}: {name}.segments is {spec.segments}, and features are cached of one window a "
                "clip: set features='live', or leave segments out"
            )
        if decoder is not None and spec.buckets[-1] > decoder.limit:
            raise ConfigError(
                f"stage {stage.name!r}: {name}.buckets go up to {spec.buckets[-1]} positions, and the decoder reads "
                f"{decoder.limit} (model.decoder.positions): a sequence over the model's length; leave the longer "
                "buckets out"
            )


def _check_kernel(model: StageModel) -> None:
    """Raise ConfigError if the kernel that the config names for the loss cannot do it here."""
    stage, decoder = model.stage, model.like.decoder
    if decoder is None or decoder.config.cross_entropy == "auto":
        return
    shape = stage.micro_batch or stage.data.batch_size, stage.data.buckets[-1]
    hidden = jax.ShapeDtypeStruct((*shape, decoder.config.dim), model.precision.compute)
    targets, weight = jax.ShapeDtypeStruct(shape, "int32"), jax.ShapeDtypeStruct(shape, "float32")
    with jax.set_mesh(model.mesh):
        jax.eval_shape(type(decoder).cross_entropy, decoder, hidden, targets, weight)


def _open(out: Path, experiment: Experiment, resume: bool) -> tuple[RunFolder, bool]:
    """The run's folder, and whether a run that came to nothing was in it."""
    run = RunFolder(out)
    empty = not out.exists() or not any(out.iterdir())
    if not empty and not resume:
        raise UsageError(f"{out} is not empty: go on with --resume, or give another --out")
    if not empty:
        run.config()  # it is a run
    anew = not empty and not run.has_checkpoint
    meet("run folder looked for")
    check_shared(out)
    if anew:
        run.clear()
    if empty or anew:
        return RunFolder.create(out, run_config(experiment)), anew
    check_same(experiment_of(run.config(), out), experiment)
    return run, False


def _position(experiment: Experiment, run: RunFolder) -> tuple[str, int]:
    """(stage, step) of the checkpoint that the run goes on from; step 0 before any."""
    for index, stage in enumerate(experiment.stages):
        folder = run.stage(index, stage.name)
        if folder.finished is None:
            return stage.name, max(folder.steps(), default=0)
    return stage.name, folder.finished


@contextmanager
def _logged(display: Progress) -> Iterator[None]:
    """What the library logs (bad rows among it) is said and kept in the run's log."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            display.say(record.getMessage())

    logger, handler = logging.getLogger("alm_jax"), Handler(logging.INFO)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
