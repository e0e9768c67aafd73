"""Experiments: what is trained, on what, in which stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from alm_jax.core.config import apply_overrides, config_types, flat, from_json, to_json
from alm_jax.core.errors import CheckpointError, ConfigError
from alm_jax.core.mesh import MeshConfig
from alm_jax.core.precision import Precision, default_precision
from alm_jax.core.sequence import Layout
from alm_jax.data.composed import Scenes
from alm_jax.data.plan import DataSpec
from alm_jax.data.rows import Hears
from alm_jax.data.templates import ALPACA_SHORT, Template
from alm_jax.data.waveforms import Waveforms
from alm_jax.models.alm import AlmConfig
from alm_jax.models.registry import named_config
from alm_jax.train.objectives import BY_POSITION, OBJECTIVES, Compared, LossGroup
from alm_jax.train.optim import OptimConfig

PREVIOUS = "previous"


@dataclass(frozen=True)
class Weights:
    """Where a part of the model begins.

    Attributes:
        path: pattern of the parameters that the source fills: `decoder.*`, `encoder.*`, or `*` for a whole system.
        source: a model's name (`convert.hub.resolve`), a checkpoint's path, the folder of another run, or `previous`:
            the stage before.
        init: patterns of parameters that a checkpoint may lack; those begin at random.
        names: of a run or stage whose parameters are called otherwise, how theirs begin and what takes the place of
            that; given, only those are taken (`models.clap_training.NAMES`).
    """

    path: str
    source: str
    init: tuple[str, ...] = ("*.lora_?",)
    names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TrainTokenizer:
    """A byte-level BPE tokenizer, trained on the text of all stages before the first one begins."""

    vocab_size: int = 512


@dataclass(frozen=True)
class Validation:
    """Loss over held-out rows while training; the checkpoint with the lowest is kept.

    Attributes:
        data: the rows, each counted once. every: steps from one validation to the next (and at the stage's end).
    """

    data: DataSpec
    every: int

    def __post_init__(self):
        if self.every < 1:
            raise ConfigError(f"validation.every is {self.every}; expected at least 1 step")


@dataclass(frozen=True)
class Stage:
    """One stage of a curriculum; optimiser, schedule, step count and data order begin anew in each.

    Attributes:
        name: unique; of the stage's folder and its metrics.
        data: rows and their order; `data.batch_size` is the global batch.
        trainable: patterns of the parameters that train.
        optim: optimiser and schedule. steps, epochs: one of the two says how long.
        model: overrides of the experiment's model, `{"decoder.lora": None}`. layout: None for the experiment's.
        objective: name in `train.objectives.OBJECTIVES`.
        loss_group, micro_batch: see `train.step.make_step`.
        validation: None for none.
        features: `live` runs the encoder in every step; `cached` computes its features once (it may not train).
        front_end: where frames of clips are computed: on the `host`, by what loads data (NumPy, in float64), or on the
            `device`, by the step, which is given samples (JAX, in float32; they differ by 5e-3 at most). The device has
            none of the front ends that look at the whole of a clip (`data.waveforms`).
        hears: the rows' clips, or in their place their captions, for encoders that read text too (training on text
            alone).
        init_from: where parameters begin, before the experiment's `weights`; the first that has one gives it, and what
            none has begins at random.
        drop: patterns of parameters of the previous stage or of a run that are left behind; any other without a place
            in this stage's model is an error.
    """

    name: str
    data: DataSpec
    trainable: tuple[str, ...]
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int | None = None
    epochs: float | None = None
    model: dict[str, Any] = field(default_factory=dict)
    layout: Layout | None = None
    objective: str = "next_token"
    loss_group: LossGroup = "batch"
    micro_batch: int | None = None
    validation: Validation | None = None
    features: Literal["live", "cached"] = "live"
    front_end: Literal["host", "device"] = "host"
    hears: Hears = "audio"
    init_from: tuple[Weights, ...] = (Weights("*", PREVIOUS),)
    drop: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(f"stage {self.name!r}: give steps or epochs, one of the two")
        if not (self.steps or self.epochs or 0) > 0:
            raise ConfigError(f"stage {self.name!r}: steps is {self.steps}, epochs {self.epochs}; expected more than 0")
        for name in ("loss_group", "micro_batch"):
            rows, size = self.data.batch_size, getattr(self, name)
            if isinstance(size, int) and (size < 1 or rows % size):
                raise ConfigError(f"stage {self.name!r}: {name} {size} has to divide data.batch_size {rows}")
        if not self.name or "/" in self.name:
            raise ConfigError(f"stage name {self.name!r}: expected a name that can be a folder's")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"stage {self.name!r}: objective {self.objective!r}; expected {', '.join(OBJECTIVES)}")
        if isinstance(OBJECTIVES[self.objective], Compared):
            _check_whole(self)
        if any(data.pack for data in self.specs):
            _check_packing(self)
        if self.front_end == "device":
            _check_frames(self)
        if not self.trainable:
            raise ConfigError(f"stage {self.name!r}: trainable is empty; give patterns such as 'aligner.*'")

    @property
    def specs(self) -> tuple[DataSpec, ...]:
        """What it reads: of training, and of validation if there is any."""
        return (self.data,) if self.validation is None else (self.data, self.validation.data)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Updates of the stage."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * steps_per_epoch))


def _check_whole(stage: Stage) -> None:
    rows = stage.data.batch_size
    if stage.loss_group not in ("batch", rows):
        raise ConfigError(
            f"stage {stage.name!r}: objective {stage.objective} compares all {rows} rows of a batch; loss_group is "
            f"{stage.loss_group}: leave it out, and give micro_batch to save memory"
        )
    if rows < 2:
        raise ConfigError(f"stage {stage.name!r}: objective {stage.objective} needs data.batch_size 2 or more")


def _check_packing(stage: Stage) -> None:
    if stage.objective not in BY_POSITION:
        raise ConfigError(
            f"stage {stage.name!r}: data.pack puts several rows into a sequence, and objective {stage.objective} takes "
            f"a sequence as one row: leave pack out, or train {', '.join(sorted(BY_POSITION))}"
        )
    if stage.loss_group != "batch":
        raise ConfigError(
            f"stage {stage.name!r}: loss_group {stage.loss_group} counts rows, which data.pack puts several of into a "
            "sequence: leave one of the two out"
        )


def _check_frames(stage: Stage) -> None:
    """Raise ConfigError where a step has no frames of single windows to compute."""
    others = {
        "features='cached'": stage.features == "cached",
        "hears='text'": stage.hears == "text",
        "data.segments above 1": any(data.segments > 1 for data in stage.specs),
    }
    if wrong := [name for name, given in others.items() if given]:
        raise ConfigError(
            f"stage {stage.name!r}: front_end='device' computes frames in the step, of one window a clip, and not with "
            f"{wrong[0]}: leave one of the two out"
        )


@dataclass(frozen=True)
class LoopConfig:
    """How a run looks after itself.

    Attributes:
        checkpoint_every: steps between checkpoints; a stage's last step has one too.
        keep: how many of the latest checkpoints stay (the best by validation stays beside them).
        log_every: steps between rows of `metrics.jsonl`.
        tensorboard: whether event files are written.
        stall_seconds: without a finished step (or batch of validation) after which a process shows on stderr where
            its threads stand.
    """

    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 1
    tensorboard: bool = True
    stall_seconds: float = 900.0

    def __post_init__(self):
        if min(self.checkpoint_every, self.keep, self.log_every) < 1:
            raise ConfigError("loop.checkpoint_every, loop.keep and loop.log_every are at least 1")
        if not self.stall_seconds > 0:
            raise ConfigError(f"loop.stall_seconds is {self.stall_seconds}; expected more than 0")


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made from.

    Attributes:
        name: for people. model: the system's parts. layout, template: how a row becomes positions.
        tokenizer: a name or path as for weights, or one to be trained.
        aligner_tokenizer: the same for an aligner that reads text (`layout.aligner_text_tokens`), else None.
        encoder_tokenizer: the same for an encoder that reads text (`Stage.hears`), else None.
        weights: pretrained sources. stages: in order.
        mesh: devices along each axis. precision: None chooses by the device.
        seed: of random weights and dropout; the order of data has its own (`data.seed`).
        topologies: chips that it is meant for, as `alm plan` calls them (`v5e:4x4`); it plans for the first.
        held_out: sets that are evaluated on, each `SOURCE[:SPLIT]` (`data.leaks.Clips`): rows about a clip that they
            hold too are left out. None: what is published to test on of the sets that are prepared beside those trained
            on; (): nothing.
    """

    name: str
    model: AlmConfig
    layout: Layout
    tokenizer: str | TrainTokenizer
    stages: tuple[Stage, ...]
    aligner_tokenizer: str | TrainTokenizer | None = None
    encoder_tokenizer: str | TrainTokenizer | None = None
    template: Template = ALPACA_SHORT
    weights: tuple[Weights, ...] = ()
    mesh: MeshConfig = field(default_factory=MeshConfig)
    precision: Precision | None = None
    seed: int = 0
    topologies: tuple[str, ...] = ()
    held_out: tuple[str, ...] | None = None
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"stages are named {names}; expected one at least, each with its own name")
        if any(source.source == PREVIOUS for source in self.weights):
            raise ConfigError("weights name 'previous'; only a stage's init_from can")
        for stage in self.stages:
            _check_hearing(self, stage)
            if stage.front_end == "device":
                _check_window(self, stage)
        reads = any(self.stage_layout(stage).aligner_text_tokens for stage in self.stages)
        if reads != (self.aligner_tokenizer is not None):
            raise ConfigError(
                "layout.aligner_text_tokens asks for text for the aligner, and aligner_tokenizer is None: name its "
                "tokenizer, or set layout.aligner_text_tokens to 0"
                if reads
                else "aligner_tokenizer is given, and layout.aligner_text_tokens is 0: leave it out, or set both"
            )

    def stage_layout(self, stage: Stage) -> Layout:
        """How a row becomes positions in a stage."""
        return stage.layout or self.layout

    def stage_model(self, stage: Stage) -> AlmConfig:
        """The model of a stage, its encoder included."""
        return apply_overrides(self.model, stage.model, named_config)

    def stage_precision(self) -> Precision:
        """Dtypes of the run on this machine."""
        return self.precision or default_precision()


