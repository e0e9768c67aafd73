"""Answers to a file of rows, appended to another as they are made, so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from alm_jax.core.errors import AlmError, AudioError, DataError, UsageError
from alm_jax.core.files import new_file, write_text
from alm_jax.data.rows import AudioRow, RowSet
from alm_jax.infer.clap import LoadedClap
from alm_jax.infer.clips import Clip, check_segments
from alm_jax.infer.loaded import LoadedModel
from alm_jax.infer.sampling import Sampling

OWN = "meta"
Choices = Sequence[str] | Literal["meta"]
"""Answers to choose from, or `OWN`: each row's."""
Hearing = Callable[[Path], Clip]
"""What is heard of a file; as text it says how, since answers depend on it."""
Progress = Callable[[int, int], None]
_CLIPS = 32  # clips whose features are kept, or a row's if it has more: rows about the same usually stand together


@dataclass(frozen=True)
class Answered:
    """What is in a file of answers: how many rows, and how many of them have an `error` in place of a `prediction`."""

    rows: int
    failed: int


def answer_file(
    model: LoadedModel,
    rows: RowSet,
    out: str | Path,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int = 0,
    segments: int = 1,
    choices: Choices | None = None,
    hear: Hearing | None = None,
    progress: Progress = lambda done, total: None,
) -> Answered:
    """Answer every row of a file; line i of `out` is row i with its `prediction`, or with an `error`.

    With `choices` a row's prediction is the one of them that the model holds most likely, and `scores` has the mean
    log-likelihood of all.

    Lines reach the disk batch by batch. Called again, it tries rows that failed once more, and goes on after the last
    whole line; what they were made with stands in `OUT.settings.json`, and must be the same. A row's answer does not
    depend on the batch that it is in.

    Args:
        rows: of a file (`data.rows.read_rows`, with `need_output=False` for questions alone). out: JSON lines.
        hear: what is heard of a file, where it is not the file itself.
        segments: see `LoadedModel.encode`. choices: answers to choose from, or `OWN`: the `choices` in each row's
            `meta` (few-shot episodes of `alm tasks` have them); `max_new_tokens`, `sampling` and `seed` have no use.
        progress: called with (rows done, all rows).

    Raises:
        DataError: damaged answers, or rows that change meanwhile. UsageError: `out` holds something else, or answers of
            another model, other rows or other settings. AlmError: `out` cannot be written.
    """
    sampling = sampling or model.spec.sampling
    settings = {
        "model": fingerprint(model),
        "max_new_tokens": max_new_tokens,
        "sampling": asdict(sampling),
        "seed": seed,
        "segments": segments,
        "choices": choices if choices in (None, OWN) else list(choices),
        "hear": None if hear is None else str(hear),
    }
    check_segments(model.config.frontend, segments)
    heard = lambda audio_id: rows.clip_path(audio_id) if hear is None else hear(rows.clip_path(audio_id))
    kept = max(_CLIPS, *(len(row.clips) for row in rows.rows), 0)
    encode = lru_cache(kept)(lambda audio_id: model.encode([heard(audio_id)], segments)[0])
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed}
    return _fill(rows, Path(out), settings, _Asking(model, encode, batch_size, choices, options), batch_size, progress)


def embed_file(
    model: LoadedModel | LoadedClap,
    rows: RowSet,
    out: str | Path,
    *,
    batch_size: int = 8,
    hear: Hearing | None = None,
    progress: Progress = lambda done, total: None,
) -> Answered:
    """As `answer_file`, where a row's prediction is the embedding of its one clip, a list of numbers.

    Raises:
        As `answer_file`; UsageError: the model listens through no CLAP.
    """

    def embedded(chosen: Sequence[AudioRow]) -> list[dict[str, Any]]:
        results = []
        for row in chosen:
            path = rows.clip_path(row.audio_id)
            try:
                vector = model.embed_audio([path if hear is None else hear(path)])[0]
                results.append({"prediction": [float(f"{value:.7g}") for value in vector]})
            except AudioError as error:
                results.append({"error": str(error)})
        return results

    settings = {"model": fingerprint(model), "embeds": True, "hear": None if hear is None else str(hear)}
    return _fill(rows, Path(out), settings, embedded, batch_size, progress)


def _fill(
    rows: RowSet,
    out: Path,
    settings: Mapping[str, Any],
    results: Callable[[Sequence[AudioRow]], list[dict[str, Any]]],
    batch_size: int,
    progress: Progress,
) -> Answered:
    """Write each row with what `results` adds to it, from where a stopped run was."""
    with Path(rows.stamp[0]).open("rb") as file:
        settings = {"rows": hashlib.file_digest(file, "sha256").hexdigest(), **settings}
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _agree(out, settings)
        done, failed = _recover(out, len(rows))

    def lines(indices: Sequence[int]) -> list[bytes]:
        chosen = [rows[i] for i in indices]
        told = [json.dumps(asdict(row) | found, ensure_ascii=False) for row, found in zip(chosen, results(chosen))]
        return [f"{line}\n".encode() for line in told]

    progress(done - len(failed), len(rows))
    again: dict[int, bytes] = {}
    for start in range(0, len(failed), batch_size):
        indices = failed[start : start + batch_size]
        again |= zip(indices, lines(indices))
        progress(done - len(failed) + len(again), len(rows))
    with _writing(out):
        _replace_lines(out, {i: line for i, line in again.items() if not _is_error(line)})
    failures = sum(map(_is_error, again.values()))
    for start in range(done, len(rows), batch_size):
        made = lines(range(start, min(start + batch_size, len(rows))))
        with _writing(out), out.open("ab") as file:
            file.write(b"".join(made))
            file.flush()
            os.fsync(file.fileno())
        failures += sum(map(_is_error, made))
        progress(start + len(made), len(rows))
    return Answered(len(rows), failures)


