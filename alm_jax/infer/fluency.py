"""Errors of fluency in captions, as FENSE's detector finds them (Zhou et al. 2022; official `fense/evaluator.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from alm_jax.convert import bert
from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.hub import resolve
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError, ConfigError
from alm_jax.data.tokenizer import Tokenizer, check_size, load_tokenizer
from alm_jax.infer.sentences import batches
from alm_jax.models.text.bert import BertClassifier

_TOKENS = 64  # of the longest caption that is not cut
_HEAD = "clf.weight"


class ErrorDetector:
    """A classifier of captions with its tokenizer; its last class is whether there is any error."""

    def __init__(self, model: BertClassifier, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Probability float32 [N] that each text has an error of fluency."""
        found = np.empty(len(texts), np.float32)
        for places, ids, mask in batches(texts, self.tokenizer, _TOKENS, batch_size):
            found[places] = _error(self.model, ids, mask)
        return found


@jax.jit
def _error(model: BertClassifier, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(model(ids, mask)[:, -1])


def load_error_detector(name: str) -> ErrorDetector:
    """The detector of a checkpoint.

    Args:
        name: file of FENSE's authors (`echecker_clotho_audiocaps_base.ckpt`), with the `vocab.txt` or `tokenizer.json`
            of the BERT that it was trained over beside it; or in the hub's cache, by the name that the file tells.

    Raises:
        CheckpointError: it cannot be found or read, or is another model.
    """
    file = open_tensors(resolve(name).path)
    keys = set(file.keys())
    if _HEAD not in keys or not any(key.startswith("encoder.embeddings.") for key in keys):
        raise CheckpointError(f"{file.path} is no detector of FENSE's: it has no {_HEAD} over a BERT named encoder")
    config, classes = bert.sizes(file), file.shape(_HEAD)[0]
    tokenizer = _tokenizer(file)
    check_size(tokenizer, config.vocab_size, name)
    like = tree.abstract(lambda key: BertClassifier(config, classes, key))
    return ErrorDetector(tree.unflatten(like, load(tree.flatten(like), [(file, bert.classifier(config))])), tokenizer)


def _tokenizer(file: TensorFile) -> Tokenizer:
    over = file.metadata.get("model_type")
    try:
        return load_tokenizer(file.path.parent)
    except ConfigError as error:
        if not isinstance(over, str):
            raise CheckpointError(f"{error}: put the vocab.txt of the detector's BERT beside it") from None
    try:
        return load_tokenizer(resolve(over).path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. The detector reads with {over}'s: put its vocab.txt beside it") from None
