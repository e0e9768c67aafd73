"""`alm convert`: a run or checkpoint in the names of another library, or in this one's."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from alm_jax.cli.parse import parse
from alm_jax.core.display import progress
from alm_jax.core.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from alm_jax.cli.convert_source import Weights
    from alm_jax.convert.names import Style

_WORDS = ("hf", "official", "alm", "peft")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
# Of a checkpoint's folder, what is copied beside the new weights.
_BESIDE = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("*.jinja", "generation_config.json", "preprocessor_config.json", "processor_config.json", "LICENSE*"),
)


@dataclass
class Convert:
    """Write a run or a checkpoint as safetensors, in the names that PyTorch code reads or in alm_jax's own.

    SRC is a run's folder, or a checkpoint in any known format and layout (`alm inspect SRC` shows which): safetensors,
    PyTorch .bin and .pth, GGUF, CTranslate2. Values and dtypes are kept, and so are tensors that the model never uses.
    DST gets the weights, config.json, the tokenizer and a model card, all of it or nothing; nothing but a layer is held
    in memory.

    --to says which names: hf, those of transformers; official, those that the system or model was published in; alm,
    this library's own, for alm_jax.load, alm ask and training; peft, the LoRA adapters alone, for PEFT. A layout's name
    is taken too. Without it names stay as they are; a run gets its system's official ones, GGUF and CTranslate2 get hf.

    examples:
      alm convert runs/mine out/ltu                         the whole model, as LTU's code names it
      alm convert runs/mine out/adapter --to peft           the LoRA adapters alone
      alm convert runs/mine out/llama --part decoder --merge --to hf
      alm convert SmolLM2-135M-Instruct.gguf out/smollm2    GGUF to transformers' names
      alm convert ltu_ori_paper.bin out/ltu --to alm --base vicuna_ltu --dtype bf16
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """a run's folder; a checkpoint's file or folder; or a model's name on the hub"""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """folder to write, new or empty"""
    to: Annotated[str | None, tyro.conf.arg(metavar="{hf,official,alm,peft}")] = None
    """names to write (default: those of SRC, or the published ones of a run's system)"""
    dtype: Literal["bf16", "f32", "f16"] | None = None
    """of floating-point values (default: as they are)"""
    part: Literal["encoder", "aligner", "decoder"] | None = None
    """one part of a system, in its own layout"""
    base: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    """a checkpoint that SRC was trained over, for what SRC lacks; once for each"""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """tokenizer of a checkpoint (default: what lies beside it)"""
    merge: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """add LoRA adapters to the weights that they stand beside"""
    unmerge: Annotated[str | None, tyro.conf.arg(metavar="ADAPTER")] = None
    """take a PEFT adapter off weights that it was merged into"""
    max_shard_size: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "5GB"
    """largest file, e.g. 500MB; more weights than this are sharded, with an index"""


@dataclass(frozen=True)
class Target:
    """Where weights go: a layout, the spelling of its keys, and the name of the file."""

    layout: str
    style: Style
    stem: str = "model"


def run(args: list[str]) -> None:
    """Convert as `args` say, and print which file to open."""
    options = parse(Convert, args, "convert")
    size = _bytes(options.max_shard_size)
    if options.to is not None:
        _check_word(options.to)

    from alm_jax.api import is_run
    from alm_jax.cli.convert_source import from_checkpoint, from_run, merged, unmerged
    from alm_jax.convert.checkpoint import heads_untold
    from alm_jax.core.files import new_folder

    if is_run(options.src):
        if options.base or options.tokenizer:
            raise UsageError(f"{options.src} is a run, which has its own base and tokenizer: leave those options out")
        weights = from_run(options.src)
    else:
        whole = options.to == "alm" and not options.part
        weights = from_checkpoint(options.src, options.base, options.tokenizer, whole)
    dtype = _numpy_dtype(options.dtype)
    if options.merge:
        weights = merged(weights, dtype)
    if options.unmerge:
        weights = unmerged(weights, options.unmerge, dtype)
    if options.part:
        weights = weights.part(options.part)
    weights, target = choose_target(weights, options.to)
    untold = heads_untold(weights.config, weights.folder) if target.stem == Target.stem else []
    if untold and target.layout == "alm":
        raise CheckpointError(f"{weights.name} cannot be used as it is: {'; '.join(untold)}")
    with new_folder(options.dst) as folder:
        written = write(folder, weights, target, dtype, size)
    print(options.dst / written.name)
    if untold:
        print(f"without a config.json: {'; '.join(untold)}", file=sys.stderr)


def _check_word(word: str) -> None:
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.core.config import did_you_mean

    known = (*_WORDS, *(name for name, layout in LAYOUTS.items() if not layout.becomes))
    if word not in known:
        raise UsageError(f"--to {word}: no such names{did_you_mean(word, known)}; known: {', '.join(known)}")


