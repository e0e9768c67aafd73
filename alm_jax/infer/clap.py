"""A CLAP ready to be used: embeddings of clips and texts whose dot products say how well they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.audio.fusion import fused_log_mel
from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.hub import resolve
from alm_jax.convert.layouts import LAYOUTS, config_of, detect
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError, UsageError
from alm_jax.core.precision import default_precision
from alm_jax.data.captions import NO_TOKEN, Captions
from alm_jax.data.tokenizer import Tokenizer, check_size, load_tokenizer
from alm_jax.infer.clips import Clip, samples, windows
from alm_jax.models.clap import TEXT_LENGTH, Clap, ClapConfig

LAYOUTS_OF_CLAP = ("msclap", "clap_hf")
LENGTH_BUCKET = 32  # texts are filled up to a multiple of it, so that few lengths are ever compiled
_GPT2 = "gpt2"


class LoadedClap:
    """A CLAP with its weights.

    Args:
        config: its parts. arrays: `{path: array}` of `models.clap.Clap`. tokenizer: of its text tower.
        text_tokens: longer texts lose their end, special tokens counted.
        dtype: of activations; by default float32 on CPU, bfloat16 elsewhere.
    """

    def __init__(
        self,
        config: ClapConfig,
        arrays: Mapping[str, Any],
        tokenizer: Tokenizer,
        text_tokens: int = TEXT_LENGTH,
        dtype: Any = None,
    ):
        self.config, self.tokenizer = config, tokenizer
        self.dtype = jnp.dtype(dtype or default_precision().compute)
        self._model = tree.unflatten(tree.abstract(lambda key: Clap(config, key)), dict(arrays))
        self._captions = Captions(tokenizer, text_tokens, config.text_gap)

    @property
    def scale(self) -> float:
        """What cosines of clips among texts are multiplied with before a softmax."""
        return float(jnp.exp(self._model.logit_scale[0]))

    @property
    def arrays(self) -> dict[str, jax.Array]:
        """`{path: array}` of all parameters."""
        return tree.flatten(self._model)

    @property
    def conventions(self) -> list[str]:
        """What embeddings depend on besides the parameters: sizes, tokenizer, dtype."""
        return [repr(self.config), self.tokenizer.fingerprint, str(self._captions.tokens), str(self.dtype)]

    @property
    def towers(self) -> dict[str, jax.Array]:
        """`{path: array}` of `audio.*` and `text.*`."""
        return {p: leaf for p, leaf in self.arrays.items() if p.startswith(("audio.", "text."))}

    def embed_audio(self, clips: Sequence[Clip], *, batch_size: int = 8) -> np.ndarray:
        """Embeddings float32 [N, dim] of length 1; of a clip longer than the front end's window its beginning is heard.

        Raises:
            AudioError: a clip cannot be used; the message names it. UsageError: there is no clip.
        """
        if not len(clips):
            raise UsageError("no clips: give one at least")
        heard = [self._hear(clip) for clip in clips]
        return _in_batches(
            lambda frames, longer: _embed_audio(self._model, jnp.asarray(frames, self.dtype), longer),
            [np.stack(part) for part in zip(*heard)],
            batch_size if len(clips) > 1 else 1,  # one by itself is not heard eight times
        )

    def embed_text(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Embeddings float32 [N, dim] of length 1; what else is in the batch changes none of them.

        Raises:
            DataError: a text is empty. UsageError: there is none.
        """
        if isinstance(texts, str) or not len(texts):
            raise UsageError("texts: expected a list of one at least")
        ids = np.stack([self._captions.numpy(text) for text in texts])
        longest = int((ids != NO_TOKEN).sum(1).max())
        ids = ids[:, : -(-longest // LENGTH_BUCKET) * LENGTH_BUCKET]
        return _in_batches(lambda ids: _embed_text(self._model, ids, self.dtype), [ids], batch_size)

    def _hear(self, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
        """Frames, and whether a clip is longer than a model with fusion hears at once."""
        if getattr(self.config.audio, "fusion", False):
            frames, longer = fused_log_mel(self.config.frontend, samples(clip, self.config.frontend.sample_rate))
            return frames, np.array(longer)
        return windows(clip, self.config.frontend)[0], np.array(False)


@jax.jit
def _embed_audio(model: Clap, frames: jax.Array, longer: jax.Array) -> jax.Array:
    fusion = getattr(model.config.audio, "fusion", False)
    return model.encode_audio(frames, longer if fusion else None, normalise=True).astype(jnp.float32)


@partial(jax.jit, static_argnames="dtype")
def _embed_text(model: Clap, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    mask = (ids != NO_TOKEN).astype(jnp.int32)
    return model.encode_text(jnp.maximum(ids, 0), mask, normalise=True, dtype=dtype).astype(jnp.float32)


def _in_batches(embed: Any, arrays: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Full batches always, so that one shape is compiled."""
    count = len(arrays[0])
    parts = []
    for start in range(0, count, size):
        places = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(np.asarray(embed(*(array[places] for array in arrays))))
    return np.concatenate(parts)[:count]


def published_clap(name: str, tokenizer: str | None = None, dtype: Any = None) -> LoadedClap:
    """The model of a published CLAP.

    Args:
        name: file, folder or name on the hub. tokenizer: the same; by default what lies beside it, and GPT-2's for
            MS-CLAP.

    Raises:
        CheckpointError: it cannot be found or read, is another model, or there is no tokenizer.
    """
    file = open_tensors(resolve(name).path)
    layout = detect(file.keys(), whole=True)
    if layout not in LAYOUTS_OF_CLAP:
        raise CheckpointError(f"{file.path} has the layout {layout}; expected a CLAP ({', '.join(LAYOUTS_OF_CLAP)})")
    config = config_of(file, layout)
    if not config.text.heads:
        raise CheckpointError(f"{file.path}: nothing tells the heads of its text tower: put a config.json there")
    words = _tokenizer(file, layout, tokenizer)
    check_size(words, config.text.vocab_size, name)
    like = tree.abstract(lambda key: Clap(config, key))
    return LoadedClap(config, load(tree.flatten(like), [(file, LAYOUTS[layout].table(config))]), words, dtype=dtype)


def _tokenizer(file: TensorFile, layout: str, given: str | None) -> Tokenizer:
    if given is not None:
        return load_tokenizer(resolve(given).path)
    if (file.path.parent / "tokenizer.json").is_file():
        return load_tokenizer(file.path.parent)
    if layout != "msclap":
        raise CheckpointError(f"{file.path} has no tokenizer.json beside it: give its text tower's as tokenizer")
    try:
        return load_tokenizer(resolve(_GPT2).path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. MS-CLAP reads text with GPT-2's: give its tokenizer.json as tokenizer"
        ) from error
