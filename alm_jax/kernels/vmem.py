"""The memory beside a TPU's matrix unit, in which the blocks of a kernel have to fit."""

from __future__ import annotations

from jax.experimental.pallas import tpu as pltpu

from alm_jax.core.mesh import platform

_SMALLEST = 2**24  # of all generations (v4)


def vmem() -> int:
    """Bytes of VMEM to use; the compiler takes some for itself."""
    most = pltpu.get_tpu_info().vmem_capacity_bytes if platform() == "tpu" else _SMALLEST
    return most * 3 // 4
