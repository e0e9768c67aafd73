#!/usr/bin/env python
"""Check published checkpoints, for someone who has them or the hub: that each fits and computes what it should.

    python tools/verify_published.py --list
    python tools/verify_published.py whisper-base smollm2-135m
    python tools/verify_published.py ltu --path ltu=ltu_ori_paper.bin --path vicuna_ltu=vicuna_ltu/
    python tools/verify_published.py

Each is looked for on the hub and in its cache, or where --path says (those that were published elsewhere are found in
no other way). Then: its layout and its sizes are those expected; every key has a rule and every parameter a key; every
tensor is read, and holds no NaN or infinity; and `alm verify` compares the forward pass with `transformers` where that
has the model. Prints a line a model and a table; exits with 1 if a check failed, a model that was asked for by name was
not found, or none was. Without names all are tried, and those that are not found are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alm_jax.convert.checkpoint import Checkpoint, open_checkpoint, stored_in
from alm_jax.convert.hub import resolve
from alm_jax.convert.load import contents, fold
from alm_jax.convert.reference import in_transformers
from alm_jax.core.errors import AlmError, CheckpointError
from alm_jax.models.registry import named_config

# Settings of ours that say nothing of the weights.
_OURS = ("remat", "lora")


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        source: its name on the hub; "" where it was published elsewhere. layout: expected (`convert.layouts`).
        config: name of the sizes of it, or of a system's `{part: name}` (`models.registry.CONFIGS`).
        base: others of the list that it was trained over.
    """

    source: str
    layout: str
    config: str | Mapping[str, str] = ""
    base: tuple[str, ...] = ()


