"""Retrieval between clips and captions, both ways, by a model that embeds both (CLAP)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alm_jax.core.errors import DataError
from alm_jax.data.rows import AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.eval.protocols.base import Answer, Asking, Scores, Scoring, Task, meta_of, one_row
from alm_jax.eval.retrieval import audio_text_retrieval


@dataclass(frozen=True)
class Retrieve(Task):
    """Captions found for clips and clips for captions, of which a clip may have several."""

    needs = "captions"
    hows = ("embed",)

    def rows(self, clips: Sequence[LabelledClip], asking: Asking) -> Iterator[AudioRow]:
        for clip in clips:
            if clip.captions:
                yield one_row(clip, asking.prompt, "retrieval", clip.captions[0], captions=list(clip.captions))

    def score(self, answers: Sequence[Answer], scoring: Scoring) -> Scores:
        # A clip that cannot be read is left out, with its captions: it could not be found in either way.
        heard = [answer for answer in answers if not answer.failed]
        if not heard:
            raise DataError("no clip could be heard: there is nothing to score")
        captions = [(i, text) for i, answer in enumerate(heard) for text in meta_of(answer.row, "captions")]
        vectors = np.stack([answer.vector for answer in heard])
        texts = scoring.model.embed_text([text for _, text in captions])
        found = audio_text_retrieval(vectors, texts, [i for i, _ in captions])
        metrics = {}
        for name, way in (("text_to_audio", found.text_to_audio), ("audio_to_text", found.audio_to_text)):
            metrics |= {f"{name}_r{k}": value for k, value in way.recall.items()} | {f"{name}_map10": way.map10}
        nearest = (vectors @ np.asarray(texts).T).argmax(1)
        rows = iter([{"nearest": captions[j][1], "right": captions[j][0] == i} for i, j in enumerate(nearest)])
        return Scores(metrics, [{} if answer.failed else next(rows) for answer in answers])
