"""`alm convert`: a run or checkpoint as safetensors under the names that PyTorch code reads."""

from __future__ import annotations

import json
import sys
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
    """

    arrays: dict[str, Any]
    config: Any
    layout: str
    lora: Any = None
    dead: Mapping[str, Any] = field(default_factory=dict)


def run(args: list[str]) -> None:
    """Convert as `args` say, and print which file to open."""
    options = parse(Convert, args, "convert")

    from alm_jax.cli.checkpoints import is_run

    if is_run(Path(options.src)):
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
        return Source(loaded.arrays, loaded.model, layout_for(loaded.model, loaded.arrays), lora)
    prefix, config = f"{part}.", getattr(loaded.model, part)
    arrays = {name.removeprefix(prefix): leaf for name, leaf in loaded.arrays.items() if name.startswith(prefix)}
    return Source(arrays, config, layout_for(config, arrays), lora)


def _from_checkpoint(name: str) -> Source:
    from alm_jax.cli.checkpoints import config_of, open_checkpoint, read_all
    from alm_jax.convert.layouts import LAYOUTS, detect
    from alm_jax.convert.load import dead
    from alm_jax.convert.peft import from_adapter_config

    file = open_checkpoint(name)
    layout = detect(file.keys())
    config = config_of(file, layout)
    table = LAYOUTS[layout].table(config)
    beside = file.path.parent / "adapter_config.json"
    lora = from_adapter_config(json.loads(beside.read_text(encoding="utf-8"))) if beside.is_file() else None
    return Source(read_all(file, table), config, _BECOMES.get(layout, layout), lora, dead(file, table))


def _write(source: Source, options: Convert) -> Path:
    from alm_jax.cli.checkpoints import kind_of
    from alm_jax.convert import names, save
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.convert.load import fold
    from alm_jax.convert.peft import to_adapter_config

    layout = options.to or source.layout
    if not isinstance(source.config, kind_of(layout)):
        raise UsageError(f"--to {layout}: {options.src} is no such model; its layout is {source.layout}")
    table = LAYOUTS[layout].table(source.config)
    known = {rule.path for rule in table.rules}
    arrays = {path: leaf for path, leaf in source.arrays.items() if path in known}
    if options.style == "adapter":
        arrays = {path: leaf for path, leaf in arrays.items() if path.endswith((".lora_a", ".lora_b"))}
        if not arrays or source.lora is None:
            missing = "adapter_config.json beside it" if arrays else "LoRA adapters"
            raise UsageError(f"--style adapter: {options.src} has no {missing}")
    elif left := fold(path for path in source.arrays if path not in known):
        print(f"layout {layout} has no place for {', '.join(left)}; see --part", file=sys.stderr)
    style = {"plain": names.PLAIN, "published": names.PUBLISHED, "adapter": names.ADAPTER}[options.style]
    dead = {} if options.style == "adapter" else {key: leaf for key, leaf in source.dead.items() if key in table.dead}
    stem = "adapter_model" if options.style == "adapter" else "model"
    written = save.save_safetensors(options.dst, save.export(arrays, table, style, dead), stem=stem)
    if options.style == "adapter":
        config = json.dumps(to_adapter_config(source.lora), indent=2)
        (options.dst / "adapter_config.json").write_text(config, encoding="utf-8")
    return written
