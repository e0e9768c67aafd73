"""Tags of what was said: answers and names of classes meet in the aligner's text encoder (APT, audio tagging; official
`evaluate_few_shot_learning.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.core.errors import UsageError
from alm_jax.data.tokenizer import Tokenizer
from alm_jax.models.aligners.qformer import QFormer
from alm_jax.models.clap import text_batch
from alm_jax.models.contrast import unit
from alm_jax.models.features import AlignerText

LENGTH_BUCKET = 32  # texts are filled up to a multiple of it, so that few lengths are ever compiled


class TagScorer:
    """How much of each class is in a text.

    A class is the mean of its name's word vectors; a text's score of it is the sigmoid of the cosine of the word that
    is nearest. Word vectors are what the Q-Former makes of text alone, without clip and queries.

    Args:
        aligner: a Q-Former that reads text; APT takes that of its alignment stage. tokenizer: the aligner's.
        classes: names.

    Raises:
        UsageError: the aligner reads no text, or a class has no name.
    """

    def __init__(self, aligner: QFormer, tokenizer: Tokenizer, classes: Sequence[str]):
        if not isinstance(aligner, QFormer) or not aligner.config.reads_text:
            raise UsageError("tags are scored by an aligner that reads text: give a Q-Former with its text encoder")
        if not classes or not all(name.strip() for name in classes):
            raise UsageError("a class has no name, or there is none: give each class a name")
        self.aligner, self.tokenizer = aligner, tokenizer
        words, mask = self._words([name.lower() for name in classes])
        self._classes = unit(jnp.sum(words * mask[..., None], axis=1) / mask.sum(1)[:, None])

    def __call__(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Scores float32 [N, classes] in [0, 1]; an empty text scores 0 in each class."""
        scores = np.zeros((len(texts), len(self._classes)), np.float32)
        said = [i for i, text in enumerate(texts) if text.strip()]
        for start in range(0, len(said), batch_size):
            part = said[start : start + batch_size]
            words, mask = self._words([texts[i] for i in part])
            scores[part] = _nearest(words, mask, self._classes)
        return scores

    def _words(self, texts: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """Outputs [B, L, hidden] of texts, cut to the aligner's positions, and which of them are words, bool [B, L]."""
        opening = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        longest = self.aligner.config.positions
        room = longest - len(opening) - 1
        rows = [[*opening, *ids[:room], self.tokenizer.eos_id] for ids in self.tokenizer.encode_batch(list(texts))]
        length = min(-(-max(map(len, rows)) // LENGTH_BUCKET) * LENGTH_BUCKET, longest)
        ids, mask = text_batch(rows, length, 0)
        place = np.arange(length)
        words = (place >= len(opening)) & (place < mask.sum(1)[:, None] - 1)
        return _outputs(self.aligner, AlignerText(jnp.asarray(ids), jnp.asarray(mask == 1))), jnp.asarray(words)


@jax.jit
def _outputs(aligner: QFormer, text: AlignerText) -> jax.Array:
    # Where text sees itself alone, what the queries hear makes no difference.
    silence = jnp.zeros((text.tokens.shape[0], 1, aligner.config.dim))
    return aligner.outputs(silence, text, "unimodal")[1]


@jax.jit
def _nearest(words: jax.Array, mask: jax.Array, classes: jax.Array) -> jax.Array:
    cosines = jnp.einsum("blh,ch->blc", unit(words), classes)
    return jax.nn.sigmoid(jnp.max(cosines, axis=1, where=mask[..., None], initial=-1.0))
