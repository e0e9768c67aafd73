"""The matrix products of an output head, whichever way its kernel lies and however it is divided."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Head:
    """What is static of an output head. N are tokens, D the hidden width, V the vocabulary on this device.

    Attributes:
        vocab_axis: of the kernel; 1 for [D, V], 0 for [V, D] (an embedding table).
        mesh_axes: that divide the vocabulary; the functions below are then called by each device.
        interpret: whether Pallas kernels are interpreted.
    """

    vocab_axis: int
    mesh_axes: tuple[str, ...] = ()
    interpret: bool = False

    def logits(self, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        dims = (((hidden.ndim - 1,), (1 - self.vocab_axis,)), ((), ()))
        return jax.lax.dot_general(hidden, kernel, dims, preferred_element_type=jnp.float32)

    def d_hidden(self, d_logits: jax.Array, kernel: jax.Array) -> jax.Array:
        """[N, V] -> float32 [N, D]."""
        dims = (((1,), (self.vocab_axis,)), ((), ()))
        return jax.lax.dot_general(d_logits, kernel, dims, preferred_element_type=jnp.float32)

    def d_kernel(self, d_logits: jax.Array, hidden: jax.Array) -> jax.Array:
        """[N, V], [N, D] -> float32, as the kernel lies."""
        pair = (hidden, d_logits) if self.vocab_axis else (d_logits, hidden)
        return jax.lax.dot_general(*pair, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    def first_token(self, kernel: jax.Array) -> jax.Array | int:
        """Id of the first token of this device's part of the kernel."""
        return jax.lax.axis_index(self.mesh_axes) * kernel.shape[self.vocab_axis] if self.mesh_axes else 0

    def whole(self, log_sum: jax.Array, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log of the sum of exponents and the target's logit [N], of this device's part -> of the whole vocabulary."""
        if not self.mesh_axes:
            return log_sum, chosen
        top = jax.lax.pmax(log_sum, self.mesh_axes)
        total = jax.lax.psum(jnp.exp(log_sum - top), self.mesh_axes)
        return top + jnp.log(total), jax.lax.psum(chosen, self.mesh_axes)
