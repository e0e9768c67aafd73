"""One stage of training: from the weights that it begins with to its last checkpoint."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from alm_jax.core import tree
from alm_jax.core.cache import cache_dir
from alm_jax.core.errors import AlmError
from alm_jax.core.mesh import device_kind
from alm_jax.core.processes import raise_together
from alm_jax.core.sequence import Batch
from alm_jax.core.tree import Arrays
from alm_jax.data.pipeline import DataPipeline, LoadedBatch
from alm_jax.train import inputs, weights
from alm_jax.train.batches import place
from alm_jax.train.checkpoint import Checkpoints, RunFolder, StageFolder
from alm_jax.train.chips import peak_of
from alm_jax.train.config import Experiment, Stage
from alm_jax.train.features import Hearing, compute_features
from alm_jax.train.goodput import GOOD, Goodput
from alm_jax.train.interrupts import Interrupts
from alm_jax.train.metrics import MetricsFile, Progress, Tracker
from alm_jax.train.model_flops import Utilization
from alm_jax.train.objectives import OBJECTIVES
from alm_jax.train.optim import Optimizer, make_optimizer
from alm_jax.train.profile import Profiler
from alm_jax.train.state import TrainState, abstract_state, create_state
from alm_jax.train.step import Step, make_eval_step, make_step
from alm_jax.train.watchdog import Watchdog
from alm_jax.train.weights import StageModel, Start


@dataclass
class Session:
    """What the stages of a run share.

    Attributes:
        experiment, run, tokenizers: of the run. models: of its stages.
        metrics: `metrics.jsonl` on the process that writes it, else None. trackers: all that rows go to.
        progress, interrupts: for the person watching.
        goodput: what time goes to. profile: first and last step of each stage to trace, or None.
    """

    experiment: Experiment
    run: RunFolder
    tokenizers: inputs.Tokenizers
    models: Sequence[StageModel]
    metrics: MetricsFile | None
    trackers: Sequence[Tracker]
    progress: Progress
    interrupts: Interrupts
    goodput: Goodput
    profile: tuple[int, int] | None = None


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: after `step` of `total` updates, with the last losses; `mfu` is the mean of its steps, None
    where nothing is published of the device."""

    name: str
    step: int
    total: int
    loss: float | None = None
    validation_loss: float | None = None
    mfu: float | None = None


def run_stage(session: Session, index: int) -> StageResult:
    """Train a stage from its last checkpoint, or its beginning, to its end or until asked to stop.

    Raises:
        AlmError: the loss is not finite, the disk is full, too many rows are bad, ...
    """
    experiment, model = session.experiment, session.models[index]
    stage = model.stage
    folder = session.run.stage(index, stage.name)
    reading = (experiment, stage, model.config, session.tokenizers, model.mesh, session.progress)
    guard = inputs.guard(experiment, stage.name, session.run.path, session.progress)
    training = inputs.pipeline(stage.data, *reading, guard)
    validation = stage.validation and inputs.pipeline(replace(stage.validation.data, last="pad"), *reading)
    total = stage.total_steps(training.plan.steps_per_epoch)
    _check_room(session.run.path, _abstract(model, make_optimizer(stage.optim, total)))
    start = _start(session, index, folder, model, total)

    if stage.features == "cached":
        with session.goodput.spending("features"):
            store = _features(session, model, start, [p for p in (training, validation) if p])
        if store is None:
            return StageResult(stage.name, 0, total)
        model = model.reader()
        training, validation = (p and replace(p, audio=store) for p in (training, validation))
        start.frozen = {path: leaf for path, leaf in start.frozen.items() if path in model.target}

    result = _train(session, index, model, start, folder, total, training, validation)
    if result.step == total:
        folder.finish(total)
    return result


def _train(session, index, model, start, folder, total, training, validation) -> StageResult:
    """Set the state and the compiled step up, and run the loop."""
    experiment, stage = session.experiment, model.stage
    optimizer = make_optimizer(stage.optim, total)
    abstract = _abstract(model, optimizer)
    step = make_step(
        model.like,
        optimizer,
        model.precision,
        objective=OBJECTIVES[stage.objective],
        loss_group=stage.loss_group,
        micro_batch=stage.micro_batch,
        mesh=model.mesh,
        state=abstract,
    )
    watchdog = Watchdog(experiment.loop.stall_seconds)
    with jax.set_mesh(model.mesh), Checkpoints(folder, experiment.loop.keep) as checkpoints, watchdog:
        done = checkpoints.latest or 0
        if done:
            state = checkpoints.restore(abstract)
        else:
            key = jax.random.fold_in(jax.random.key(experiment.seed), index)
            places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            state = jax.jit(lambda p: create_state(p, optimizer, key), out_shardings=places)(start.params)
            start.params = {}  # or they would be held beside the state's
        best = folder.validation_loss()
        trainer = Trainer(
            session=session,
            stage=stage,
            total=total,
            model=model,
            frozen=start.frozen,
            step=step,
            training=training,
            validation=validation,
            checkpoints=checkpoints,
            watchdog=watchdog,
            utilization=Utilization(model, optimizer, peak_of(device_kind())),
            best=math.inf if best is None else best,
        )
        with session.goodput.spending(GOOD):
            return trainer.run(state, done)