PUBLISHED = {
    "ltu": Published("", "ltu", {"encoder": "cav_mae", "decoder": "vicuna_7b"}, ("vicuna_ltu",)),
    "vicuna_ltu": Published("", "", {"decoder": "vicuna_7b"}),
    "ltu_as": Published("", "ltu_as", {"encoder": "whisper_large_v1", "decoder": "vicuna_7b"}, ("vicuna_ltuas",)),
    "vicuna_ltuas": Published("", "llama_hf", "vicuna_7b"),
    "apt": Published("", "apt", base=("audio_mae", "vicuna-7b-v1.1")),
    "mats": Published("LBanBan/MATS", "mats", base=("msclap", "vicuna-7b-v1.5")),
    "audio_mae": Published("", "audio_mae", "audio_mae"),
    "beats": Published("", "beats", "beats_iter3"),
    "msclap": Published("microsoft/msclap", "msclap", "msclap_2023"),
    "laion-clap": Published("laion/clap-htsat-unfused", "clap_hf", "clap_htsat_unfused"),
    "vicuna-7b-v1.1": Published("lmsys/vicuna-7b-v1.1", "llama_hf", "vicuna_7b"),
    "vicuna-7b-v1.5": Published("lmsys/vicuna-7b-v1.5", "llama_hf", "llama2_7b"),
    "tinyllama-1.1b": Published("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "llama_hf", "tinyllama_1.1b"),
    "smollm2-135m": Published("HuggingFaceTB/SmolLM2-135M-Instruct", "", "smollm2_135m"),
    "qwen2.5-0.5b": Published("Qwen/Qwen2.5-0.5B-Instruct", "llama_hf", "qwen2.5_0.5b"),
    "gpt2": Published("openai-community/gpt2", "gpt2_hf", "gpt2"),
    "bert-base": Published("google-bert/bert-base-uncased", "bert_hf", "bert_base"),
    "roberta-base": Published("FacebookAI/roberta-base", "bert_hf", "roberta_base"),
    "minilm": Published("sentence-transformers/all-MiniLM-L6-v2", "bert_hf", "minilm_l6"),
    "whisper-base": Published("openai/whisper-base", "", "whisper_base"),
    "whisper-large": Published("openai/whisper-large", "whisper_seq2seq_hf", "whisper_large_v1"),
    "ast": Published("MIT/ast-finetuned-audioset-10-10-0.4593", "ast_hf", "ast"),
    "cnn14": Published("", "cnn14", "cnn14"),
}


class Failed(Exception):
    """What a check found."""


def check(name: str, published: Mapping[str, Published], paths: Mapping[str, str], tolerance: float) -> dict[str, str]:
    """The result of each check of one model, in words, in the order of the checks.

    Raises:
        Failed: one of them failed. CheckpointError: it, or what it was trained over, cannot be found or read.
    """
    entry = published[name]
    where = [paths.get(each) or published[each].source for each in (name, *entry.base)]
    opened = open_checkpoint(where[0])
    if entry.layout and opened.layout != entry.layout:
        raise Failed(f"its layout is {opened.layout}, expected {entry.layout}")
    found = contents(opened.file.keys(), opened.table)
    if found.unmapped or found.twice:
        left = fold([*found.unmapped.values(), *found.twice])
        raise Failed(f"no rule, or more than one key, for {', '.join(left)}")
    results = {"layout": opened.layout, "sizes": _check_sizes(opened, entry)}
    results["parameters"] = _read_all(stored_in([opened], opened.config))
    dead = f"{len(found.dead)} dead" if found.dead else ""
    results["left over"] = ", ".join(filter(None, [dead, f"{len(found.ignored)} ignored" if found.ignored else ""]))
    parts = [opened.config.encoder, opened.config.decoder] if opened.is_system else [opened.config]
    results["verify"] = _verify(where, tolerance) if any(map(in_transformers, parts)) else "-"
    return results


def _check_sizes(opened: Checkpoint, entry: Published) -> str:
    """Compare the config with the registered one, but for what the weights do not tell."""
    if not entry.config:
        return "-"
    names = {"": entry.config} if isinstance(entry.config, str) else entry.config
    for part, name in names.items():
        ours = getattr(opened.config, part) if part else opened.config
        expected = named_config(name)
        if type(ours) is not type(expected):  # Whisper's encoder inside the whole of it
            ours = getattr(ours, "encoder", ours)
        if not dataclasses.is_dataclass(ours) or type(ours) is not type(expected):
            raise Failed(f"{part or 'it'} is a {type(ours).__name__}, expected {name}")
        differing = {
            field.name: (getattr(ours, field.name), getattr(expected, field.name))
            for field in dataclasses.fields(expected)
            if field.name not in _OURS and getattr(ours, field.name) != getattr(expected, field.name)
        }
        if differing:
            told = ", ".join(f"{field} {ours} (expected {theirs})" for field, (ours, theirs) in differing.items())
            raise Failed(f"sizes differ from {name}: {told}")
    return ", ".join(names.values())


def _read_all(arrays: Mapping[str, Any]) -> str:
    """Read every parameter, a layer at a time."""
    import jax.numpy as jnp

    odd, size = [], 0
    for path, leaf in arrays.items():
        for layer in leaf if len(leaf.shape) > 2 else [leaf]:
            values = np.asarray(layer)
            size += values.size
            if jnp.issubdtype(values.dtype, jnp.floating) and not np.isfinite(values.astype(np.float32)).all():
                odd.append(path)
    if odd:
        raise Failed(f"NaN or infinity in {', '.join(dict.fromkeys(odd))}")
    return f"{size:,}"


def _verify(where: Sequence[str], tolerance: float) -> str:
    """`alm verify`: its largest error."""
    bases = [argument for base in where[1:] for argument in ("--base", base)]
    command = [sys.executable, "-m", "alm_jax", "verify", where[0], *bases, "--tolerance", str(tolerance)]
    done = subprocess.run(command, capture_output=True, text=True)
    last = (done.stdout.strip() or done.stderr.strip() or "no message").splitlines()[-1]
    if done.returncode:
        raise Failed(f"alm verify: {last}")
    return re.search(r"largest error (\S+)", last)[1]


def absent(names: Iterable[str], published: Mapping[str, Published], paths: Mapping[str, str]) -> str:
    """Why one of some models is not there; "" if all are."""
    for name in names:
        where = paths.get(name) or published[name].source
        if not where:
            return f"{name} was not published on the hub: give --path {name}=PATH"
        try:
            resolve(where)
        except CheckpointError as error:
            return str(error)
    return ""


def main(argv: list[str] | None = None, published: Mapping[str, Published] = PUBLISHED) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the list (default: all that are found)")
    parser.add_argument("--path", action="append", default=[], metavar="NAME=PATH", help="where one is")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest error of alm verify")
    parser.add_argument("--list", action="store_true", help="show what is known, and leave")
    options = parser.parse_args(argv)
    paths = dict(item.partition("=")[::2] for item in options.path)
    if unknown := sorted({*options.names, *paths} - published.keys()):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(published)}")
    if options.list:
        for name, entry in published.items():
            over = f", over {', '.join(entry.base)}" if entry.base else ""
            print(f"{name}: {entry.source or '(give --path)'}{over}, layout {entry.layout or 'any'}")
        return 0
    rows, failures = [], 0
    for name in options.names or published:
        if missing := absent([name, *published[name].base], published, paths):
            print(f"{name}: not found: {missing}", flush=True)
            failures += bool(options.names)
            continue
        try:
            results = check(name, published, paths, options.tolerance)
        except (Failed, AlmError) as error:
            failures += 1
            results = {"layout": f"FAIL: {error}"}
        rows.append((name, results))
        print(f"{name}: {'; '.join(f'{key} {value}' for key, value in results.items())}", flush=True)
    _print_table(rows)
    return 1 if failures or not rows else 0


def _print_table(rows: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    columns = ("layout", "sizes", "parameters", "left over", "verify")
    print("\n| model | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, results in rows:
        print(f"| {name} | " + " | ".join(results.get(column, "") for column in columns) + " |")


if __name__ == "__main__":
    sys.exit(main())
