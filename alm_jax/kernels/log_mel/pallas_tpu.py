"""Pallas kernel for TPUs: a block of frames from samples to log-mel without leaving VMEM.

The reference's split DFT, of which each factor is a matrix product, bins k + 8 l for one k at a time. The squares of
real and imaginary parts are added by the product with the filters, which stand in it twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from alm_jax.core import axes as ax
from alm_jax.core.mesh import indivisible, per_device, platform
from alm_jax.kernels import tuning
from alm_jax.kernels.log_mel.reference import RADIX, dft_factors
from alm_jax.kernels.vmem import vmem

_FRAMES = (256, 128, 64, 512, 1024)  # of a block: the default is the first that fits
_LANES, _SUBLANES = 128, 8
_AFTER = 8  # hops behind a block that its last frames reach into
_WAVES = (ax.BATCH, None)


def refusal(
    waves: jax.Array, window: np.ndarray, filters: np.ndarray, hop: int, n_fft: int, rows: int, interpret: bool = False
) -> str | None:
    """Why this kernel cannot do a call, in words; None if it can."""
    if platform() != "tpu" and not interpret:
        return f"it needs a TPU, the platform is {platform()}"
    if rows < 1 or waves.size == 0:
        return f"there are no frames: waves {waves.shape}, {rows} rows"
    if len(window) > (_AFTER + 1) * hop:
        return f"frames of {len(window)} samples reach over more than {_AFTER + 1} hops of {hop}"
    if undivided := indivisible(waves.shape, _WAVES):
        return undivided
    if not any(_blocks(hop, len(window), n_fft, filters.shape[1])):
        return f"a DFT of {n_fft} samples and a block of frames do not fit the {vmem() // 2**20} MiB of VMEM"
    return None


def log_mel(waves, window, filters, *, hop, n_fft, rows, floor, preemphasis, interpret) -> jax.Array:
    """See `api.log_mel`."""
    shape = {"hop": hop, "length": len(window), "n_fft": n_fft, "mels": filters.shape[1]}
    block = tuning.choose("log_mel", shape, _blocks(hop, len(window), n_fft, filters.shape[1]))["frames"]
    block = min(block, -(-rows // _SUBLANES) * _SUBLANES)
    constants = _constants(window.tobytes(), np.ascontiguousarray(filters, np.float64).tobytes(), hop, n_fft)
    local = partial(_local, constants, block, hop, rows, partial(_body, len(window), preemphasis, floor), interpret)
    return per_device(local, [_WAVES], [(*_WAVES, None)])(waves)[0]


def _local(constants, block: int, hop: int, rows: int, body, interpret: bool, waves: jax.Array) -> tuple[jax.Array]:
    (batch, n), count = waves.shape, -(-rows // block)
    hops = count * block + _AFTER
    waves = jnp.pad(waves[:, : hops * hop], ((0, 0), (0, max(0, hops * hop - n)))).reshape(batch, hops, hop)
    whole = lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)
    mels = constants[2].shape[-1]
    out = pl.pallas_call(
        body,
        grid=(batch, count),
        in_specs=[
            pl.BlockSpec((None, block, hop), lambda row, i: (row, i, 0)),
            pl.BlockSpec((None, _AFTER, hop), lambda row, i: (row, (i + 1) * (block // _AFTER), 0)),
            *map(whole, constants),
        ],
        out_specs=pl.BlockSpec((None, block, mels), lambda row, i: (row, i, 0)),
        out_shape=jax.ShapeDtypeStruct((batch, count * block, mels), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=vmem()),
        interpret=interpret,
    )(waves, waves, *constants)
    return (out[:, :rows],)


def _body(length: int, preemphasis: float | None, floor: float, here, after, first, second, filters, out):
    hops, count = jnp.concatenate([here[...], after[...]]), here.shape[0]
    pieces = first.shape[1] // here.shape[1]
    frames = jnp.concatenate([hops[i : i + count] for i in range(pieces)], axis=1)
    if preemphasis is not None:
        inside = jax.lax.broadcasted_iota(jnp.int32, frames.shape, 1) < length
        frames -= jnp.sum(jnp.where(inside, frames, 0.0), axis=1, keepdims=True) / length
        frames -= preemphasis * jnp.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    energy = jnp.zeros(out.shape, jnp.float32)
    for k in range(RADIX):
        bins = _product(_product(frames, first[k]), second[...])
        energy += _product(bins * bins, filters[k])
    out[...] = jnp.log(jnp.maximum(energy, floor))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, precision="highest", preferred_element_type=jnp.float32)


@lru_cache(maxsize=16)
def _constants(window: bytes, filters: bytes, hop: int, n_fft: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The DFT's factors and the filters for one k after the other, float32, with zeros up to whole lanes.

    first [8, pieces x hop, (c, j)], second [(c, j), (d, l)], filters [8, (d, l), mels]; see `reference.dft_factors`.
    """
    length, m, half = len(window) // 8, n_fft // RADIX, n_fft // RADIX // 2 + 1
    middle, bins = _lanes(2 * m), _lanes(2 * half)
    first, second = dft_factors(window, n_fft)
    sample = np.arange(length)
    dense = np.zeros((RADIX, -(-length // hop) * hop, 2, m), np.float32)
    dense[:, sample, :, sample % m] = first[sample // m, :, :, sample % m]
    dense = dense.reshape(*dense.shape[:2], 2 * m)
    mels = np.frombuffer(filters).reshape(n_fft // 2 + 1, -1)
    mels = np.pad(mels, ((0, RADIX * half - len(mels)), (0, 0))).reshape(half, RADIX, -1).swapaxes(0, 1)
    mels = np.concatenate([mels, mels], axis=1).astype(np.float32)
    wide = lambda x, *sizes: np.pad(x, [(0, size - have) for size, have in zip(sizes, x.shape)])
    return (
        wide(dense, *dense.shape[:2], middle),
        wide(second.reshape(2 * m, 2 * half), middle, bins),
        wide(mels, RADIX, bins, mels.shape[2]),
    )


def _lanes(size: int) -> int:
    return -(-size // _LANES) * _LANES


def _blocks(hop: int, length: int, n_fft: int, mels: int) -> Iterator[tuning.Blocks]:
    """Numbers of frames that fit VMEM: constants, samples and results are held twice, what is between them once."""
    middle, bins, mels = _lanes(n_fft // 4), _lanes(n_fft // 8 + 2), _lanes(mels)
    frame = _lanes(-(-length // hop) * hop)
    constants = 2 * (RADIX * frame * middle + middle * bins + RADIX * bins * mels)
    for frames in _FRAMES:
        if 4 * (constants + frames * (2 * (_lanes(hop) + mels) + 3 * frame + middle + 2 * bins + mels)) <= vmem():
            yield {"frames": frames}
