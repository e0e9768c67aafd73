"""A whole system from checkpoints: a converted run, or published weights with the models they were trained over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alm_jax.convert import alm
from alm_jax.convert.checkpoint import heads_untold
from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.hub import Resolved, resolve
from alm_jax.convert.layouts import LAYOUTS, config_of, detect
from alm_jax.convert.load import Source, check, contents, load
from alm_jax.convert.rules import Table
from alm_jax.core import tree
from alm_jax.core.config import config_types, from_json
from alm_jax.core.errors import CheckpointError, UsageError
from alm_jax.core.precision import Precision, default_precision
from alm_jax.core.sequence import Layout
from alm_jax.data.templates import ALPACA_SHORT, MATS, PLAIN, Template
from alm_jax.data.tokenizer import Tokenizer, check_size, load_tokenizer
from alm_jax.infer.loaded import LoadedModel, Spec
from alm_jax.infer.sampling import APT_SAMPLING, LTU_SAMPLING, MATS_SAMPLING, Sampling
from alm_jax.models import apt, apt_blip2, ltu, ltu_as, mats
from alm_jax.models.alm import AlmConfig, DecoderConfig, build

ALIGNER = "aligner"  # folder of the tokenizer of an aligner that reads text
ENCODER_TOKENIZER = "encoder_tokenizer"  # folder of the tokenizer of an encoder that reads text
ENCODER = "encoder"  # folder of an encoder for which the layout beside it has no place


@dataclass(frozen=True)
class Published:
    """What the published checkpoints of a system do not say of themselves.

    Attributes:
        assemble: the system over a decoder, an encoder and an aligner.
        layout, template, sampling: see `infer.loaded.Spec`.
        encoder: the model whose encoder it listens through, where its checkpoints leave that out.
        partial: parts of which its checkpoints hold some tensors alone; a base gives the others.
        aligner_tokenizer: the model whose tokenizer its aligner reads text with.
        seeing: how parts become a row over a base that sees (InstructBLIP), or None if there is no such system.
    """

    assemble: Callable[[Any, Any, Any], AlmConfig]
    layout: Layout
    template: Template = ALPACA_SHORT
    sampling: Sampling = LTU_SAMPLING
    encoder: str | None = None
    partial: tuple[str, ...] = ()
    aligner_tokenizer: str | None = None
    seeing: Layout | None = None


PUBLISHED = {
    "ltu": Published(lambda decoder, encoder, _: ltu.ltu(decoder, encoder), ltu.LAYOUT),
    "ltu_as": Published(
        lambda decoder, encoder, _: ltu_as.ltu_as(decoder, encoder), ltu_as.LAYOUT, encoder="openai/whisper-large"
    ),
    # All of Audio-MAE was trained but its fixed positions, and nothing of CLAP but its running statistics moved.
    "apt": Published(
        apt.apt,
        apt.LAYOUT,
        PLAIN,
        APT_SAMPLING,
        partial=("encoder",),
        aligner_tokenizer="prajjwal1/bert-mini",
        seeing=apt_blip2.LAYOUT,
    ),
    "mats": Published(mats.mats, mats.LAYOUT, MATS, MATS_SAMPLING, "microsoft/msclap", partial=("encoder",)),
}


@dataclass(frozen=True)
class Opened:
    """A checkpoint, and the part of a system that it is: `decoder`, `encoder`, `vision` (a system that sees, with its
    decoder or without), or "" for the whole."""

    found: Resolved
    file: TensorFile
    layout: str
    part: str = ""

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def folder(self) -> Path:
        return self.file.path.parent

    def config(self) -> Any:
        config, listens = config_of(self.file, self.layout), LAYOUTS[self.layout].listens
        return config if listens is None or self.part != "encoder" else listens[0](config)

    def table(self, config: AlmConfig) -> Table:
        """How its tensors make the parameters of the system `config`."""
        if self.part in ("", "vision"):
            return LAYOUTS[self.layout].table(config)
        listens = LAYOUTS[self.layout].listens
        make = LAYOUTS[self.layout].table if listens is None else listens[1]
        table = make(getattr(config, self.part)).under(f"{self.part}.")
        # `vicuna_ltu`, LTU's base, carries a first audio encoder that every checkpoint over it replaces.
        return table + Table(ignored=("model.audio_encoder.*", "model.audio_proj.*"))


@dataclass(frozen=True)
class System:
    """A whole system whose weights lie in checkpoints, none of them read yet.

    Attributes:
        spec: the parts and conventions. tokenizer: the decoder's. checkpoints: the system's own and those of its parts.
        aligner_tokenizer, encoder_tokenizer: of an aligner and of an encoder that read text.
    """

    spec: Spec
    tokenizer: Tokenizer
    checkpoints: tuple[Opened, ...]
    aligner_tokenizer: Tokenizer | None = None
    encoder_tokenizer: Tokenizer | None = None

    @property
    def sources(self) -> list[Source]:
        """What `convert.load` reads: each file with its table; a base gives what the system's own does not hold."""
        own, *bases = ((opened.file, opened.table(self.spec.model)) for opened in self.checkpoints)
        filled = _filled(*own)
        return [own, *((file, table.without(filled)) for file, table in bases)]


