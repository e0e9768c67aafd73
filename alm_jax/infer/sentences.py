"""Sentence embeddings: vectors of texts whose dot products say how alike they are (Reimers and Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.hub import resolve
from alm_jax.convert.layouts import LAYOUTS, config_of, detect
from alm_jax.convert.load import load
from alm_jax.convert.sizes import json_beside, positive
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.data.tokenizer import Tokenizer, check_size, load_tokenizer
from alm_jax.models.clap import text_batch
from alm_jax.models.text.bert import Bert, sentence_embedding

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LENGTH_BUCKET = 32  # texts are filled up to a multiple of it, so that few lengths are ever compiled
_LAYOUT = "bert_hf"


class SentenceEncoder:
    """A text encoder with its tokenizer.

    Args:
        model: the encoder. tokenizer: its own.
        max_tokens: longer texts are cut, as `sentence-transformers` cuts them; both special tokens are counted.
    """

    def __init__(self, model: Bert, tokenizer: Tokenizer, max_tokens: int):
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens

    def __call__(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Embeddings float32 [N, dim] of length 1; what else is in the batch changes none of them."""
        embeddings = np.empty((len(texts), self.model.config.dim), np.float32)
        for places, ids, mask in batches(texts, self.tokenizer, self.max_tokens, batch_size):
            embeddings[places] = _embed(self.model, ids, mask)
        return embeddings


def batches(
    texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, size: int
) -> Iterator[tuple[list[int], jax.Array, jax.Array]]:
    """(places of texts, their ids and mask int [B, L]) for a BERT, texts of like length together."""
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    cut = max_tokens - len(opening) - 1
    rows = [[*opening, *text[:cut], tokenizer.eos_id] for text in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        longest = len(rows[places[-1]])
        length = min(-(-longest // LENGTH_BUCKET) * LENGTH_BUCKET, max_tokens)
        ids, mask = text_batch([rows[i] for i in places], length, tokenizer.pad_id)
        yield places, jnp.asarray(ids), jnp.asarray(mask)


@jax.jit
def _embed(model: Bert, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return sentence_embedding(model(ids, mask), mask)


def load_sentence_encoder(name: str = MINILM) -> SentenceEncoder:
    """The encoder of a checkpoint with its tokenizer beside it.

    Args:
        name: file, folder or name on the hub, of a BERT or RoBERTa; files that `sentence-transformers` writes beside it
            (`1_Pooling/config.json`, `sentence_bert_config.json`) are heeded.

    Raises:
        CheckpointError: it cannot be found or read, is another model, or pools texts in another way than by their mean.
    """
    file = open_tensors(resolve(name).path)
    folder, layout = file.path.parent, detect(file.keys())
    if layout != _LAYOUT:
        raise CheckpointError(f"{file.path} has the layout {layout}; expected a text encoder ({_LAYOUT})")
    config, limit = config_of(file, layout), _limit(file)
    if not config.heads:
        raise CheckpointError(f"{file.path}: nothing tells its heads: put a config.json with num_attention_heads there")
    tokenizer = load_tokenizer(folder)
    check_size(tokenizer, config.vocab_size, name)
    like = tree.abstract(lambda key: Bert(config, key))
    model = tree.unflatten(like, load(tree.flatten(like), [(file, LAYOUTS[layout].table(config))]))
    longest = config.positions - config.position_offset
    return SentenceEncoder(model, tokenizer, min(longest, limit or longest))


def _limit(file: TensorFile) -> int | None:
    """Tokens of the longest text that is not cut, if that is told."""
    pooling = json_beside(file, "1_Pooling/config.json") or {}
    modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
    if modes not in ([], ["pooling_mode_mean_tokens"]):
        raise CheckpointError(f"{file.path}: texts are pooled by {', '.join(modes)}; expected pooling_mode_mean_tokens")
    limit = (json_beside(file, "sentence_bert_config.json") or {}).get("max_seq_length")
    if limit is not None and not (positive(limit, whole=True) and limit > 2):
        raise CheckpointError(f"{file.path}: max_seq_length is {limit!r}; expected a number above 2")
    return limit
