"""What `alm convert` writes: the weights of a run, of a checkpoint, or of a system whose parts lie in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alm_jax.convert import alm
from alm_jax.convert.card import Provenance, provenance
from alm_jax.convert.checkpoint import Checkpoint, layout_for, open_checkpoint, origin_of, shapes_of, stored_in
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.hub import resolve
from alm_jax.convert.layouts import LAYOUTS, kind_of
from alm_jax.convert.load import dead, shapes_in, stored
from alm_jax.convert.names import PLAIN, Style
from alm_jax.convert.peft import adapter_of, is_adapter, merge, unmerge
from alm_jax.core.errors import CheckpointError, UsageError
from alm_jax.models.alm import AlmConfig


@dataclass(frozen=True)
class Weights:
    """Parameters on their way from one layout to another; those of checkpoints stay in their files.

    Attributes:
        name: of the source, for messages. config: of the part or system. arrays: `{path: array}`.
        origin: the layout and names that they came in (of a run: those of its published system).
        dead: tensors that no parameter takes, by canonical name in the layout of origin.
        sources, training: for the model card. folder: where a checkpoint's other files lie.
        spec, tokenizer, aligner_tokenizer, encoder_tokenizer: of a whole system.
        lora: rank and scale of its adapters, where they are told.
    """

    name: str
    config: Any
    arrays: Mapping[str, Any]
    origin: alm.Origin
    dead: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[Provenance] = ()
    training: str = ""
    folder: Path | None = None
    spec: Any = None
    tokenizer: Any = None
    lora: Any = None
    aligner_tokenizer: Any = None
    encoder_tokenizer: Any = None

    @property
    def adapters(self) -> dict[str, Any]:
        """Those of the parameters that are adapters."""
        return {path: leaf for path, leaf in self.arrays.items() if is_adapter(path)}

    @property
    def is_system(self) -> bool:
        """Whether these are a system's."""
        return isinstance(self.config, AlmConfig)

    def part(self, name: str) -> Weights:
        """One part of a system, in its own layout."""
        if not self.is_system:
            raise UsageError(f"--part {name} takes a part of a system, and {self.name} is none")
        config, prefix = getattr(self.config, name), f"{name}."
        arrays = {path.removeprefix(prefix): leaf for path, leaf in self.arrays.items() if path.startswith(prefix)}
        if config is None or not arrays:
            raise UsageError(f"--part {name}: {self.name} has no {name}")
        origin = _published(config, arrays, PLAIN)
        changes = {"config": config, "arrays": arrays, "origin": origin, "spec": None, "dead": {}}
        return replace(self, **changes, tokenizer=self.tokenizer if name == "decoder" else None)


def _published(config: Any, arrays: Mapping[str, Any], style: Style | None) -> alm.Origin:
    """The layout of a model that comes from no file, in a style or the layout's own; "alm" where it has no other."""
    try:
        layout = layout_for(config, arrays)
    except UsageError:
        return alm.Origin("alm", PLAIN)
    return alm.Origin(layout, LAYOUTS[layout].style if style is None else style)


def from_run(path: str) -> Weights:
    """The model of a run's last checkpoint."""
    from alm_jax.api import spec_of
    from alm_jax.data.tokenizer import load_tokenizer
    from alm_jax.infer.checkpoint import ENCODER_TOKENIZER
    from alm_jax.train.run import load_run

    run = load_run(path)
    reader = run.path / ENCODER_TOKENIZER
    lora = getattr(run.model.decoder, "lora", None)
    origin = _published(run.model, run.arrays, None if lora else PLAIN)
    sources = [Provenance(s.name, s.revision, s.sha256, _licence(s.name), ", ".join(s.patterns)) for s in run.sources]
    return Weights(
        str(path),
        run.model,
        run.arrays,
        origin,
        sources=sources,
        training=_training(run),
        spec=spec_of(run),
        tokenizer=load_tokenizer(run.path / "tokenizer"),
        lora=lora,
        encoder_tokenizer=load_tokenizer(reader) if reader.is_dir() else None,
    )


def from_checkpoint(name: str, bases: Sequence[str], tokenizer: str | None, whole: bool) -> Weights:
    """The weights of a checkpoint.

    Args:
        bases: checkpoints of what it lacks. tokenizer: a name or path; by default what lies beside it.
        whole: of a system, all of its parts are needed.
    """
    from alm_jax.infer.checkpoint import PUBLISHED, read_spec

    opened = open_checkpoint(name)
    answers = opened.layout in PUBLISHED or read_spec(opened.file)  # one whose conventions are not known is converted
    if opened.is_system and answers and (bases or whole or read_spec(opened.file)):
        return _system(opened, bases, tokenizer)
    files = [opened, *map(open_checkpoint, bases)]
    config = _joined(files)
    lora = getattr(config, "lora", None)
    told = lora if opened.layout == "alm" or opened.is_system else adapter_of(opened.file)
    return Weights(
        name,
        config,
        stored_in(files, config),
        origin_of(files[-1]),
        _dead(files[-1]),
        [provenance(file.found, file.file.path) for file in files],
        "Converted from the sources above without further training; how they were trained is said there.",
        files[-1].file.path.parent,
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        lora=told,
    )


