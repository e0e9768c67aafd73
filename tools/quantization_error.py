#!/usr/bin/env python
"""What holding a language model's frozen kernels in int8 or NF4 changes: its kernels, logits and loss on a text.

    python tools/quantization_error.py HuggingFaceTB/SmolLM2-135M-Instruct
    python tools/quantization_error.py vicuna-7b --text story.txt --positions 512 --json error.json
    python tools/quantization_error.py smollm2_135m --random

The kernels are those of the blocks, as `precision.decoder` quantises them. Of each kind of kernel: the norm of what
changes over the norm of the kernel, all layers together. Of the text (by default the project's README): the loss of its
next tokens, how the logits differ (the norm of the difference over that of the logits, each token's mean taken out),
the Kullback-Leibler divergence from the model's own prediction, and how often the likeliest token stays the same. All
is computed in float32; the row `bfloat16` rounds the kernels to that, for comparison.

With --random the name is that of a config, and the weights are drawn: kernels alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.convert import hub
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.layouts import LAYOUTS, config_of, detect
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.core.errors import AlmError, UsageError
from alm_jax.data.tokenizer import load_tokenizer
from alm_jax.models.decoders.decoder import Decoder
from alm_jax.models.quantized import dequantize, quantize
from alm_jax.models.registry import module_of, named_config

README = Path(__file__).parents[1] / "README.md"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint by name or path; with --random the name of a config")
    parser.add_argument("--random", action="store_true", help="draw the weights, and measure the kernels alone")
    parser.add_argument("--text", type=Path, default=README, help="what the model reads (default: the README)")
    parser.add_argument("--positions", type=int, default=256, help="tokens of it (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(argv)
    try:
        model, ids = _model(options)
    except AlmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    rows = list(measure(model, ids))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(report(rows))
    return 0


def _model(options: argparse.Namespace) -> tuple[Decoder, jax.Array | None]:
    """The decoder in float32, and the ids [1, L] of the text."""
    if options.random:
        config = named_config(options.model)
        return module_of(config)(config, jax.random.key(0)), None
    found = hub.resolve(options.model)
    file = open_tensors(found.path)
    layout = detect(file.keys())
    config = config_of(file, layout)
    like = tree.abstract(lambda key: module_of(config)(config, key))
    if not isinstance(like, Decoder):
        raise UsageError(f"{options.model} is a {type(like).__name__}; give a language model")
    arrays = load(tree.flatten(like), [(file, LAYOUTS[layout].table(config))], init=["*.lora_?"])
    tokenizer = load_tokenizer(file.path if file.path.suffix == ".gguf" else file.path.parent)
    ids = tokenizer.encode(options.text.read_text(encoding="utf-8"))[: options.positions]
    return tree.unflatten(like, arrays), jnp.array(ids)[None]


def measure(model: Decoder, ids: jax.Array | None) -> Iterator[dict[str, Any]]:
    """A row a storage: its relative errors by kind of kernel, and what becomes of the text."""
    arrays = tree.flatten(model)
    kernels = [path for path in arrays if fnmatchcase(path, "blocks.*.kernel")]
    expected = None if ids is None else _logits(model, ids)
    for storage in ("float32", "bfloat16", "int8", "nf4"):
        changed, squares = {}, {}
        for path in kernels:
            changed[path], squares[path] = _stored(arrays[path], storage)
        row: dict[str, Any] = {"storage": storage}
        row["kernels"] = {path.removeprefix("blocks."): _ratio([of]) for path, of in squares.items()}
        row["all"] = _ratio(squares.values())
        if ids is not None:
            logits = _logits(tree.unflatten(model, arrays | changed), ids)
            row |= _compared(logits, expected, np.asarray(ids)[0])
        yield row


@partial(jax.jit, static_argnums=1)
def _stored(kernel: jax.Array, storage: str) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The float32 values that are left of a kernel, and the sums of squares of what changed and of the kernel."""
    if storage in ("float32", "bfloat16"):
        left = kernel.astype(storage).astype(jnp.float32)
    else:
        left = dequantize(**quantize(kernel, storage), storage=storage)
    return left, (jnp.sum(jnp.square(left - kernel)), jnp.sum(jnp.square(kernel)))


def _ratio(squares: Iterable[tuple[jax.Array, jax.Array]]) -> float:
    changed, whole = np.array([[float(part) for part in pair] for pair in squares]).sum(0)
    return float(np.sqrt(changed / whole))


@jax.jit
def _run(model: Decoder, ids: jax.Array) -> jax.Array:
    positions, seen = jnp.arange(ids.shape[1])[None], jnp.ones(ids.shape, jnp.int32)
    return model.logits(model(model.embed(ids), positions, seen, seen))[0]


def _logits(model: Decoder, ids: jax.Array) -> np.ndarray:
    """float64 [L, vocab], each position's mean taken out."""
    logits = np.asarray(_run(model, ids), np.float64)
    return logits - logits.mean(-1, keepdims=True)


def _compared(found: np.ndarray, expected: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    ours, theirs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)) for logits in (found, expected))
    return {
        "loss": -float(np.take_along_axis(ours[:-1], ids[1:, None], -1).mean()),
        "logits": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
        "divergence": float((np.exp(theirs) * (theirs - ours)).sum(-1).mean()),
        "same": float((found.argmax(-1) == expected.argmax(-1)).mean()),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(rows[0]["kernels"])
    heads = [name.removesuffix(".kernel") for name in names]
    lines = [f"| kernels | {' | '.join([*heads, 'all'])} |", "|---" * (len(names) + 2) + "|"]
    for row in rows[1:]:
        cells = [f"{error:.4f}" for error in (*row["kernels"].values(), row["all"])]
        lines.append(f"| {' | '.join([row['storage'], *cells])} |")
    if "loss" in rows[0]:
        lines += ["", "| kernels | loss, nats | logits | divergence, nats | same token |", "|---|---|---|---|---|"]
        for row in rows:
            told = (f"{row['loss']:.4f}", f"{row['logits']:.4f}", f"{row['divergence']:.5f}", f"{row['same']:.1%}")
            lines.append(f"| {' | '.join([row['storage'], *told])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
