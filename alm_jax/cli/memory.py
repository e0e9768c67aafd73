"""`alm memory`: banks of texts that clips are drawn towards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from alm_jax.cli.parse import parse
from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import UsageError

_USAGE = """\
usage: alm memory COMMAND [OPTIONS]

Banks of texts, towards which a model that was trained on texts draws the clips that it is asked about (MATS's Santa).

commands:
  build TEXTS --model MODEL --out BANK [--size N] [--seed N]     embed texts, into a file for alm ask --memory
  inspect BANK [--clusters K]                                    show what it holds, and how k-means divides it
  noise ROWS --model MODEL [--pairs N]                           the variance of training's noise, by the gap between
                                                                 clips and captions

examples:
  alm memory build captions.txt --model runs/mats --out bank.safetensors
  alm memory inspect bank.safetensors --clusters 20
  alm memory noise data/rows.jsonl --model runs/mats
"""


@dataclass
class Build:
    """Embed texts by a model's CLAP, and keep some of them as a memory bank.

    The same texts, model, size and seed give the same file. The bank notes the texts and the CLAP: a model with another
    one refuses it.

    examples:
      alm memory build captions.txt --model runs/mats --out bank.safetensors
      alm memory build data/rows.jsonl --model runs/mats --out bank.safetensors --size 1000 --seed 1
      alm ask runs/mats --memory bank.safetensors --audio clip.wav "What is heard?"
    """

    texts: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEXTS")]
    """a file with a text a line, or rows (.json, .jsonl) with a caption"""
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")]
    """a run or a checkpoint that listens through a CLAP, or a CLAP by itself (which is quickest)"""
    out: Annotated[Path, tyro.conf.arg(metavar="BANK")]
    """file to write"""
    size: Annotated[int, tyro.conf.arg(metavar="N")] = 5172
    """texts that are kept, if there are more"""
    seed: int = 0
    """of which are kept"""
    base: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    """of a published checkpoint: the model that it was trained over"""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """of a checkpoint: its tokenizer, where it is not beside it or its base"""


@dataclass
class Inspect:
    """Show what a memory bank holds, and the clusters of a k-means on it.

    examples:
      alm memory inspect bank.safetensors
      alm memory inspect bank.safetensors --clusters 20
    """

    bank: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BANK")]
    """file that alm memory build wrote"""
    clusters: Annotated[int, tyro.conf.arg(metavar="K")] = 100
    """of k-means; 0 for none"""
    seed: int = 0
    """of where k-means begins"""


@dataclass
class Noise:
    """Print the variance of the noise for training (aligner.noise_variance), by the gap between clips and captions.

    It is the paper's rule: the largest difference between the numbers of a clip's and its caption's embedding, averaged
    over some pairs, is the standard deviation.

    examples:
      alm memory noise data/rows.jsonl --model runs/mats
    """

    rows: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ROWS")]
    """rows (.json, .jsonl) with a clip and its caption"""
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")]
    """a run or a checkpoint that listens through a CLAP, or a CLAP by itself (which is quickest)"""
    pairs: Annotated[int, tyro.conf.arg(metavar="N")] = 30
    """pairs, drawn from the rows"""
    seed: int = 0
    """of the draw"""
    base: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    """of a published checkpoint: the model that it was trained over"""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """of a checkpoint: its tokenizer, where it is not beside it or its base"""


def run(args: list[str]) -> None:
    """Do what the subcommand in front of `args` says."""
    name, *rest = args or [""]
    if name in ("-h", "--help"):
        print(_USAGE, end="")
    elif name in _COMMANDS:
        kind, command = _COMMANDS[name]
        command(parse(kind, rest, f"memory {name}"))
    else:
        guess = did_you_mean(name, _COMMANDS)
        raise UsageError(f"no command memory {name!r}{guess or '.'} Commands: {', '.join(_COMMANDS)}")


def _build(options: Build) -> None:
    from alm_jax.core.display import progress
    from alm_jax.data.captions import read_texts
    from alm_jax.infer.memory import build_bank

    if options.out.is_dir():
        raise UsageError(f"--out {options.out} is a folder; give a file")
    texts = read_texts(options.texts)
    model = _load(options.model, options.base, options.tokenizer)
    with progress("texts") as update:
        bank = build_bank(model, texts, size=options.size, seed=options.seed, progress=update)
    bank.save(options.out)
    print(f"{len(bank.embeddings)} of {bank.count} texts in {options.out}")


def _inspect(options: Inspect) -> None:
    import jax.numpy as jnp
    import numpy as np

    from alm_jax.infer.memory import Bank
    from alm_jax.models.santa import SantaConfig, build_memory

    bank = Bank.open(options.bank)
    size, width = bank.embeddings.shape
    print(f"{size} of {bank.count} texts (sha256 {bank.texts[:16]}), seed {bank.seed}, width {width}")
    for tower, digest in bank.clap.items():
        print(f"CLAP {tower}: {digest[:16]}")
    config = SantaConfig(memory=max(1, size), clusters=options.clusters, seed=options.seed)
    held = Counter(np.asarray(build_memory(jnp.asarray(bank.embeddings), config).assigned).tolist())
    sizes = sorted(held.values())
    empty = max(1, options.clusters) - len(sizes)
    print(f"{len(sizes)} clusters of {sizes[0]} to {sizes[-1]} texts, {empty} empty")


def _noise(options: Noise) -> None:
    from alm_jax.data.rows import read_rows
    from alm_jax.infer.memory import gap_variance

    if options.pairs < 1:
        raise UsageError(f"--pairs {options.pairs}: expected 1 or more")
    rows = read_rows(options.rows, need_output=False)
    model = _load(options.model, options.base, options.tokenizer)
    print(f"{gap_variance(model, rows, options.pairs, options.seed):.4g}")


def _load(name: str, base: tuple[str, ...], tokenizer: str | None) -> Any:
    """A model that listens through a CLAP, or a CLAP by itself."""
    from rich.console import Console

    from alm_jax.api import clap_by_itself, load, load_clap

    with Console(stderr=True).status(f"loading {name}"):
        if clap_by_itself(name):
            return load_clap(name, tokenizer=tokenizer)
        return load(name, base=base, tokenizer=tokenizer)


_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "build": (Build, _build),
    "inspect": (Inspect, _inspect),
    "noise": (Noise, _noise),
}
