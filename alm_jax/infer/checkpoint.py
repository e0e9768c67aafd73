"""A whole system from checkpoints: a converted run, or published weights with the models they were trained over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.hub import resolve
from alm_jax.convert.layouts import LAYOUTS, config_of, detect, heads_setting, kind_of
from alm_jax.convert.load import check, contents, load
from alm_jax.convert.rules import Table
from alm_jax.convert.sizes import json_beside, settings_of
from alm_jax.core import tree
from alm_jax.core.config import config_types, from_json, to_json
from alm_jax.core.errors import CheckpointError, UsageError
from alm_jax.core.files import write_text
from alm_jax.core.precision import Precision, default_precision
from alm_jax.core.sequence import Layout
from alm_jax.data.templates import ALPACA_SHORT, Template
from alm_jax.data.tokenizer import Tokenizer, load_tokenizer
from alm_jax.infer.loaded import LoadedModel, Spec
from alm_jax.infer.sampling import LTU_SAMPLING, Sampling
from alm_jax.models import ltu, ltu_as
from alm_jax.models.alm import AlmConfig, build
from alm_jax.models.decoders.llama import LlamaConfig

FORMAT = 1
ENCODER = "encoder"  # folder of an encoder for which the layout beside it has no place


@dataclass(frozen=True)
class Published:
    """What the published checkpoints of a system do not say of themselves.

    Attributes:
        assemble: the system over a decoder and an encoder.
        layout, template, sampling: see `infer.loaded.Spec`.
        encoder: the model whose encoder it listens through, where its checkpoints leave that out.
    """

    assemble: Callable[[Any, Any], AlmConfig]
    layout: Layout
    template: Template = ALPACA_SHORT
    sampling: Sampling = LTU_SAMPLING
    encoder: str | None = None


PUBLISHED = {
    "ltu": Published(ltu.ltu, ltu.LAYOUT),
    "ltu_as": Published(ltu_as.ltu_as, ltu_as.LAYOUT, encoder="openai/whisper-large"),
}


@dataclass(frozen=True)
class _Opened:
    """A checkpoint, and the part of a system that it is (`decoder`, `encoder`, or "" for the whole)."""

    name: str
    file: TensorFile
    layout: str
    part: str = ""

    @property
    def folder(self) -> Path:
        return self.file.path.parent

    def config(self) -> Any:
        return config_of(self.file, self.layout)

    def table(self, config: AlmConfig) -> Table:
        """How its tensors make the parameters of the system `config`."""
        if not self.part:
            return LAYOUTS[self.layout].table(config)
        table = LAYOUTS[self.layout].table(getattr(config, self.part)).under(f"{self.part}.")
        # `vicuna_ltu`, LTU's base, carries a first audio encoder that every checkpoint over it replaces.
        return table + Table(ignored=("model.audio_encoder.*", "model.audio_proj.*"))


def load_checkpoint(
    name: str, *, base: Sequence[str] = (), tokenizer: str | None = None, precision: Precision | None = None
) -> LoadedModel:
    """The model of a checkpoint that `alm convert` wrote of a run, or of one in a published layout (`PUBLISHED`).

    Args:
        name: file, folder or name on the hub. base: checkpoints of what it lacks: the LLaMA that LoRA was trained over,
            the encoder. tokenizer: file, folder or name; by default what lies beside the checkpoint or the LLaMA.
        precision: None holds what the checkpoint's folder holds as it is, the rest and activations by the device.

    Raises:
        CheckpointError: a checkpoint cannot be found, read or fitted, or pieces are missing; the message says which
            argument gives them. UsageError: a base that is not needed.
    """
    system = _open(name)
    if system.layout not in PUBLISHED:
        raise CheckpointError(
            f"{system.file.path} has the layout {system.layout}, which is a part; expected a whole system "
            f"({', '.join(PUBLISHED)}) or a run. A part is given as base of the checkpoint that was trained over it"
        )
    beside = [str(system.folder / ENCODER)] if (system.folder / ENCODER).is_dir() else []
    parts = _parts(system, [*base, *beside])
    spec = read_spec(system.file)
    words, problems = _tokenizer(system, parts, tokenizer)
    problems += _missing(system, parts) + ([] if spec else _untold(system, parts))
    if problems:
        raise CheckpointError(f"{system.file.path} is not enough by itself: {'; '.join(problems)}")
    parts = _with_encoder(system, parts)
    spec = spec or _published_spec(system, parts)
    if words.vocab_size > (ids := spec.model.decoder.vocab_size):
        raise CheckpointError(
            f"the tokenizer has {words.vocab_size} ids, the decoder of {system.name} {ids}: give the one that belongs "
            "to it as tokenizer (alm ask: --tokenizer)"
        )
    return LoadedModel(spec, _arrays(spec.model, system, parts, precision), words, precision and precision.compute)


def write_spec(folder: Path, spec: Spec, tokenizer: Tokenizer) -> None:
    """Write beside a checkpoint what `load_checkpoint` needs to read it as it was: `config.json` and the tokenizer.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        tokenizer.save(folder)
        write_text(folder / "config.json", json.dumps({"format": FORMAT, "spec": to_json(spec)}, indent=1))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write config.json and the tokenizer: {error}") from error


