"""What an encoder gives to an aligner."""

from __future__ import annotations

from dataclasses import dataclass

import jax


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


def pool_steps(x: jax.Array, factor: int) -> jax.Array:
    """Mean over each `factor` neighbouring steps: [B, T, D] -> [B, T // factor, D]; a ragged end is left out."""
    if factor == 1:
        return x
    steps = x.shape[1] // factor
    return x[:, : steps * factor].reshape(x.shape[0], steps, factor, x.shape[2]).mean(2)