def _joined(files: Sequence[Checkpoint]) -> Any:
    """The config of a checkpoint, or of an adapter and the model that it was trained over."""
    first = files[0].config
    if len(files) == 1:
        return first
    if len(files) > 2 or files[0].layout != "llama_lora" or type(files[1].config) is not type(first):
        raise UsageError(
            f"--base takes what {files[0].found.name} lacks: the model that an adapter was trained over, or the parts "
            "that a system's checkpoint leaves out"
        )
    return replace(files[1].config, lora=first.lora)


def _system(opened: Checkpoint, bases: Sequence[str], tokenizer: str | None) -> Weights:
    from alm_jax.infer.checkpoint import open_system

    system = open_system(opened.found.name, base=bases, tokenizer=tokenizer)
    config = system.spec.model
    return Weights(
        opened.found.name,
        config,
        stored(shapes_of(config), system.sources),
        origin_of(opened),
        _dead(replace(opened, config=config)),
        [provenance(part.found, part.file.path, part.part and f"{part.part}.*") for part in system.checkpoints],
        "Converted from the sources above without further training; how they were trained is said there.",
        opened.file.path.parent,
        system.spec,
        system.tokenizer,
        getattr(config.decoder, "lora", None),
        system.aligner_tokenizer,
        system.encoder_tokenizer,
    )


def _dead(opened: Checkpoint) -> dict[str, Any]:
    """What no parameter takes; a checkpoint in our own names keeps it in a file beside it."""
    beside = opened.file.path.parent / f"{alm.DEAD}.safetensors"
    if opened.layout != "alm":
        return dead(opened.file, opened.table)
    if not beside.is_file():
        return {}
    file = open_tensors(beside)
    return {key: file.read(key) for key in file.keys()}


def _tokenizer(name: str) -> Any:
    from alm_jax.data.tokenizer import load_tokenizer

    return load_tokenizer(resolve(name).path)


def merged(weights: Weights, dtype: Any) -> Weights:
    """The same without adapters, these added to the kernels (`convert.peft.merge`)."""
    if not weights.adapters:
        raise UsageError(f"--merge: {weights.name} has no LoRA adapters")
    if weights.lora is None:
        raise UsageError(
            f"--merge: nothing tells how {weights.name} scales its adapters; put adapter_config.json beside"
        )
    training = f"{weights.training}\n\nIts LoRA adapters (rank {weights.lora.rank}, alpha {weights.lora.alpha:g}) "
    training += "were added to the kernels in float32."
    arrays = merge(weights.arrays, weights.lora, dtype)
    return _without_lora(replace(weights, arrays=arrays, training=training))


def unmerged(weights: Weights, adapter: str, dtype: Any) -> Weights:
    """The weights before the adapters of another checkpoint were added (`convert.peft.unmerge`)."""
    opened = open_checkpoint(adapter)
    lora = opened.config.lora if opened.layout == "llama_lora" and adapter_of(opened.file) else None
    if lora is None:
        raise UsageError(f"--unmerge {adapter}: expected a PEFT adapter with its adapter_config.json")
    prefix = "decoder." if weights.is_system else ""
    table = LAYOUTS[opened.layout].table(opened.config)
    if not isinstance(weights.config.decoder if prefix else weights.config, kind_of(opened.layout)):
        raise UsageError(
            f"--unmerge {adapter}: it fits a {kind_of(opened.layout).__name__}, which {weights.name} lacks"
        )
    values = stored(shapes_in(opened.file, table), [(opened.file, table)])
    arrays = unmerge(weights.arrays, {prefix + path: leaf for path, leaf in values.items()}, lora, dtype)
    training = f"{weights.training}\n\nThe LoRA adapters {adapter} were taken off the kernels in float32."
    sources = [*weights.sources, provenance(opened.found, opened.file.path, "taken off")]
    return replace(weights, arrays=arrays, training=training, sources=sources)


def _without_lora(weights: Weights) -> Weights:
    """The same with a config, a system and names that know of no adapters."""
    style = weights.origin.style
    plain = Style(prefix=style.prefix, bare=style.bare, tied=style.tied)
    changes: dict[str, Any] = {"lora": None, "origin": replace(weights.origin, style=plain)}
    if weights.is_system:
        config = replace(weights.config, decoder=replace(weights.config.decoder, lora=None))
        spec = weights.spec and replace(weights.spec, model=config)
        return replace(weights, **changes, config=config, spec=spec)
    return replace(weights, **changes, config=replace(weights.config, lora=None))


def _licence(name: str) -> str | None:
    try:
        return resolve(name, allow_download=False).licence
    except CheckpointError:
        return None


def _training(run: Any) -> str:
    """How a run was trained, in Markdown: its stages, and what their checkpoints scored."""
    experiment = run.experiment
    lines = [
        f"Experiment `{experiment.name}`, seed {experiment.seed}, stage `{run.stage.name}` at step {run.step}.",
        "",
        "| stage | steps or epochs | objective | trained | learning rate | batch | data |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in experiment.stages:
        data = ", ".join(getattr(source, "rows", "composed scenes") for source in stage.data.sources)
        length = f"{stage.steps} steps" if stage.steps is not None else f"{stage.epochs:g} epochs"
        patterns = ", ".join(f"`{pattern}`" for pattern in stage.trainable)
        optim = f"{stage.optim.learning_rate:g}, {stage.optim.schedule}"
        cells = (stage.name, length, stage.objective, patterns, optim, str(stage.data.batch_size), data)
        lines.append("| " + " | ".join(cells) + " |")
        if stage is run.stage:
            break
    return "\n".join(lines)