def _check_window(experiment: Experiment, stage: Stage) -> None:
    """Raise ConfigError where there is no front end, or none that the device can compute."""
    try:
        Waveforms(experiment.stage_model(stage).frontend)
    except ConfigError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from error


def _check_hearing(experiment: Experiment, stage: Stage) -> None:
    """Raise ConfigError where a stage hears texts that nothing reads."""
    if stage.hears == "audio":
        return
    if experiment.encoder_tokenizer is None:
        raise ConfigError(
            f"stage {stage.name!r} hears text, and encoder_tokenizer is None: name the encoder's tokenizer"
        )
    if getattr(experiment.stage_model(stage).encoder, "vocab_size", None) is None:
        raise ConfigError(
            f"stage {stage.name!r} hears text, and its encoder reads none: give a clap_encoder with towers 'both'"
        )


def run_config(experiment: Experiment) -> dict[str, Any]:
    """What a run's `config.json` holds: the experiment to read back, and the same flat for people."""
    return {"experiment": to_json(experiment), "flat": to_json(flat(experiment))}


def experiment_of(config: dict[str, Any], where: object) -> Experiment:
    """The experiment that `run_config` was given.

    Raises:
        CheckpointError: this version of the library does not know all that it holds.
    """
    if "experiment" not in config:
        raise CheckpointError(f"{where}: config.json holds no experiment")
    try:
        return from_json(config["experiment"], config_types(Experiment, Scenes, *_override_types()))
    except ConfigError as error:
        raise CheckpointError(f"{where}: config.json does not fit together: {error}") from error


# What may differ between a run and its continuation: where and how often, not what is computed.
_FREE = ("mesh.", "loop.", "topologies")


def check_same(old: Experiment, new: Experiment) -> None:
    """
    Raises:
        ConfigError: a resumed run's experiment differs in what it computes; the message names the fields.
    """
    before, after = flat(old), flat(new)
    missing = object()
    changed = [
        path
        for path in dict.fromkeys([*before, *after])
        if before.get(path, missing) != after.get(path, missing)
        and not path.startswith(_FREE)
        and not path.endswith(".workers")
    ]
    if changed:
        shown = [f"{path} was {before.get(path)!r}, is {after.get(path)!r}" for path in changed[:5]]
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"--resume with another config: {'; '.join(shown)}{more}; give the run's own config, or another --out"
        )


def _override_types() -> list[type]:
    """Classes that may stand in `Stage.model`, whose values are of any type."""
    from alm_jax.models.registry import CONFIGS

    return sorted({type(config) for config in CONFIGS.values()}, key=lambda cls: cls.__name__)