def _is_error(line: bytes) -> bool:
    return "error" in json.loads(line)


def _replace_lines(out: Path, lines: Mapping[int, bytes]) -> None:
    """Put other lines in the place of some of a file's; the file is the old one or the new one, nothing between."""
    if not lines:
        return
    with new_file(out) as partial, out.open("rb") as old, partial.open("wb") as new:
        new.writelines(lines.get(i, line) for i, line in enumerate(old))


def fingerprint(model: LoadedModel | LoadedClap) -> str:
    """sha256 of what an answer depends on: sizes, conventions, tokenizers, dtype, and a checksum of every parameter."""
    sums = {path: int(value) for path, value in _checksums(model.arrays).items()}
    memory = getattr(model, "memory", None)
    bank = [] if memory is None else [int(_checksums({"bank": memory.bank})["bank"])]
    told = [*model.conventions, sorted(sums.items()), *bank]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@jax.jit
def _checksums(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Sum of each array's bits modulo 2**32: exact, so the same in any order of summing."""

    def bits(leaf: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)

    return {path: bits(leaf) for path, leaf in arrays.items()}


@dataclass(frozen=True)
class _Asking:
    """What is added to each of some rows: `prediction`, and `scores` with choices, or `error`."""

    model: LoadedModel
    encode: Callable[[str], jax.Array]
    batch_size: int
    choices: Choices | None
    options: Mapping[str, Any]

    def __call__(self, rows: Sequence[AudioRow]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = [{} for _ in rows]
        features: dict[int, list[jax.Array]] = {}
        for i, row in enumerate(rows):
            try:
                features[i] = self.hear(row)
            except AlmError as error:
                results[i] = {"error": str(error)}
        if features:
            heard = list(features)
            full = heard + heard[-1:] * (self.batch_size - len(heard))  # always a full batch: one shape is compiled
            answers = self.ask([rows[i] for i in full], [features[i] for i in full])
            for i, answer in zip(heard, answers):
                results[i] = answer
        return results

    def hear(self, row: AudioRow) -> list[jax.Array]:
        """Features of a row's clips; AlmError if it cannot be answered."""
        features = [self.encode(clip) for clip in row.clips]
        room = self.options["max_new_tokens"] if self.choices is None else self.model.room(self.choices_of(row))
        self.model.prompt(row.instruction, features, row.input, room)
        return features

    def ask(self, rows: Sequence[AudioRow], features: Sequence[Sequence[jax.Array]]) -> list[dict[str, Any]]:
        questions, inputs = [row.instruction for row in rows], [row.input for row in rows]
        if self.choices is None:
            answers = self.model.answer(questions, features, input=inputs, **self.options)
            return [{"prediction": answer} for answer in answers]
        choices = [self.choices_of(row) for row in rows]
        ranked = self.model.likelihoods(questions, features, choices, input=inputs)
        return [{"prediction": next(iter(scores)), "scores": scores} for scores in ranked]

    def choices_of(self, row: AudioRow) -> Sequence[str]:
        own = row.meta.get("choices") if self.choices == OWN else self.choices
        if not isinstance(own, list | tuple) or not all(isinstance(c, str) and c.strip() for c in own) or not own:
            raise DataError(f"the row's meta has choices {own!r}: expected a list of answers")
        return own


def _agree(out: Path, settings: Mapping[str, Any]) -> None:
    """Note what answers are made with, or check it against the note of those that are there."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give a file")
    note = out.with_name(f"{out.name}.settings.json")
    if not out.exists() or not out.stat().st_size:
        write_text(note, json.dumps(settings, indent=1))
        return
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise UsageError(f"{out} holds something, and {note.name} does not say what: give another --out")
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        raise UsageError(
            f"{out} holds answers that were made otherwise (different: {', '.join(changed)}): give another --out, or "
            "remove it"
        )


def _recover(out: Path, total: int) -> tuple[int, list[int]]:
    """(how many rows have a line, which of them failed) of a file that may end in a torn line, which is cut off."""
    done, failed, end = 0, [], 0
    with out.open("a+b") as file:
        file.seek(0)
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(end)
                break
            try:
                told = json.loads(line)
                whole = isinstance(told, dict) and bool({"prediction", "error"} & told.keys())
            except ValueError:
                whole = False
            if not whole or done == total:
                problem = "is no answer" if done < total else f"is one more than there are rows ({total})"
                raise DataError(f"{out}:{done + 1}: {problem}; the file was changed: give another --out, or remove it")
            failed += [done] if "error" in told else []
            done, end = done + 1, end + len(line)
    return done, failed


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AlmError(
            f"{out}: cannot be written ({error}); what is there is whole: mend that, and the same command goes on"
        ) from error
