"""Which dtype each kind of number is held and computed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Dtype = Literal["float32", "bfloat16"]
Storage = Literal["int8", "nf4"]


@dataclass(frozen=True)
class Precision:
    """Dtypes of a run. `trained` weights and their optimiser state stay float32; the frozen base may be bfloat16.

    Attributes:
        frozen: dtype of weights that do not train.
        compute: dtype of activations; norms, softmax and losses are float32 whatever it is.
        decoder: how kernels in the decoder's blocks that do not train are stored (`models.quantized`): QLoRA, where
            LoRA trains over them. None is as `frozen` says.
    """

    frozen: Dtype = "bfloat16"
    compute: Dtype = "bfloat16"
    decoder: Storage | None = None


FLOAT32 = Precision("float32", "float32")
MIXED = Precision("bfloat16", "bfloat16")
PRECISIONS = {
    "float32": FLOAT32,
    "mixed": MIXED,
    "int8": Precision(decoder="int8"),
    "nf4": Precision(decoder="nf4"),
}
"""By name, for `--set precision=nf4`."""


def default_precision() -> Precision:
    """float32 throughout on CPU, where bfloat16 is slower; bfloat16 base and activations on accelerators."""
    return FLOAT32 if jax.default_backend() == "cpu" else MIXED


def cast_floating(x: Any, dtype: Any) -> Any:
    """`x` in `dtype` if it holds floating-point numbers, else unchanged."""
    return x.astype(dtype) if jnp.issubdtype(np.result_type(x), jnp.floating) else x
