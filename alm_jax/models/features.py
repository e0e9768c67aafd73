"""What an aligner is given: an encoder's features, and text for those that read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass
class Features:
    """Encoder output.

    Attributes:
        values: [K, B, T, D]; K tapped layers (1 for a plain encoder), T steps.
        mask: bool [B, T], True where a step hears audio; None if all do.
    """

    values: jax.Array
    mask: jax.Array | None = None


class AlignerText(NamedTuple):
    """What an aligner that reads text is given.

    Attributes:
        tokens: int32 [B, L] ids of the aligner's own vocabulary. mask: bool [B, L], False where there is padding.
    """

    tokens: jax.Array
    mask: jax.Array

    @classmethod
    def none(cls, rows: int) -> AlignerText:
        """No text, of length 0."""
        return cls(jnp.zeros((rows, 0), jnp.int32), jnp.zeros((rows, 0), bool))


def pool_steps(x: jax.Array, factor: int) -> jax.Array:
    """Mean over each `factor` neighbouring steps: [B, T, D] -> [B, T // factor, D]; a ragged end is left out."""
    if factor == 1:
        return x
    steps = x.shape[1] // factor
    return x[:, : steps * factor].reshape(x.shape[0], steps, factor, x.shape[2]).mean(2)
