"""A model ready to be asked: weights, tokenizer, layout and front end behind three methods."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.audio.io import load_audio
from alm_jax.audio.resample import resample
from alm_jax.core import tree
from alm_jax.core.errors import AudioError, UsageError
from alm_jax.core.precision import default_precision
from alm_jax.core.sequence import Batch, Layout, Row, collate
from alm_jax.data.layout import lay_out_prompt
from alm_jax.data.rows import AudioRow
from alm_jax.data.templates import Template
from alm_jax.data.tokenizer import Tokenizer
from alm_jax.infer.generate import generate
from alm_jax.infer.sampling import Sampling
from alm_jax.models.alm import AlmConfig, AudioLanguageModel, build

_log = logging.getLogger(__name__)

LENGTH_BUCKET = 32  # prompt lengths are rounded up to it, so that few prefills are ever compiled
FRAME_SECONDS = 0.025  # of every front end's frames

Clip = str | Path | np.ndarray | tuple[np.ndarray, int] | None
"""A file; samples [n] at the front end's rate; (samples, rate); or no audio."""


@dataclass(frozen=True)
class Spec:
    """What a system is beside its weights.

    Attributes:
        model: the parts. layout: how parts become a row. template: how a question becomes a prompt.
        sampling: how answers are chosen unless the caller says otherwise.
    """

    model: AlmConfig
    layout: Layout
    template: Template
    sampling: Sampling = Sampling()