def read_spec(file: TensorFile) -> Spec | None:
    """What `write_spec` wrote beside a file; None if there is no `config.json`, or one of other software.

    Raises:
        CheckpointError: it is damaged, or of a newer format.
    """
    content, path = json_beside(file, "config.json"), file.path.parent / "config.json"
    if content is None or "spec" not in content:
        return None
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {content.get('format')!r}; this version of alm_jax reads {FORMAT}: upgrade alm_jax"
        )
    spec = from_json(content["spec"], config_types(Spec))
    if not isinstance(spec, Spec):
        raise CheckpointError(f"{path}: its spec is a {type(spec).__name__}, expected a Spec")
    return spec


def _open(name: str) -> _Opened:
    file = open_tensors(resolve(name).path)
    return _Opened(name, file, detect(file.keys()))


def _parts(system: _Opened, names: Sequence[str]) -> dict[str, _Opened]:
    """Checkpoints of parts, by part."""
    held, parts = _held(system), {}
    for name in names:
        opened = _open(name)
        # A whole system is a base for its LLaMA: LTU's own (`vicuna_ltu`) carries a first audio encoder too.
        layout = "llama_hf" if opened.layout in PUBLISHED else opened.layout
        part = "decoder" if kind_of(layout) is LlamaConfig else "encoder"
        if part in held or part in parts:
            other = parts[part].name if part in parts else system.name
            raise UsageError(f"base {name} is not needed: {other} holds the {part}; leave one of them out")
        parts[part] = _Opened(name, opened.file, layout, part)
    return parts


def _held(system: _Opened) -> set[str]:
    """Which parts a system's checkpoint has weights of; LoRA alone is no decoder."""
    table = system.table(system.config())
    mapped = contents(system.file.keys(), table).mapped
    paths = {rule.path or "" for rule in table.rules if rule.names[0] in mapped}
    return {path.split(".")[0] for path in paths if not path.endswith((".lora_a", ".lora_b"))}


def _with_encoder(system: _Opened, parts: dict[str, _Opened]) -> dict[str, _Opened]:
    """The same with the encoder that the system's published checkpoints leave out, if it is not there."""
    default = PUBLISHED[system.layout].encoder
    if default is None or "encoder" in parts:
        return parts
    try:
        return parts | {"encoder": replace(_open(default), part="encoder")}
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. {system.name} listens through it: give it as base (alm ask: --base)"
        ) from error


def _missing(system: _Opened, parts: Mapping[str, _Opened]) -> list[str]:
    have = _held(system) | parts.keys() | ({"encoder"} if PUBLISHED[system.layout].encoder else set())
    what = {"decoder": "its LLaMA (give the one that it was trained over", "encoder": "its encoder (give that model"}
    return [f"it lacks {said} as base; alm ask: --base)" for part, said in what.items() if part not in have]


def _untold(system: _Opened, parts: Mapping[str, _Opened]) -> list[str]:
    """What the tensors of a checkpoint without a spec do not tell, nor the settings beside them."""
    whole, problems = system.config(), []
    configs = {part: getattr(whole, part) for part in ("encoder", "decoder") if part in _held(system)}
    for part, config in (configs | {part: opened.config() for part, opened in parts.items()}).items():
        if not config.heads:
            problems.append(
                f"nothing tells how many heads its {part} of width {config.dim} has (put a config.json with "
                f"{heads_setting(config)} beside {parts.get(part, system).file.path})"
            )
    llama = parts.get("decoder", system).file
    for name in ("rope_scaling", "rope_parameters"):
        kinds = settings_of(llama).get(name) or {}
        kind = kinds.get("rope_type", kinds.get("type", "default"))
        if kind != "default":
            problems.append(f"the LLaMA {llama.path} has {name} of type {kind}, which is not supported")
    return problems


def _published_spec(system: _Opened, parts: Mapping[str, _Opened]) -> Spec:
    """Sizes by the tensors and the settings beside them, the rest as the published code has it."""
    told, published = system.config(), PUBLISHED[system.layout]
    decoder = replace(parts["decoder"].config(), lora=told.decoder.lora) if "decoder" in parts else told.decoder
    encoder = parts["encoder"].config() if "encoder" in parts else told.encoder
    return Spec(published.assemble(decoder, encoder), published.layout, published.template, published.sampling)


def _tokenizer(system: _Opened, parts: Mapping[str, _Opened], given: str | None) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer, and what is to be said where there is none."""
    if given is not None:
        return load_tokenizer(resolve(given).path), []
    llama = parts.get("decoder", system)
    places = [system.folder, llama.file.path if llama.layout == "llama_gguf" else llama.folder]
    for place in places:
        if place.is_file() or any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            return load_tokenizer(place), []
    return None, [
        "it lacks a tokenizer (give its tokenizer.model or tokenizer.json as tokenizer; alm ask: --tokenizer)"
    ]


def _arrays(
    config: AlmConfig, system: _Opened, parts: Mapping[str, _Opened], precision: Precision | None
) -> dict[str, jax.Array]:
    target = tree.flatten(tree.abstract(lambda key: build(config, key)))
    sources = [(opened.file, opened.table(config)) for opened in (system, *parts.values())]
    fills = check(target, sources)
    frozen = (precision or default_precision()).frozen

    def dtype(path: str) -> Any:
        file, name = fills[path].file, fills[path].names[0]
        if not jnp.issubdtype(target[path].dtype, jnp.floating):
            return target[path].dtype
        # What was trained keeps its float32 on accelerators, as in training; on CPU all is float32.
        own = precision is None and frozen != "float32" and file.path.is_relative_to(system.folder)
        return file.dtype(name) if own else frozen

    return load({path: jax.ShapeDtypeStruct(leaf.shape, dtype(path)) for path, leaf in target.items()}, sources)