def _abstract(model: StageModel, optimizer: Optimizer) -> TrainState:
    shapes = {path: leaf for path, leaf in model.target.items() if path in model.trained}
    return abstract_state(shapes, optimizer, model.shardings, model.mesh)


def _check_room(folder: Path, state: TrainState) -> None:
    """Raise AlmError where no checkpoint of `state` would find room."""
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    raise_together(
        f"cannot write to {folder}: the disk is full ({free / 1e6:,.0f} MB are free, a checkpoint takes "
        f"{needed / 1e6:,.0f} MB); make room, then go on with --resume"
        if free < needed
        else None
    )


def _start(session: Session, index: int, folder: StageFolder, model: StageModel, total: int) -> Start:
    """The stage's frozen parameters, and before its first checkpoint also those that it trains."""
    if folder.begun and folder.steps():
        return weights.restore(session.experiment, index, folder, model)
    start = weights.begin(session.experiment, index, session.run, model)
    folder.begin(start.carried, start.sources)
    start.carried = {}
    trained = {path: leaf for path, leaf in model.target.items() if path in model.trained}
    session.progress.say(
        f"stage {model.stage.name}: {total} steps of {model.stage.data.batch_size} rows; trains "
        f"{tree.size(trained):,} of {tree.size(model.given):,} parameters; " + _origins(start.origin)
    )
    return start


def _origins(origin: dict[str, str]) -> str:
    parts: dict[str, set[str]] = {}
    for path, source in origin.items():
        parts.setdefault(source, set()).add(path.split(".")[0])
    return ", ".join(f"{' and '.join(sorted(part))} from {source}" for source, part in parts.items())


def _features(session: Session, model: StageModel, start: Start, pipelines: Sequence[DataPipeline]) -> Any:
    """The store of encoder features of all clips that the pipelines may hear; None if asked to stop meanwhile."""
    stage, experiment = model.stage, session.experiment
    data = stage.data
    clips = {
        clip
        for pipeline in pipelines
        for rows in pipeline.rowsets
        for row in rows.rows
        for clip in (row.captions if stage.hears == "text" else map(rows.clip_path, row.clips))
    }
    encoder = {path: leaf for path, leaf in start.frozen.items() if path.startswith("encoder.")}
    hearing = Hearing(
        inputs.front_end(model.config, session.tokenizers, stage.hears),
        experiment.template,
        experiment.stage_layout(stage),
        session.tokenizers.decoder,
        data.batch_size,
        data.workers,
        data.max_bad_share,
    )
    return compute_features(
        clips, model, encoder, hearing, cache_dir(), session.progress, should_stop=session.interrupts.requested
    )


