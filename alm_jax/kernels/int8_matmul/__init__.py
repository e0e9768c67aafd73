"""Products with kernels that are stored in 8 bits and do not train."""

from alm_jax.kernels.int8_matmul.api import Implementation, int8_matmul

__all__ = ["Implementation", "int8_matmul"]
