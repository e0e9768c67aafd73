"""Speech to text by Whisper, greedily: what LTU-AS calls the spoken text of a clip."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.core.errors import UsageError
from alm_jax.models.decoders.whisper import WhisperSeq2Seq


def transcribe(
    model: WhisperSeq2Seq,
    frames: jax.Array,
    prompt: tuple[int, ...],
    *,
    eos_id: int,
    max_new_tokens: int,
    suppress: tuple[int, ...] = (),
    suppress_first: tuple[int, ...] = (),
) -> list[list[int]]:
    """The most likely next token until the end of the text, for every clip.

    Args:
        frames: log-mel [B, n, mels] (`audio.frontend.WhisperLogMel`); its dtype is the compute dtype.
        prompt: ids that every text begins with (start of transcript, language, task, no timestamps).
        suppress: ids that are never chosen. suppress_first: not as the first one (`suppress_tokens` and
            `begin_suppress_tokens` of a `generation_config.json`).

    Returns:
        New ids of every clip, without `eos_id`.

    Raises:
        UsageError: there is no prompt, or prompt and text together are longer than the decoder's positions.
    """
    places = model.config.decoder.positions
    if not prompt or len(prompt) + max_new_tokens > places:
        raise UsageError(
            f"got a prompt of {len(prompt)} ids and room for {max_new_tokens} new ones; "
            f"expected a prompt, and at most {places} in all"
        )
    limits = {"eos_id": eos_id, "max_new_tokens": max_new_tokens}
    ids = _greedy(model, frames, prompt=prompt, suppress=suppress, suppress_first=suppress_first, **limits)
    texts = np.asarray(ids)
    return [text[: np.argmax(np.append(text, eos_id) == eos_id)].tolist() for text in texts]


@partial(jax.jit, static_argnames=("prompt", "eos_id", "max_new_tokens", "suppress", "suppress_first"))
def _greedy(model, frames, *, prompt, eos_id, max_new_tokens, suppress, suppress_first) -> jax.Array:
    """New ids int32 [B, max_new_tokens]; after the end of a text all are `eos_id`."""
    decoder, rows = model.decoder, frames.shape[0]
    audio = decoder.audio_kv(model.encoder(frames).values[0])

    def choose(hidden, never):
        logits = decoder.logits(hidden[:, -1]).at[:, jnp.array(never, jnp.int32)].set(-jnp.inf)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    tokens = jnp.broadcast_to(jnp.array(prompt, jnp.int32), (rows, len(prompt)))
    hidden, cache = decoder.prefill(tokens, audio, slots=len(prompt) + max_new_tokens)
    first = choose(hidden, suppress + suppress_first)
    ids = jnp.full((rows, max_new_tokens), eos_id, jnp.int32).at[:, 0].set(first)

    def going(carry):
        step, ids, _ = carry
        return (step < max_new_tokens) & (ids[:, step - 1] != eos_id).any()

    def advance(carry):
        step, ids, cache = carry
        last = ids[:, step - 1]
        hidden, cache = decoder.decode(last[:, None], audio, cache, len(prompt) + step - 1)
        token = jnp.where(last == eos_id, eos_id, choose(hidden, suppress))
        return step + 1, ids.at[:, step].set(token), cache

    return jax.lax.while_loop(going, advance, (jnp.int32(1), ids, cache))[1]