def choose_target(weights: Weights, word: str | None) -> tuple[Weights, Target]:
    """What is written where for `--to word`.

    Raises:
        UsageError: the weights cannot be written so.
    """
    from alm_jax.convert.checkpoint import is_hf, layouts_of
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.convert.names import ADAPTER, PLAIN

    alone = len(weights.adapters) == len(weights.arrays)
    if word == "peft" or (alone and word is None):
        part = _adapters(weights)
        return part, Target(next(filter(is_hf, layouts_of(part.config))), ADAPTER, "adapter_model")
    if alone:
        raise UsageError(f"--to {word}: {weights.name} holds LoRA adapters alone; give --base, or --to peft")
    if word == "alm" or (word is None and weights.origin.layout == "alm"):
        return weights, Target("alm", PLAIN)
    fitting = layouts_of(weights.config)
    given = LAYOUTS[weights.origin.layout].becomes or weights.origin.layout
    if word is None:
        layout = given
    elif word == "hf":
        layout = next(filter(is_hf, fitting), "")
        if not layout:
            hint = "; give --part encoder or --part decoder" if weights.is_system else ""
            raise UsageError(f"--to hf: transformers has no class of {weights.name}{hint}")
        if weights.adapters:
            raise UsageError(
                f"--to hf: {weights.name} has LoRA adapters, which transformers' classes do not hold; give --merge, or "
                "--to peft for the adapters alone"
            )
    elif word == "official":
        published = [name for name in fitting if not is_hf(name)]
        layout = given if given in published else (published or fitting or [""])[0]
    else:
        layout = word
    if layout not in fitting:
        raise UsageError(
            f"--to {word or layout}: {weights.name} is no such model; it can be written as "
            f"{', '.join([*fitting, 'alm'])}"
        )
    return weights, Target(layout, _style(weights, layout, word))


def _style(weights: Weights, layout: str, word: str | None) -> Style:
    """How keys are spelt: as they came where the layout stays; else as the published files do."""
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.convert.names import PLAIN

    came, stays = weights.origin.style, layout == weights.origin.layout
    if stays and word not in ("hf", "official"):
        return came
    published = LAYOUTS[layout].style
    style = published if weights.adapters else replace(PLAIN, tied=published.tied)
    return replace(style, bare=came.bare, tied=came.tied) if stays else style


def _adapters(weights: Weights) -> Weights:
    """The adapters alone, as parameters of the language model."""
    if not weights.adapters:
        raise UsageError(f"--to peft: {weights.name} has no LoRA adapters")
    if weights.lora is None:
        raise UsageError(
            f"--to peft: nothing tells how {weights.name} scales its adapters; put its adapter_config.json beside"
        )
    part = weights.part("decoder") if weights.is_system else weights
    return replace(part, arrays=part.adapters, dead={}, tokenizer=None)


def write(folder: Path, weights: Weights, target: Target, dtype: Any, shard_bytes: int) -> Path:
    """Write weights and all that belongs beside them into a folder; the file to open.

    Raises:
        CheckpointError: values that the dtype cannot hold, or a tokenizer that does not belong to the weights.
    """
    from alm_jax.convert import alm, save
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.convert.load import fold

    table = LAYOUTS[target.layout].table(weights.config)
    paths = {rule.path for rule in table.rules}
    arrays = {path: leaf for path, leaf in weights.arrays.items() if path in paths}
    left = {path: leaf for path, leaf in weights.arrays.items() if path not in paths}
    if homeless := [path for path in left if not (weights.is_system and path.startswith("encoder."))]:
        raise UsageError(f"--to {target.layout}: it has no place for {', '.join(sorted(fold(homeless)))}; --to alm has")
    beyond: list[str] = []

    def cast(tensors: Iterable[Any]) -> Iterable[Any]:
        return tensors if dtype is None else (save.cast(tensor, dtype, beyond) for tensor in tensors)

    def put(where: Path, tensors: Iterable[Any], stem: str) -> Path:
        with progress(f"{stem}.safetensors") as shown:
            counted = _counted(list(cast(tensors)), shown)
            return save.save_safetensors(where, counted, stem=stem, shard_bytes=shard_bytes)

    stays = target.layout in (weights.origin.layout, LAYOUTS[weights.origin.layout].becomes)
    unused = {key: leaf for key, leaf in weights.dead.items() if stays and key in table.dead}
    tensors = list(save.tensors(arrays, table, target.style, unused))
    written = put(folder, tensors, target.stem)
    if target.layout == "alm" and weights.dead:
        put(folder, [save.as_tensor(key, leaf) for key, leaf in weights.dead.items()], alm.DEAD)
    if left:
        _write_encoder(folder, weights, left, put)
    if beyond:
        raise CheckpointError(
            f"values beyond the range of {dtype} in {', '.join(fold(beyond))}: give --dtype bf16 or f32"
        )
    _write_settings(folder, weights, target, {str(dtype or t.dtype) for t in tensors if _floating(t.dtype)})
    _write_tokenizer(folder, weights)
    (folder / "README.md").write_text(_card(weights, target, dtype), encoding="utf-8")
    return written


