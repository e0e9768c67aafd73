"""Cross-entropy of an output head: picks an implementation by capability; a named one never falls back."""

from __future__ import annotations

from typing import Any, Literal

import jax

from alm_jax.core import axes as ax
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import indivisible, parts, platform
from alm_jax.kernels.linear_cross_entropy import chunked, reference
from alm_jax.kernels.linear_cross_entropy.fused import ROWS, Call, weighted_sum
from alm_jax.kernels.linear_cross_entropy.head import Head

Implementation = Literal["auto", "reference", "chunked", "pallas_tpu", "pallas_gpu"]


def linear_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weight: jax.Array,
    *,
    vocab_axis: int = 1,
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> jax.Array:
    """Sum of `weight` x negative log-likelihood of the targets under softmax(hidden @ kernel).

    All but the reference hold logits of a few tokens at a time, and make no gradient for a kernel that does not train.
    Under `jax.set_mesh` rows and vocabulary are divided as `core.mesh.Rules` say.

    Args:
        hidden: [B, L, D]; its dtype is that of the products, whose sums are float32.
        kernel: [D, V], or [V, D] with `vocab_axis` 0; of any dtype. targets: int [B, L]. weight: float32 [B, L].
        implementation: `auto` takes `pallas_tpu` on a TPU where it can, else `chunked`; and the reference where the
            mesh does not divide the arrays. `pallas_gpu` has to be asked for.
        interpret: run Pallas kernels by the interpreter, on any platform.

    Returns:
        float32 scalar, differentiable for hidden, kernel and weight.

    Raises:
        ConfigError: the named implementation cannot do this call; the message says why.
    """
    head = Head(vocab_axis, interpret=interpret)
    if implementation == "auto":
        names = ("pallas_tpu", "chunked") if platform() == "tpu" else ("chunked",)
        implementation = next((n for n in names if _refusal(n, head, hidden, kernel) is None), "reference")
    elif why := _refusal(implementation, head, hidden, kernel):
        raise ConfigError(
            f"cross-entropy {implementation} cannot do this call: {why}; cross_entropy=auto takes one that can"
        )
    if implementation == "reference":
        return reference.linear_cross_entropy(head, hidden, kernel, targets, weight)
    return weighted_sum(Call(_module(implementation), vocab_axis, interpret), hidden, kernel, targets, weight)


def _refusal(name: str, head: Head, hidden: jax.Array, kernel: jax.Array) -> str | None:
    """Why an implementation cannot do this call, in words; None if it can."""
    if name == "reference":
        return None
    axes = (ax.EMBED, ax.VOCAB) if head.vocab_axis else (ax.VOCAB, ax.EMBED)
    if undivided := indivisible(hidden.shape, (*ROWS, None)) or indivisible(kernel.shape, axes):
        return undivided
    vocab = kernel.shape[head.vocab_axis] // parts((ax.VOCAB,))[0]
    return _module(name).refusal(head, hidden.shape[-1], vocab, hidden.dtype)


def _module(name: str) -> Any:
    """Of an implementation that holds some logits at a time. Pallas is only imported where it is used (0.3 s)."""
    if name == "pallas_tpu":
        from alm_jax.kernels.linear_cross_entropy import pallas_tpu

        return pallas_tpu
    if name == "pallas_gpu":
        from alm_jax.kernels.linear_cross_entropy import pallas_gpu

        return pallas_gpu
    return chunked