def load_checkpoint(
    name: str, *, base: Sequence[str] = (), tokenizer: str | None = None, precision: Precision | None = None
) -> LoadedModel:
    """The model of a system's checkpoints (`open_system`).

    Args:
        precision: None holds what the checkpoint's folder holds as it is, the rest and activations by the device.
    """
    system = open_system(name, base=base, tokenizer=tokenizer)
    arrays, compute = _arrays(system, precision), precision and precision.compute
    readers = system.aligner_tokenizer, system.encoder_tokenizer
    return LoadedModel(system.spec, arrays, system.tokenizer, compute, *readers)


def open_system(name: str, *, base: Sequence[str] = (), tokenizer: str | None = None) -> System:
    """The system of a checkpoint that `alm convert` wrote, or of one in a published layout (`PUBLISHED`).

    Args:
        name: file, folder or name on the hub. base: checkpoints of what it lacks: the LLaMA that LoRA was trained over,
            the encoder. tokenizer: file, folder or name; by default what lies beside the checkpoint or the LLaMA.

    Raises:
        CheckpointError: a checkpoint cannot be found, read or fitted, or pieces are missing; the message says which
            argument gives them. UsageError: a base that is not needed.
    """
    system = _open(name)
    spec = read_spec(system.file)
    if spec is None and system.layout not in PUBLISHED:
        raise CheckpointError(
            f"{system.file.path} has the layout {system.layout}, which is a part; expected a whole system "
            f"({', '.join(PUBLISHED)}) or a run. A part is given as base of the checkpoint that was trained over it"
        )
    beside = [str(system.folder / ENCODER)] if (system.folder / ENCODER).is_dir() else []
    parts = _parts(system, [*base, *beside])
    words, problems = _tokenizer(system, parts, tokenizer)
    problems += _missing(system, parts) + ([] if spec else _untold(system, parts))
    if problems:
        raise CheckpointError(f"{system.file.path} is not enough by itself: {'; '.join(problems)}")
    parts = _with_encoder(system, parts)
    spec = spec or _published_spec(system, parts)
    check_size(words, spec.model.decoder.vocab_size, system.name)
    reader = system.folder / ENCODER_TOKENIZER
    encoder = load_tokenizer(reader) if reader.is_dir() else None
    return System(spec, words, (system, *parts.values()), _aligner_tokenizer(system, spec), encoder)


def read_spec(file: TensorFile) -> Spec | None:
    """The system that `alm convert` wrote beside a file; None if its `config.json` is a part's or other software's.

    Raises:
        CheckpointError: it is damaged, or of a newer format.
    """
    content = alm.beside(file)
    if content is None or "spec" not in content:
        return None
    spec = from_json(content["spec"], config_types(Spec))
    if not isinstance(spec, Spec):
        raise CheckpointError(
            f"{file.path.parent / 'config.json'}: its spec is a {type(spec).__name__}, expected a Spec"
        )
    return spec


def _open(name: str) -> Opened:
    found = resolve(name)
    file = open_tensors(found.path)
    return Opened(found, file, detect(file.keys()))


def _open_encoder(name: str, kinds: tuple[type, ...]) -> Opened:
    """A part's checkpoint; one that holds a whole CLAP as that, if encoders of one of `kinds` are made of it."""
    opened = _open(name)
    whole = replace(opened, layout=detect(opened.file.keys(), whole=True))
    listens = LAYOUTS[whole.layout].listens
    return whole if listens is not None and listens[0] in kinds else opened


def _parts(system: Opened, names: Sequence[str]) -> dict[str, Opened]:
    """Checkpoints of parts, by part."""
    held, parts = _held(system), {}
    published = PUBLISHED.get(system.layout)
    listens = LAYOUTS[system.layout].parts[:1]
    for name in names:
        opened = _open_encoder(name, listens)
        # A whole system is a base for its LLaMA: LTU's own (`vicuna_ltu`) carries a first audio encoder too.
        layout = "llama_hf" if opened.layout in PUBLISHED else opened.layout
        decodes = LAYOUTS[layout].listens is None and isinstance(replace(opened, layout=layout).config(), DecoderConfig)
        part = "decoder" if decodes else "encoder"
        if LAYOUTS[layout].parts == LAYOUTS["blip"].parts:
            if published is None or published.seeing is None:
                raise UsageError(f"base {name} sees, and {system.name} is no system that does: leave it out")
            part = "vision"
        if part in held or part in parts:
            other = parts[part].name if part in parts else system.name
            raise UsageError(f"base {name} is not needed: {other} holds the {part}; leave one of them out")
        parts[part] = replace(opened, layout=layout, part=part)
    return parts


def _with_decoder(parts: Mapping[str, Opened]) -> set[str]:
    """The parts that bases hold; one that sees may bring the decoder."""
    seeing = parts.get("vision")
    whole = {part for part in map(_part, _filled(seeing.file, seeing.table(seeing.config())))} if seeing else set()
    return {*parts, *(whole & {"decoder"})}


