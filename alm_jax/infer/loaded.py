"""A model ready to be asked: weights, tokenizer, layout and front end behind a few methods."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alm_jax.core import tree
from alm_jax.core.errors import UsageError
from alm_jax.core.precision import default_precision
from alm_jax.core.sequence import Batch, Image, Layout, Part, Row, Text, collate
from alm_jax.data.captions import Captions
from alm_jax.data.layout import lay_out, lay_out_prompt
from alm_jax.data.rows import AudioRow
from alm_jax.data.templates import Template
from alm_jax.data.tokenizer import Tokenizer
from alm_jax.infer.clips import Clip, check_marks, windows, with_examples
from alm_jax.infer.generate import generate
from alm_jax.infer.images import Picture, pixels
from alm_jax.infer.rank import rank
from alm_jax.infer.sampling import Sampling
from alm_jax.models.alm import AlmConfig, AudioLanguageModel, build
from alm_jax.models.contrast import unit
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.santa import Memory, SantaConfig, santa

_NOTHING = np.zeros((0, 0, 0, 3), np.float32)  # of no images
LENGTH_BUCKET = 32  # prompt lengths are rounded up to it, so that few prefills are ever compiled


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
        tokenizer: the decoder's. aligner_tokenizer, encoder_tokenizer: of an aligner and of an encoder that read text.
        dtype: of activations; by default float32 on CPU, bfloat16 elsewhere.
    """

    def __init__(
        self,
        spec: Spec,
        arrays: Mapping[str, Any],
        tokenizer: Tokenizer,
        dtype: Any = None,
        aligner_tokenizer: Tokenizer | None = None,
        encoder_tokenizer: Tokenizer | None = None,
    ):
        self.spec, self.tokenizer = spec, tokenizer
        self.aligner_tokenizer, self.encoder_tokenizer = aligner_tokenizer, encoder_tokenizer
        self.memory: Memory | None = None
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
    def aligner(self) -> nnx.Module:
        """The aligner; `infer.tagging` scores tags by its text encoder."""
        return self._reader.aligner

    @property
    def arrays(self) -> tree.Arrays:
        """`{path: array}` of all parameters."""
        return tree.flatten(self._model)

    @property
    def conventions(self) -> list[str]:
        """What embeddings and answers depend on besides the parameters: sizes, tokenizers, dtype."""
        words = [each.fingerprint for each in (self.tokenizer, self.aligner_tokenizer) if each is not None]
        return [repr(self.spec), *words, str(self.dtype)]

    def with_memory(self, memory: Memory, config: SantaConfig) -> LoadedModel:
        """The same model, which draws the embedding of every clip towards a memory of texts (`infer.memory`)."""
        model = copy.copy(self)
        model.memory, model.spec = memory, replace(self.spec, model=replace(self.config, santa=config))
        return model

    @property
    def towers(self) -> dict[str, jax.Array]:
        """`{path: array}` of an encoder that is a CLAP: `audio.*`, `text.*`."""
        self._check_clap()
        return {p.removeprefix("encoder."): leaf for p, leaf in self.arrays.items() if p.startswith("encoder.")}

    def embed_audio(self, clips: Sequence[Clip]) -> np.ndarray:
        """Embeddings float32 [N, dim] of length 1 of clips, by an encoder that is a CLAP; without memory.

        Raises:
            UsageError: it is none. As `encode`.
        """
        self._check_clap()
        embedded = jnp.concatenate([self._encode([clip])[0] for clip in clips])[:, 0, 0]
        return np.asarray(unit(embedded.astype(jnp.float32)))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [N, dim] of length 1 of texts, by an encoder that is a CLAP.

        Raises:
            UsageError: it is none, or has no text tower or tokenizer. DataError: a text is empty.
        """
        self._check_clap()
        encoder = self.config.encoder
        if encoder.vocab_size is None or self.encoder_tokenizer is None:
            missing = "text tower" if encoder.vocab_size is None else "tokenizer for its text tower"
            raise UsageError(f"this model has no {missing}: build the memory with a model that has both towers")
        captions = Captions(self.encoder_tokenizer, encoder.text_tokens, encoder.text_gap)
        ids = np.stack([captions.numpy(text) for text in texts])
        return np.asarray(unit(_encode(self._model, jnp.asarray(ids))[:, 0, 0].astype(jnp.float32)))

    @property
    def embeds(self) -> bool:
        """Whether it listens through a CLAP, whose space clips and texts share."""
        return isinstance(self.config.encoder, ClapEncoderConfig)

    def _check_clap(self) -> None:
        if not self.embeds:
            raise UsageError("this model listens through no CLAP, and has no common space of clips and texts")

    def encode(self, audio: Sequence[Clip], segments: int = 1) -> list[jax.Array]:
        """Encoder features [S, K, T, D] of each clip, S = 1 if it is no longer than the front end's window.

        A silent clip, and one shorter than a frame, is heard as the published code hears it; a warning names it.

        Args:
            segments: with 1 a longer clip is cut, as in training. With more it is heard in that many windows at most,
                side by side (APT's long clips).

        Raises:
            AudioError: a clip cannot be used, or is longer than the segments; the message names it. UsageError: there
                is no clip, or this model's front end has no segments.
        """
        features = self._encode(audio, segments)
        if self.memory is None:
            return features
        return [santa(z[:, 0, 0], self.memory, self.config.santa).astype(z.dtype)[:, None, None] for z in features]

    def _encode(self, audio: Sequence[Clip], segments: int = 1) -> list[jax.Array]:
        """`encode` without memory."""
        if self.config.frontend is None:
            raise UsageError("this model does not hear: leave audio out")
        if not len(audio):
            raise UsageError("no clips: give one at least")
        frames = [windows(clip, self.config.frontend, segments) for clip in audio]
        features = _encode(self._model, jnp.asarray(np.concatenate(frames), self.dtype))
        return jnp.split(features, np.cumsum([len(clip) for clip in frames])[:-1])

    def see(self, images: Sequence[Picture]) -> np.ndarray:
        """What the image encoder reads of pictures, or of the frames of a video: float32 [I, size, size, 3].

        Raises:
            UsageError: this model does not see. DataError: a picture cannot be read.
        """
        if self.config.vision is None:
            if images:
                raise UsageError("this model does not see: leave images out, or give one that does (APT-BLIP-2)")
            return _NOTHING
        return pixels(images, self.config.vision.frontend)

    def embed(self, audio: Clip | Sequence[Clip]) -> np.ndarray:
        """What the decoder hears: aligner tokens float32 [T, D] of one clip, or [N, T, D] of a list of clips."""
        clips = audio if isinstance(audio, list) else [audio]
        tokens = np.asarray(_align(self._reader, jnp.concatenate(self.encode(clips))), np.float32)
        return tokens if isinstance(audio, list) else tokens[0]

    def generate(
        self,
        question: str | Sequence[str],
        audio: Clip | Sequence[Any] | None = None,
        *,
        input: str | Sequence[str] = "",
        examples: Sequence[tuple[Clip, str]] = (),
        images: Sequence[Picture] = (),
        segments: int = 1,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> str | list[str]:
        """Answer one question, or a list of them in one batch.

        Args:
            question: one, or a list. `<audio>` marks say where clips are heard; without marks they come first.
            audio: a clip, a list of the clips that one question is about, or None. With a list of questions one clip
                for all, or a list with a clip, a list of clips or None for each.
            input: further text that the question is about (LTU-AS: a transcript); one for all questions, or one each.
            examples: clips, each with the text that follows it, before every question (few-shot prompts).
            images: pictures, or the frames of a video in order, that every question is about; they come first.
            segments: see `encode`.
            max_new_tokens: longest answer. sampling: None takes the system's own. seed: of the draw, if any.
            on_text: called with each new piece of the answer to a single question.

        Returns:
            The answer, or the list of answers.

        Raises:
            UsageError: no question or an empty one, lists of different lengths, marks that are not as many as clips, or
                a prompt and an answer longer than the model reads. AudioError, DataError: a clip, a picture cannot be
                used.
        """
        questions, features = self._hear(question, audio, examples, segments)
        answers = self.answer(
            questions,
            features,
            input=input,
            seen=self.see(images),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            on_text=on_text,
        )
        return answers[0] if isinstance(question, str) else answers

    def rank(
        self,
        question: str | Sequence[str],
        choices: Sequence[str],
        audio: Clip | Sequence[Any] | None = None,
        *,
        input: str | Sequence[str] = "",
        examples: Sequence[tuple[Clip, str]] = (),
        images: Sequence[Picture] = (),
        segments: int = 1,
    ) -> dict[str, float] | list[dict[str, float]]:
        """How likely the model holds each of some answers (`predict_class` of LAVIS and APT).

        Args:
            choices: the answers, the same for all questions. The others: see `generate`.

        Returns:
            Mean log-likelihood of a token of each choice, the most likely choice first; a list for a list of questions.

        Raises:
            As `generate`; UsageError: no choices, or an empty one.
        """
        questions, features = self._hear(question, audio, examples, segments)
        ranked = self.likelihoods(questions, features, [choices] * len(questions), input=input, seen=self.see(images))
        return ranked[0] if isinstance(question, str) else ranked

    def answer(
        self,
        questions: Sequence[str],
        features: Sequence[Sequence[jax.Array]],
        *,
        input: str | Sequence[str] = "",
        seen: np.ndarray = _NOTHING,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:
        """As `generate`, from what `encode` gave of each question's clips, in their order (empty: no audio), and `see`
        of the images."""
        rows = self._rows(questions, features, input, max_new_tokens, len(seen))
        answers = generate(
            self._reader,
            self._batch(rows, features, seen),
            max_new_tokens=max_new_tokens,
            sampling=sampling or self.spec.sampling,
            eos_ids=(self.tokenizer.eos_id,),
            seeds=np.full(len(rows), seed),
            dtype=self.dtype,
            on_token=None if on_text is None else _Stream(self.tokenizer, on_text),
        )
        return [self.spec.template.finished(self.tokenizer.decode(ids)) for ids in answers]

    def likelihoods(
        self,
        questions: Sequence[str],
        features: Sequence[Sequence[jax.Array]],
        choices: Sequence[Sequence[str]],
        *,
        input: str | Sequence[str] = "",
        seen: np.ndarray = _NOTHING,
    ) -> list[dict[str, float]]:
        """As `rank`, from features (see `answer`) and each question's own choices."""
        if not all(given and all(choice.strip() for choice in given) for given in choices):
            raise UsageError("a question has no choices, or an empty one: give each some text")
        rows = self._rows(questions, features, input, max(map(self.room, choices)), len(seen))
        ids = [
            [self._answer_ids(row, *asked, len(seen), choice) for choice in given]
            for row, given, *asked in zip(rows, choices, questions, features, self._inputs(questions, input))
        ]
        means = rank(self._reader, self._batch(rows, features, seen), ids, dtype=self.dtype).mean
        ranked = [sorted(zip(given, row.tolist()), key=lambda pair: -pair[1]) for given, row in zip(choices, means)]
        return [dict(pairs) for pairs in ranked]

    def prompt(
        self, question: str, features: Sequence[jax.Array] = (), input: str = "", room: int = 0, images: int = 0
    ) -> Row:
        """The row of a question, to generate from.

        Args:
            features: see `answer`. room: positions that have to be left for the answer. images: how many lead.

        Raises:
            UsageError: it is empty, its marks are not as many as its clips, or it is longer than the model reads.
        """
        if self.config.decoder is None:
            raise UsageError("this model is an aligner without a decoder, and cannot answer: train the stage after it")
        parts = self._parts(question, len(features), input, images)
        row = lay_out_prompt(parts, self.spec.layout, **self._options(features))
        limit = self._reader.decoder.limit
        if len(row) + room - 1 > limit:  # the last new token is chosen and not read
            raise UsageError(
                f"the question with its clips takes {len(row)} positions and the answer {room}, the model reads "
                f"{limit}: ask for a shorter answer, or give less text or fewer clips"
            )
        return row

    def room(self, choices: Sequence[str]) -> int:
        """Positions that the longest of some answers takes."""
        return max(map(len, self.tokenizer.encode_batch(list(choices))))

    def _hear(self, question, audio, examples, segments) -> tuple[list[str], list[list[jax.Array]]]:
        """Questions with their examples, and the features of their clips, each of which is encoded once."""
        questions = [question] if isinstance(question, str) else list(question)
        if not questions:
            raise UsageError("no questions: give one at least")
        several = isinstance(audio, list) and not isinstance(question, str)
        each = audio if several else [audio] * len(questions)
        if len(each) != len(questions):
            raise UsageError(f"{len(questions)} questions but {len(each)} clips: give one clip for all, or one each")
        asked = [with_examples(q, _clips(a), examples) for q, a in zip(questions, each)]
        unique = list({id(clip): clip for _, clips in asked for clip in clips}.values())
        found = zip(map(id, unique), self.encode(unique, segments)) if unique else ()
        features = dict(found)
        return [q for q, _ in asked], [[features[id(clip)] for clip in clips] for _, clips in asked]

    def _parts(self, question: str, clips: int, input: str, images: int) -> list[Part]:
        if not question.strip():
            raise UsageError("the question is empty")
        check_marks(question + input, clips)
        row = AudioRow(question, input, tuple(map(str, range(clips))))
        return [*map(Image, range(images)), *self.spec.template.parts(row, answer=False)]

    def _options(self, features: Sequence[jax.Array]) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "audio_tokens": self.config.audio_tokens,
            "image_tokens": self.config.image_tokens,
            "slots": [len(clip) for clip in features],
            "aligner_tokenizer": self.aligner_tokenizer,
        }

    def _inputs(self, questions: Sequence[str], input: str | Sequence[str]) -> Sequence[str]:
        inputs = [input] * len(questions) if isinstance(input, str) else input
        if len(inputs) != len(questions):
            raise UsageError(f"{len(questions)} questions but {len(inputs)} inputs: give one for all, or one each")
        return inputs

    def _rows(self, questions, features, input, room: int, images: int) -> list[Row]:
        asked = zip(questions, features, self._inputs(questions, input), strict=True)
        return [self.prompt(*each, room, images) for each in asked]

    def _answer_ids(self, prompt: Row, question: str, features: Sequence[jax.Array], input: str, images, choice: str):
        """Ids of an answer as it follows its prompt in training."""
        layout = replace(self.spec.layout, eos=False, max_text_tokens=sys.maxsize, max_answer_tokens=None)
        parts = [*self._parts(question, len(features), input, images), Text(choice, loss=True)]
        return lay_out(parts, layout, **self._options(features)).tokens[len(prompt) :]

    def _batch(self, rows: list[Row], features: Sequence[Sequence[jax.Array]], seen: np.ndarray) -> Batch:
        length = -(-max(map(len, rows)) // LENGTH_BUCKET) * LENGTH_BUCKET
        length = min(length, self._reader.decoder.limit)
        slots = max(len(row.clips) for row in rows)
        batch = collate(rows, length, slots=slots, images=len(seen), pad="left")
        if len(seen):
            batch.image = jnp.broadcast_to(jnp.asarray(seen, self.dtype), (len(rows), *seen.shape))
        if slots:
            silence = jnp.zeros(self.config.aligner.feature_shape, self.dtype)
            heard = [[window for clip in clips for window in clip] for clips in features]
            batch.audio = jnp.stack([jnp.stack(row + [silence] * (slots - len(row))) for row in heard])
        return batch


def _clips(audio: Any) -> list[Clip]:
    return audio if isinstance(audio, list) else [] if audio is None else [audio]


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