def _counted(tensors: Sequence[Any], shown: Callable[[int, int], None]) -> Iterator[Any]:
    """The tensors, which call `shown(written, all)` as they are written."""
    written = itertools.count(1)

    def pieces(tensor: Any) -> Iterator[Any]:
        yield from tensor.pieces()
        shown(next(written), len(tensors))

    for tensor in tensors:
        yield replace(tensor, pieces=partial(pieces, tensor))


def _write_encoder(folder: Path, weights: Weights, left: dict[str, Any], put: Any) -> None:
    """The encoder of a system whose layout has no place for it, in its own."""
    from alm_jax.convert import alm, save
    from alm_jax.convert.checkpoint import layout_for
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.infer.checkpoint import ENCODER

    config = weights.config.encoder
    arrays = {path.removeprefix("encoder."): leaf for path, leaf in left.items()}
    table = LAYOUTS[layout_for(config)].table(config)
    put(folder / ENCODER, save.tensors(arrays, table), "model")
    _write_json(folder / ENCODER / "config.json", alm.settings(config))


def _write_settings(folder: Path, weights: Weights, target: Target, dtypes: set[str]) -> None:
    """`config.json`: of transformers where the names are, else of this library; or `adapter_config.json`."""
    from alm_jax.convert import alm
    from alm_jax.convert.checkpoint import headless, is_hf
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.convert.peft import to_adapter_config
    from alm_jax.core.config import to_json

    origin = weights.origin if target.layout == "alm" else None
    if target.stem == "adapter_model":
        base = next((s.name for s in weights.sources if s.role.startswith("decoder")), None)
        _write_json(folder / "adapter_config.json", to_adapter_config(weights.lora, base))
        return
    if weights.spec is not None:
        _write_json(folder / "config.json", alm.header(origin) | {"spec": to_json(weights.spec)})
        return
    if headless(weights.config):
        return
    layout = LAYOUTS[target.layout]
    if is_hf(target.layout):
        told = _told(weights) if target.layout == weights.origin.layout else None
        content = told or (layout.settings and layout.settings(weights.config))
        if content:
            content = {key: value for key, value in content.items() if key != "torch_dtype"}
            _write_json(folder / "config.json", content | ({"dtype": dtypes.pop()} if len(dtypes) == 1 else {}))
            return
    _write_json(folder / "config.json", alm.settings(weights.config, origin))


def _told(weights: Weights) -> dict[str, Any] | None:
    """The `config.json` of transformers beside the weights."""
    path = weights.folder and weights.folder / "config.json"
    if not path or not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if "model_type" in content else None


def _write_tokenizer(folder: Path, weights: Weights) -> None:
    """The tokenizer, if it is known or lies beside the weights; its size has to fit theirs."""
    from alm_jax.core.errors import ConfigError
    from alm_jax.data.tokenizer import check_size, load_tokenizer
    from alm_jax.infer.checkpoint import ALIGNER, ENCODER_TOKENIZER

    if weights.tokenizer is None and weights.folder is not None:
        for name in sorted({path for pattern in _BESIDE for path in weights.folder.glob(pattern) if path.is_file()}):
            shutil.copyfile(name, folder / name.name)
    decoder = weights.config.decoder if weights.is_system else weights.config
    rows = getattr(decoder, "vocab_size", None)
    if weights.tokenizer is not None:
        weights.tokenizer.save(folder)
    if weights.aligner_tokenizer is not None:
        weights.aligner_tokenizer.save(folder / ALIGNER)
    if weights.encoder_tokenizer is not None:
        weights.encoder_tokenizer.save(folder / ENCODER_TOKENIZER)
    if rows is None:
        return
    try:
        tokenizer = weights.tokenizer or load_tokenizer(folder)
    except ConfigError:  # none, or of a kind that this library does not use
        return
    check_size(tokenizer, rows, weights.name)


def _card(weights: Weights, target: Target, dtype: Any) -> str:
    from alm_jax.convert.card import write_card
    from alm_jax.convert.checkpoint import is_hf

    kind = type(weights.config.aligner if weights.is_system else weights.config).__name__.removesuffix("Config")
    if target.stem == "adapter_model":
        subject, names = f"LoRA adapters of a {kind} model", "`peft`"
    else:
        subject = f"An audio-language model with a {kind} aligner" if weights.is_system else f"A {kind} model"
        names = "alm_jax" if target.layout == "alm" else "`transformers`" if is_hf(target.layout) else "its publication"
    size = sum(prod(leaf.shape) for leaf in weights.arrays.values())
    what = f"{subject}: {size:,} parameters in the names of {names} (layout `{target.layout}`)"
    what += f", cast to {dtype}." if dtype is not None else "."
    return write_card(Path(weights.name).name, what=what, sources=weights.sources, training=weights.training)


def _floating(dtype: Any) -> bool:
    import jax.numpy as jnp

    return bool(jnp.issubdtype(dtype, jnp.floating))


def _numpy_dtype(name: str | None) -> Any:
    import jax.numpy as jnp

    return name and jnp.dtype({"bf16": "bfloat16", "f32": "float32", "f16": "float16"}[name])


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise UsageError(f"--max-shard-size {text}: expected a size such as 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
