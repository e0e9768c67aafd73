"""The `ltu_tiny_c` fixture: prompts, ids and labels, the collated batch, and six steps of the official trainer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax.audio.io import load_audio
from alm_jax.convert import ltu as tables
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.core.precision import FLOAT32
from alm_jax.core.sequence import Batch, Layout, Text
from alm_jax.data.layout import Tokens, tokenize
from alm_jax.data.rows import AudioRow
from alm_jax.data.templates import ALPACA_SHORT
from alm_jax.data.tokenizer import Tokenizer, load_tokenizer
from alm_jax.models.alm import AudioLanguageModel
from alm_jax.train.optim import OptimConfig, make_optimizer
from alm_jax.train.state import create_state
from alm_jax.train.step import make_step
from golden.ltu_model import IGNORED_LABEL, Fixture, mean_loss, official_batch, text_logits
from golden.report import FILTERBANK, GRADIENT, TOLERANCE, Report

TRAINED = ("encoder.*", "aligner.*", "*.lora_?")  # names with `audio` or `lora` in the official state dict
_MULTIPLE = 8  # the collator pads to a multiple of it
_PUBLISHED = "loss with *_trained.bin"


def check(fixture: Fixture, report: Report) -> None:
    """Compare everything recorded."""
    text = json.loads(Path(f"{fixture.path}_text.json").read_text())
    tokenizer = load_tokenizer(Path(f"{fixture.path}_spm.model"))
    _check_text(text, tokenizer, report)
    rows = _Rows(fixture, text, tokenizer, report)
    ids, mask, labels = rows.collate(range(len(rows)))
    batch = rows.batch(range(len(rows)))
    logits = np.asarray(text_logits(fixture.model, batch))
    heard = np.ones((len(rows), fixture.config.audio_tokens))
    ours: dict[str, Any] = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": np.concatenate([heard, mask], axis=1),
        "logits_argmax": logits.argmax(-1),
        "token_logprob": np.take_along_axis(_log_softmax(logits)[:, :-1], ids[:, 1:, None], -1)[..., 0],
        "loss": mean_loss(fixture.model, batch),
    }
    if "train_batch_rows" in fixture.io:
        report.input(["train_batch_rows"])
        ours |= _train(fixture, text, rows)
        report.compare(_PUBLISHED, ours[_PUBLISHED], fixture.io["loss_after_training"])
    for name, theirs in fixture.io.items():
        if found := re.fullmatch(r"logits_every(\d+)", name):
            report.compare(name, logits[:, :: int(found[1])], theirs)
        elif name in ("input_ids", "labels", "logits_argmax"):
            report.same(name, ours[name], theirs)
        elif name in ours:
            report.compare(name, ours[name], theirs, GRADIENT if "grad" in name else TOLERANCE)
        elif name != "train_batch_rows":
            report.fail(f"{name}: recorded, but nothing here computes it")


def _check_text(text: dict[str, Any], tokenizer: Tokenizer, report: Report) -> None:
    """Ids and labels for every recorded cutoff, prompts, and decoded text: all must be equal."""
    rows = [AudioRow(r["instruction"], r.get("input") or "", output=r["output"]) for r in text["rows"]]
    for case, recorded in text["tokenized"].items():
        cutoff = int(re.match(r"cutoff(\d+)_", case)[1])
        one = re.search(r"_row(\d+)_", case)
        layout = Layout(max_text_tokens=cutoff, loss_on="answer" if "inputs_False" in case else "all")
        chosen = [rows[int(one[1])]] if one else rows
        ours = [tokenize(ALPACA_SHORT.parts(row), layout, tokenizer) for row in chosen]
        theirs = [recorded] if one else recorded
        report.same(f"text {case} ids", [t.ids for t in ours], [t["input_ids"] for t in theirs])
        report.same(f"text {case} labels", [_labels(t) for t in ours], [t["labels"] for t in theirs])
    bare = [ALPACA_SHORT.prompt(row.instruction) for row in rows]
    whole = [ALPACA_SHORT.prompt(row.instruction, row.input) + row.output for row in rows]
    untouched = Layout(eos=False, max_text_tokens=sys.maxsize)
    ids = [tokenize([Text(prompt)], untouched, tokenizer).ids for prompt in bare]
    for name, ours in (("train", whole), ("infer", bare), ("infer_ids", ids)):
        report.same(f"text prompts {name}", ours, [prompt[name] for prompt in text["prompts"]])
    decode = text["decode"]
    for name in ("ltu_slice_6_m4", "ltuas_slice_5_m4"):  # the official slices of the decoded string differ by a space
        report.same(f"text decode {name}", tokenizer.decode(decode["ids"]).strip(), decode[name].strip())


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({row["audio_id"] for row in rows})


def _labels(tokens: Tokens) -> list[int]:
    return [i if learnt else IGNORED_LABEL for i, learnt in zip(tokens.ids, tokens.learn)]


class _Rows:
    """The recorded rows as the official collator batches them: text padded left, to a multiple of 8."""

    def __init__(self, fixture: Fixture, text: dict[str, Any], tokenizer: Tokenizer, report: Report):
        self.config = fixture.config
        rows = text["rows"]
        frames = {name: self._frames(fixture.path.parent / "fbank" / name, report) for name in _names(rows)}
        self.audio = np.stack([frames[row["audio_id"]] for row in rows])
        layout = Layout(max_text_tokens=108, loss_on="all")
        parts = [ALPACA_SHORT.parts(AudioRow(r["instruction"], r.get("input") or "", output=r["output"])) for r in rows]
        self.tokens = [tokenize(part, layout, tokenizer) for part in parts]

    def __len__(self) -> int:
        return len(self.tokens)

    def _frames(self, clip: Path, report: Report) -> np.ndarray:
        """Filterbank of a clip: ours is compared with the recorded one, and the recorded one goes to the model.

        float32 rounding of near-silent bins moves a filterbank by up to 4e-3, and with it the logits by 2e-5, which
        would hide what the model itself does.
        """
        # The official loader hands a file's own rate to the filterbank; these clips are all at 16 kHz.
        ours = self.config.frontend.numpy(load_audio(clip, sample_rate=self.config.frontend.sample_rate)[0])
        recorded = clip.parent / "fbank_official.npz"
        if not recorded.is_file() or f"{clip.stem}__train" not in (stored := np.load(recorded)):
            return ours
        official = np.full_like(ours, stored["pad_value"])
        rows = stored[f"{clip.stem}__train"]
        official[: len(rows)] = rows
        report.compare(f"filterbank {clip.stem}", ours, official, FILTERBANK)
        return official

    def collate(self, rows: Iterable[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, mask, labels) [B, T]."""
        chosen = [self.tokens[row] for row in rows]
        length = -(-max(len(t.ids) for t in chosen) // _MULTIPLE) * _MULTIPLE
        left = lambda values, fill: [fill] * (length - len(values)) + list(values)
        ids = [left(t.ids, 0) for t in chosen]
        mask = [left([1] * len(t.ids), 0) for t in chosen]
        labels = [left(_labels(t), IGNORED_LABEL) for t in chosen]
        return np.array(ids), np.array(mask), np.array(labels)

    def batch(self, rows: Iterable[int], length: int | None = None) -> Batch:
        """The official batch of some rows, padded to `length` by positions that nobody sees."""
        rows = list(rows)
        ids, mask, labels = self.collate(rows)
        return official_batch(
            ids,
            mask,
            audio=self.audio[rows],
            audio_tokens=self.config.audio_tokens,
            labels=labels,
            length=length,
        )


def _train(fixture: Fixture, text: dict[str, Any], rows: _Rows) -> dict[str, Any]:
    """Run the recorded optimiser steps through our own step, micro-batches of the record as its loss groups."""
    io, info = fixture.io, text["trainer"]["info"]
    micro = io["train_batch_rows"]
    rates = io["train_lr_after_step"]
    total = len(rates)
    accumulation = len(micro) // total
    config = OptimConfig(
        learning_rate=info["groups"][0]["initial_lr"],
        warmup_steps=int(np.argmax(rates)) + 1,  # the rate after step k is that of update k + 1
        betas=tuple(info["betas"]),
        eps=info["groups"][0]["eps"],
        weight_decay=info["weight_decay"],
        clip_norm=info["max_grad_norm"],
    )
    optimizer = make_optimizer(config, total)
    params, frozen = tree.split(fixture.arrays, TRAINED)
    state = create_state({path: leaf.copy() for path, leaf in params.items()}, optimizer, jax.random.key(0))
    step = make_step(fixture.model, optimizer, FLOAT32, loss_group=micro.shape[1])
    length = fixture.config.audio_tokens + rows.collate(range(len(rows)))[0].shape[1]
    losses, norms = [], []
    for start in range(0, len(micro), accumulation):
        parts = [rows.batch(chosen, length) for chosen in micro[start : start + accumulation]]
        model = fixture.assemble({**frozen, **state.params})
        losses += [mean_loss(model, part) for part in parts]
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        state, metrics = step(state, frozen, whole)
        norms.append(metrics["grad_norm"])
    trained = fixture.assemble({**frozen, **state.params})
    return {
        "train_micro_losses": np.stack(losses),
        "train_grad_norms_before_clip": np.stack(norms),
        "train_lr_after_step": np.stack([optimizer.schedule(k) for k in range(1, total + 1)]),
        "loss_after_training": mean_loss(trained, rows.batch(range(len(rows)))),
        _PUBLISHED: mean_loss(_published(fixture, frozen), rows.batch(range(len(rows)))),
    }


def _published(fixture: Fixture, frozen: tree.Arrays) -> AudioLanguageModel:
    """The model with the trained weights that the official trainer saved, in the published layout."""
    shapes, _ = tree.split(fixture.arrays, TRAINED)
    file = open_tensors(Path(f"{fixture.path}_trained.bin"))
    return fixture.assemble({**frozen, **load(shapes, [(file, tables.official(fixture.config))])})


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))