def _held(system: Opened) -> set[str]:
    """Which parts a system's checkpoint has weights of; LoRA alone is no decoder."""
    table = system.table(system.config())
    weights = {rule.path for rule in table.rules if rule.path and not rule.path.endswith((".lora_a", ".lora_b"))}
    filled = _filled(system.file, table) & weights
    partial = PUBLISHED[system.layout].partial if system.layout in PUBLISHED else ()
    absent = {part for part in map(_part, weights - filled) if part in partial}
    return set(map(_part, filled)) - absent


def _part(path: str) -> str:
    return path.split(".")[0]


def _filled(file: TensorFile, table: Table) -> set[str]:
    """Paths of the parameters that a file holds."""
    mapped = contents(file.keys(), table).mapped
    return {rule.path for rule in table.rules if rule.path and rule.names[0] in mapped}


def _with_encoder(system: Opened, parts: dict[str, Opened]) -> dict[str, Opened]:
    """The same with the encoder that the system's published checkpoints leave out, if it is not there."""
    default = _own_encoder(system)
    if default is None or "encoder" in _held(system) | parts.keys():
        return parts
    try:
        return parts | {"encoder": replace(_open_encoder(default, LAYOUTS[system.layout].parts[:1]), part="encoder")}
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. {system.name} listens through it: give it as base (alm ask: --base)"
        ) from error


def _own_encoder(system: Opened) -> str | None:
    return PUBLISHED[system.layout].encoder if system.layout in PUBLISHED else None


def _missing(system: Opened, parts: Mapping[str, Opened]) -> list[str]:
    have = _held(system) | _with_decoder(parts) | ({"encoder"} if _own_encoder(system) else set())
    what = {"decoder": "its LLaMA (give the one that it was trained over", "encoder": "its encoder (give that model"}
    return [f"it lacks {said} as base; alm ask: --base)" for part, said in what.items() if part not in have]


def _untold(system: Opened, parts: Mapping[str, Opened]) -> list[str]:
    """What the tensors of a checkpoint without a spec do not tell, nor the settings beside them."""
    whole, problems = system.config(), []
    configs = {part: getattr(whole, part) for part in ("encoder", "aligner", "decoder") if part in _held(system)}
    for part, config in (configs | {part: opened.config() for part, opened in parts.items()}).items():
        problems += heads_untold(config, parts.get(part, system).folder)
    return problems


def _published_spec(system: Opened, parts: Mapping[str, Opened]) -> Spec:
    """Sizes by the tensors and the settings beside them, the rest as the published code has it."""
    told, published = system.config(), PUBLISHED[system.layout]
    seeing = parts["vision"].config() if "vision" in parts else None
    base = parts["decoder"].config() if "decoder" in parts else seeing and seeing.decoder
    decoder = told.decoder if base is None else replace(base, lora=told.decoder.lora)
    encoder = parts["encoder"].config() if "encoder" in parts else told.encoder
    model = published.assemble(decoder, encoder, told.aligner)
    if seeing is None:
        return Spec(model, published.layout, published.template, published.sampling)
    return Spec(replace(model, vision=seeing.vision), published.seeing, published.template, published.sampling)


def _tokenizer(system: Opened, parts: Mapping[str, Opened], given: str | None) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer, and what is to be said where there is none."""
    if given is not None:
        return load_tokenizer(resolve(given).path), []
    llama = parts.get("decoder", parts.get("vision", system))
    places = [system.folder, llama.file.path if llama.layout == "llama_gguf" else llama.folder]
    for place in places:
        if place.is_file() or any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            return load_tokenizer(place), []
    return None, [
        "it lacks a tokenizer (give its tokenizer.model or tokenizer.json as tokenizer; alm ask: --tokenizer)"
    ]


def _aligner_tokenizer(system: Opened, spec: Spec) -> Tokenizer | None:
    """The tokenizer of an aligner that reads text: beside the checkpoint, or that of the model it began as."""
    if not spec.layout.aligner_text_tokens:
        return None
    for place in (system.folder / ALIGNER, system.folder / "vocab.txt"):
        if place.exists():
            return load_tokenizer(place)
    published = PUBLISHED.get(system.layout)
    try:
        return load_tokenizer(resolve((published and published.aligner_tokenizer) or "bert-mini").path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. Its aligner reads text: put BERT's vocab.txt beside {system.file.path}"
        ) from error


def _arrays(system: System, precision: Precision | None) -> dict[str, jax.Array]:
    config, own = system.spec.model, system.checkpoints[0].folder
    target = tree.flatten(tree.abstract(lambda key: build(config, key)))
    fills = check(target, system.sources)
    frozen = (precision or default_precision()).frozen

    def dtype(path: str) -> Any:
        file, name = fills[path].file, fills[path].names[0]
        if not jnp.issubdtype(target[path].dtype, jnp.floating):
            return target[path].dtype
        # What was trained keeps its float32 on accelerators, as in training; on CPU all is float32.
        as_it_is = precision is None and frozen != "float32" and file.path.is_relative_to(own)
        return file.dtype(name) if as_it_is else frozen

    return load({path: jax.ShapeDtypeStruct(leaf.shape, dtype(path)) for path, leaf in target.items()}, system.sources)