class LoadedModel:
    """A system with its weights.

    Args:
        spec: the parts and conventions; `spec.model.encoder` is present.
        arrays: `{path: array}` of all parameters.
        tokenizer: the decoder's. aligner_tokenizer: of an aligner that reads text.
        dtype: of activations; by default float32 on CPU, bfloat16 elsewhere.
    """

    def __init__(
        self,
        spec: Spec,
        arrays: Mapping[str, Any],
        tokenizer: Tokenizer,
        dtype: Any = None,
        aligner_tokenizer: Tokenizer | None = None,
    ):
        self.spec, self.tokenizer, self.aligner_tokenizer = spec, tokenizer, aligner_tokenizer
        self.dtype = jnp.dtype(dtype or default_precision().compute)
        self._model = _assemble(spec.model, arrays)
        # Generation reads features, so that a clip is encoded once however often it is asked about.
        reads = {path: leaf for path, leaf in arrays.items() if not path.startswith("encoder.")}
        self._reader = _assemble(replace(spec.model, encoder=None), reads)

    @property
    def config(self) -> AlmConfig:
        """The model's parts."""
        return self.spec.model

    @property
    def arrays(self) -> tree.Arrays:
        """`{path: array}` of all parameters."""
        return tree.flatten(self._model)

    def encode(self, audio: Sequence[Clip]) -> jax.Array:
        """Encoder features [N, K, T, D] of N clips; a clip longer than the front end's window is cut.

        A silent clip, and one shorter than a frame, is heard as the published code hears it; a warning names it.

        Raises:
            AudioError: a clip cannot be used; the message names it. UsageError: there is none.
        """
        if not len(audio):
            raise UsageError("no clips: give one at least")
        frames = np.stack([self._frames(clip) for clip in audio])
        return _encode(self._model, jnp.asarray(frames, self.dtype))

    def embed(self, audio: Clip | Sequence[Clip]) -> np.ndarray:
        """What the decoder hears: aligner tokens float32 [T, D] of one clip, or [N, T, D] of a list of clips."""
        clips = audio if isinstance(audio, list) else [audio]
        tokens = np.asarray(_align(self._reader, self.encode(clips)), np.float32)
        return tokens if isinstance(audio, list) else tokens[0]

    def generate(
        self,
        question: str | Sequence[str],
        audio: Clip | Sequence[Clip] = None,
        *,
        input: str | Sequence[str] = "",
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> str | list[str]:
        """Answer one question, or a list of them in one batch.

        Args:
            question: one, or a list. audio: a clip or None; with a list of questions one clip for all, or a list.
            input: further text that the question is about (LTU-AS: a transcript); one for all questions, or one each.
            max_new_tokens: longest answer. sampling: None takes the system's own. seed: of the draw, if any.
            on_text: called with each new piece of the answer to a single question.

        Returns:
            The answer, or the list of answers.

        Raises:
            UsageError: no question or an empty one, or lists of different lengths. AudioError: a clip cannot be used.
        """
        questions = [question] if isinstance(question, str) else list(question)
        if not questions:
            raise UsageError("no questions: give one at least")
        clips = audio if isinstance(audio, list) else [audio] * len(questions)
        if len(clips) != len(questions):
            raise UsageError(f"{len(questions)} questions but {len(clips)} clips: give one clip for all, or one each")
        features: list[Any] = [None] * len(questions)
        if not isinstance(audio, list) and audio is not None:
            features = [self.encode([audio])[0]] * len(questions)
        elif any(clip is not None for clip in clips):
            heard = [i for i, clip in enumerate(clips) if clip is not None]
            for i, feature in zip(heard, self.encode([clips[i] for i in heard]), strict=True):
                features[i] = feature
        answers = self.answer(
            questions,
            features,
            input=input,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            on_text=on_text,
        )
        return answers[0] if isinstance(question, str) else answers

    def answer(
        self,
        questions: Sequence[str],
        features: Sequence[Any],
        *,
        input: str | Sequence[str] = "",
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:
        """As `generate`, from features [K, T, D] that `encode` gave (None: no audio), one a question."""
        inputs = [input] * len(questions) if isinstance(input, str) else input
        if len(inputs) != len(questions):
            raise UsageError(f"{len(questions)} questions but {len(inputs)} inputs: give one for all, or one each")
        rows = [
            self._row(question, text, feature is not None)
            for question, text, feature in zip(questions, inputs, features, strict=True)
        ]
        batch = self._batch(rows, features)
        answers = generate(
            self._reader,
            batch,
            max_new_tokens=max_new_tokens,
            sampling=sampling or self.spec.sampling,
            eos_ids=(self.tokenizer.eos_id,),
            seeds=np.full(len(rows), seed),
            dtype=self.dtype,
            on_token=None if on_text is None else _Stream(self.tokenizer, on_text),
        )
        return [self.tokenizer.decode(ids).strip() for ids in answers]

    def _row(self, question: str, input: str, heard: bool) -> Row:
        if not question.strip():
            raise UsageError("the question is empty")
        parts = self.spec.template.parts(AudioRow(question, input, audio_id="clip" if heard else ""), answer=False)
        options = {"audio_tokens": self.config.audio_tokens, "aligner_tokenizer": self.aligner_tokenizer}
        return lay_out_prompt(parts, self.spec.layout, self.tokenizer, **options)

    def _batch(self, rows: list[Row], features: Sequence[Any]) -> Batch:
        length = -(-max(map(len, rows)) // LENGTH_BUCKET) * LENGTH_BUCKET
        heard = any(feature is not None for feature in features)
        batch = collate(rows, length, slots=int(heard), pad="left")
        if heard:
            silence = jnp.zeros(self.config.aligner.feature_shape, self.dtype)
            batch.audio = jnp.stack([silence if f is None else jnp.asarray(f) for f in features])[:, None]
        return batch

    def _frames(self, clip: Clip) -> np.ndarray:
        frontend = self.config.frontend
        if isinstance(clip, str | Path):
            wave, _ = load_audio(clip, sample_rate=frontend.sample_rate, max_seconds=frontend.max_seconds)
        else:
            samples, rate = clip if isinstance(clip, tuple) else (clip, frontend.sample_rate)
            wave = np.asarray(samples, np.float32)
            if wave.ndim != 1 or not wave.size or not np.isfinite(wave).all():
                raise AudioError(f"samples of shape {wave.shape}: expected finite numbers [n], one channel, n > 0")
            wave = wave if rate == frontend.sample_rate else resample(wave, rate, frontend.sample_rate)
        name = clip if isinstance(clip, str | Path) else "samples"
        if len(wave) < FRAME_SECONDS * frontend.sample_rate:
            _log.warning("%s: shorter than a frame (25 ms), the model hears next to nothing: give a longer clip", name)
        elif not wave.any():
            _log.warning("%s: silent, every sample is zero: give a clip with sound", name)
        return frontend.numpy(wave)


class _Stream:
    """Passes on the text of the first row as it grows, and holds back characters that are still incomplete."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None]):
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.sent = ""

    def __call__(self, ids: np.ndarray, done: np.ndarray) -> None:
        if done[0] or ids[0] == self.tokenizer.eos_id:
            return
        self.ids.append(int(ids[0]))
        text = self.tokenizer.decode(self.ids).lstrip()
        if not text.endswith("\ufffd") and text.startswith(self.sent):
            self.on_text(text[len(self.sent) :])
            self.sent = text


def _assemble(config: AlmConfig, arrays: Mapping[str, Any]) -> AudioLanguageModel:
    return tree.unflatten(tree.abstract(lambda key: build(config, key)), arrays)


@jax.jit
def _encode(model: AudioLanguageModel, frames: jax.Array) -> jax.Array:
    return jnp.moveaxis(model.encode(frames).values, 0, 1)


@jax.jit
def _align(model: AudioLanguageModel, features: jax.Array) -> jax.Array:
    return model.audio_tokens(features[:, None])
