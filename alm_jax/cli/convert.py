"""`alm convert`: a run or checkpoint as safetensors under the names that PyTorch code reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from alm_jax.cli.parse import parse
from alm_jax.core.errors import UsageError

# Layouts that are read and not written, and what they become.
_BECOMES = {"llama_gguf": "llama_hf", "llama_lora": "llama_hf", "whisper_ctranslate2": "whisper_hf"}


@dataclass
class Convert:
    """Write a run or a checkpoint as safetensors under the names that PyTorch code reads.

    Of a whole run, DST also gets config.json and the tokenizer, so that `alm ask DST` answers as the run does, and
    encoder/ where the layout has no place for the encoder (LTU-AS).

    SRC is a run's folder, or a checkpoint in any known format and layout (`alm inspect SRC` shows which): safetensors,
    PyTorch .bin, GGUF, CTranslate2. Values and dtypes are kept, and so are tensors that the model never uses.

    examples:
      alm convert runs/mine out/ltu                         the whole model, as LTU's code names it
      alm convert runs/mine out/adapter --style adapter     the LoRA adapter alone, for PEFT
      alm convert SmolLM2-135M-Instruct.gguf out/smollm2    GGUF to transformers' names
      alm convert openai/whisper-base out/whisper --to whisper_openai
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """a run's folder; a checkpoint's file or folder; or a model's name on the hub"""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """folder to write to, without such files yet"""
    to: Literal["llama_hf", "whisper_hf", "whisper_openai", "cav_mae", "ltu", "ltu_as"] | None = None
    """layout to write (default: that of SRC, or the published one of a run's system)"""
    style: Literal["plain", "published", "adapter"] = "plain"
    """how keys are spelt: plain, as transformers does; published, as in LTU's .bin files; adapter, LoRA alone"""
    part: Literal["encoder", "decoder"] | None = None
    """one part of a run's model, in its own layout"""


@dataclass(frozen=True)
class Source:
    """What is to be written.

    Attributes:
        arrays: `{path: array}`. config: of the part or system, for its tables. lora: of its adapters, if known.
        layout: the natural one to write. dead: tensors that no parameter takes, by canonical name.
        run: the run whose whole model this is.
    """

    arrays: dict[str, Any]
    config: Any
    layout: str
    lora: Any = None
    dead: Mapping[str, Any] = field(default_factory=dict)
    run: Any = None


def run(args: list[str]) -> None:
    """Convert as `args` say, and print which file to open."""
    options = parse(Convert, args, "convert")

    from alm_jax.api import is_run

    if is_run(options.src):
        source = _from_run(options.src, options.part)
    elif options.part:
        raise UsageError(f"--part takes a part of a run's model, and {options.src} is no run")
    else:
        source = _from_checkpoint(options.src)
    print(_write(source, options))


def _from_run(path: str, part: str | None) -> Source:
    from alm_jax.cli.checkpoints import layout_for
    from alm_jax.train.run import load_run

    loaded = load_run(path)
    lora = loaded.model.decoder.lora
    if part is None:
        return Source(loaded.arrays, loaded.model, layout_for(loaded.model, loaded.arrays), lora, run=loaded)
    prefix, config = f"{part}.", getattr(loaded.model, part)
    arrays = {name.removeprefix(prefix): leaf for name, leaf in loaded.arrays.items() if name.startswith(prefix)}
    return Source(arrays, config, layout_for(config, arrays), lora)


def _from_checkpoint(name: str) -> Source:
    from alm_jax.cli.checkpoints import open_checkpoint, read_all
    from alm_jax.convert.layouts import LAYOUTS, config_of, detect
    from alm_jax.convert.load import dead
    from alm_jax.convert.peft import adapter_of

    file = open_checkpoint(name)
    layout = detect(file.keys())
    config = config_of(file, layout)
    table = LAYOUTS[layout].table(config)
    return Source(read_all(file, table), config, _BECOMES.get(layout, layout), adapter_of(file), dead(file, table))


def _write(source: Source, options: Convert) -> Path:
    from alm_jax.convert import names, save
    from alm_jax.convert.layouts import LAYOUTS, kind_of
    from alm_jax.convert.peft import to_adapter_config
    from alm_jax.models.alm import AlmConfig

    layout = options.to or source.layout
    system = isinstance(source.config, AlmConfig)
    if layout != source.layout if system else not isinstance(source.config, kind_of(layout)):
        raise UsageError(f"--to {layout}: {options.src} is no such model; its layout is {source.layout}")
    table = LAYOUTS[layout].table(source.config)
    known = {rule.path for rule in table.rules}
    arrays = {path: leaf for path, leaf in source.arrays.items() if path in known}
    whole = source.run is not None and options.style != "adapter"
    if options.style == "adapter":
        arrays = {path: leaf for path, leaf in arrays.items() if path.endswith((".lora_a", ".lora_b"))}
        if not arrays or source.lora is None:
            missing = "adapter_config.json beside it" if arrays else "LoRA adapters"
            raise UsageError(f"--style adapter: {options.src} has no {missing}")
    if whole and (taken := [name for name in ("config.json", "encoder") if (options.dst / name).exists()]):
        raise UsageError(f"{options.dst} holds {' and '.join(taken)} already; give an empty folder")
    style = {"plain": names.PLAIN, "published": names.PUBLISHED, "adapter": names.ADAPTER}[options.style]
    dead = {} if options.style == "adapter" else {key: leaf for key, leaf in source.dead.items() if key in table.dead}
    stem = "adapter_model" if options.style == "adapter" else "model"
    written = save.save_safetensors(options.dst, save.export(arrays, table, style, dead), stem=stem)
    if options.style == "adapter":
        config = json.dumps(to_adapter_config(source.lora), indent=2)
        (options.dst / "adapter_config.json").write_text(config, encoding="utf-8")
    if whole:
        _complete(source, {path: leaf for path, leaf in source.arrays.items() if path not in known}, options.dst)
    return written


def _complete(source: Source, left: dict[str, Any], folder: Path) -> None:
    """Write what a run's checkpoint needs to be loaded: the encoder, if it is left over, the config, the tokenizer."""
    from alm_jax.api import spec_of
    from alm_jax.cli.checkpoints import layout_for
    from alm_jax.convert import save
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.data.tokenizer import load_tokenizer
    from alm_jax.infer.checkpoint import ENCODER, write_spec

    if left:
        encoder = {path.removeprefix("encoder."): leaf for path, leaf in left.items()}
        table = LAYOUTS[layout_for(source.config.encoder, encoder)].table(source.config.encoder)
        save.save_safetensors(folder / ENCODER, save.export(encoder, table))
    write_spec(folder, spec_of(source.run), load_tokenizer(source.run.path / "tokenizer"))