@dataclass
class Trainer:
    """The loop of one stage, with everything in place; `run` it once.

    Attributes:
        frozen: parameters that do not train. step: the compiled step. total: updates of the stage.
        training, validation: where batches come from. best: lowest validation loss so far.
        watchdog: is told what gets done. utilization: of the devices' peak.
    """

    session: Session
    stage: Stage
    total: int
    model: StageModel
    frozen: Arrays
    step: Step
    training: DataPipeline
    validation: DataPipeline | None
    checkpoints: Checkpoints
    watchdog: Watchdog
    utilization: Utilization
    best: float
    _pending: tuple[int, dict[str, jax.Array], LoadedBatch, int, dict[str, float]] | None = None
    _clock: float = field(default_factory=time.monotonic)
    _bad: int = 0
    _seconds: float = 0.0
    _waited: float = 0.0
    _loss: float | None = None
    _validation_loss: float | None = None

    def run(self, state: TrainState, done: int) -> StageResult:
        """Train from `done` updates on; steps are counted by updates done, as checkpoints and metrics name them."""
        session = self.session
        session.progress.start(self.stage.name, self.total, done)
        evaluate = self._evaluator()
        profiler = Profiler(session.profile, session.run.path / "profile" / self.stage.name, session.progress.say)
        self._clock = time.monotonic()
        with closing(profiler), closing(self.training.iterate(done, self.total - done)) as batches:
            while (read := self._next(batches)) is not None:
                loaded, batch, waited = read
                done, began = loaded.step + 1, time.monotonic()
                what = GOOD if self.utilization.knows(batch) else "compiling"
                with profiler.before(done), session.goodput.spending(what):
                    state, metrics = self.step(state, self.frozen, batch)
                    flops = self.utilization.flops(state, self.frozen, batch)
                spent = {"data_wait_s": waited, "host_s": time.monotonic() - began}
                profiler.after(done, metrics)
                self._bad += len(loaded.bad)
                self._log_pending()
                self._pending = done, metrics, loaded, flops, spent
                stop = session.interrupts.requested(done)
                self._look_after(state, done, evaluate, stop)
                if stop:
                    break
        if self._bad:
            rows = "1 bad row was" if self._bad == 1 else f"{self._bad} bad rows were"
            self.session.progress.say(f"stage {self.stage.name}: {rows} left out of the loss")
        if self._seconds:
            share = f"{self._waited / self._seconds:.1%} of the {self._seconds:.0f} s of its steps"
            session.progress.say(f"stage {self.stage.name}: waited for data {share}")
        session.goodput.save()
        losses = self._loss, self._validation_loss
        return StageResult(self.stage.name, done, self.total, *losses, self.utilization.mfu)

    def _next(self, batches: Iterator[LoadedBatch]) -> tuple[LoadedBatch, Batch, float] | None:
        """The next batch, as loaded and on the devices, and the seconds that it was waited for; None after the last."""
        began = time.monotonic()
        with self.session.goodput.spending("data"):
            loaded = next(batches, None)
            batch = None if loaded is None else place(loaded.batch, self.model.mesh)
        return None if batch is None else (loaded, batch, time.monotonic() - began)

    def _look_after(self, state: TrainState, done: int, evaluate: Callable | None, stop: bool) -> None:
        """Validate and save where this step is one to do it at; metrics are on disk before their checkpoint is."""
        loop, end = self.session.experiment.loop, done == self.total
        best = False
        loss = None
        if evaluate is not None and (done % self.stage.validation.every == 0 or end):
            self._log_pending()
            with self.session.goodput.spending("validation"):
                loss, parts = evaluate(state)
            best, self._validation_loss = loss < self.best, loss
            self.best = min(self.best, loss)
            self._log({"stage": self.stage.name, "step": done, "validation_loss": loss, **parts})
            self._clock = time.monotonic()
        if done % loop.checkpoint_every == 0 or end or stop or best:
            self._log_pending()
            if self.session.metrics is not None:
                self.session.metrics.sync()
            with self.session.goodput.spending("checkpoints"):
                self.checkpoints.save(state, done, loss)
            self.session.goodput.save()
            self.watchdog.beat(f"the checkpoint of step {done} was begun")
            self._clock = time.monotonic()

    def _evaluator(self) -> Callable[[TrainState], tuple[float, dict[str, float]]] | None:
        if self.validation is None:
            return None
        objective = OBJECTIVES[self.stage.objective]
        evaluate = make_eval_step(self.model.like, self.model.precision, objective)
        steps = self.validation.plan.steps_per_epoch

        def run(state: TrainState) -> tuple[float, dict[str, float]]:
            sums = []
            with closing(self.validation.iterate(0, steps)) as batches:
                for loaded in batches:
                    sums.append(evaluate(state.params, self.frozen, place(loaded.batch, self.model.mesh)))
                    self.watchdog.beat(f"batch {loaded.step} of a validation was begun")
            totals = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
            targets = max(1.0, totals.pop("targets"))
            means = {f"validation_{name}": total / targets for name, total in totals.items()}
            return means.pop("validation_loss"), means

        return run

    def _log_pending(self) -> None:
        """Wait for the last step's metrics and pass them on.

        Raises:
            AlmError: they are not finite.
        """
        if self._pending is None:
            return
        (done, metrics, loaded, flops, spent), self._pending = self._pending, None
        began = time.monotonic()
        values = {name: float(value) for name, value in metrics.items()}
        spent["device_wait_s"] = time.monotonic() - began
        self.watchdog.beat(f"step {done} of stage {self.stage.name}")
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        self._seconds, self._waited = self._seconds + seconds, self._waited + spent["data_wait_s"]
        speed = self.utilization.took(flops, seconds)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise AlmError(
                    f"stage {self.stage.name!r}, step {done}: {name} is {values[name]}; its batch holds "
                    f"{self._rows(loaded)}; lower optim.learning_rate, or look at these rows"
                )
        self._loss = values["loss"]
        if done % self.session.experiment.loop.log_every and done != self.total:
            return
        self._log(
            {
                "stage": self.stage.name,
                "step": done,
                "tokens_per_s": round(values.pop("tokens") / seconds, 1),
                **values,
                "step_time_s": round(seconds, 4),
                **{name: round(value, 4) for name, value in spent.items()},
                **speed,
                **_memory(),
            }
        )

    def _log(self, row: dict[str, Any]) -> None:
        for tracker in self.session.trackers:
            tracker.log(row)

    def _rows(self, loaded: LoadedBatch, limit: int = 8) -> str:
        names = [self.training.rowsets[s].name(row) for s, row, _ in dict.fromkeys(loaded.planned.entries)]
        return ", ".join(names[:limit]) + (f" and {len(names) - limit} more rows" if len(names) > limit else "")


def _memory() -> dict[str, float]:
    """The most of the first local device's memory that was in use, where it says so (a CPU does not)."""
    told = jax.local_devices()[0].memory_stats() or {}
    return {"hbm_peak_gib": round(told["peak_bytes_in_use"] / 2**30, 3)} if "peak_bytes_in_use" in told else {}
