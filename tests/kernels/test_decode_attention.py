"""Decode attention against attention of whole rows; the kernel by the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.kernels.attention import attention
from alm_jax.kernels.decode_attention import decode_attention, pallas_tpu

B, H, K, LAYERS = 3, 4, 2, 2


def _inputs(length, width, slots, new, dtype=np.float32):
    """Queries, keys and values of whole rows; what decoding takes of them, in a cache that is else full of rubbish."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(B, length, heads, width)).astype(dtype) for heads in (H, K, K))
    caches = np.full((2, LAYERS, B, K, slots, width), 9.0, dtype)
    old = length - new
    caches[:, 1, :, :, :old] = np.stack([k, v])[:, :, :old].swapaxes(2, 3)
    last = [x[:, old:] for x in (q, k, v)]
    return (q, k, v), [*last, *caches]


def _ids(length, *padded):
    """int32 [B, length]; rows begin after so much padding."""
    return (np.arange(length) >= np.array(padded)[:, None]).astype(np.int32)


@pytest.mark.parametrize("new", [1, 3])
def test_the_end_of_the_whole_row(new):
    length, slots = 7, 11
    whole, last = _inputs(length, 8, slots, new)
    ids = _ids(length, 2, 0, 3)
    ones = jnp.ones((B, length), jnp.int32)
    expected = attention(*whole, q_segment_ids=ones, kv_segment_ids=jnp.array(ids), causal=True)[:, -new:]
    in_cache = np.pad(ids[:, :-new], ((0, 0), (0, slots - length + new)))
    found = decode_attention(*last, layer=1, q_segment_ids=ones[:, :new], kv_segment_ids=jnp.array(in_cache))
    np.testing.assert_allclose(found, expected, atol=2e-6)  # sums in another order


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])  # bfloat16 has 8 bits
def test_pallas_is_the_reference(dtype, tolerance, monkeypatch):
    """A row that begins in the second of three blocks, one that ends in it, and one whose cache is empty."""
    monkeypatch.setattr(pallas_tpu, "_SLOTS", (64,))
    _, last = _inputs(150, 64, 192, 1, dtype)
    seen = np.zeros((B, 192), np.int32)
    seen[0, 70:149] = 1
    seen[1, :100] = 1
    options = {"layer": 1, "q_segment_ids": jnp.ones((B, 1), jnp.int32), "kv_segment_ids": jnp.array(seen)}
    run = lambda name: jax.jit(lambda *x: decode_attention(*x, **options, implementation=name, interpret=True))(*last)
    found, expected = (np.float32(run(name)) for name in ("pallas_tpu", "reference"))
    np.testing.assert_allclose(found, expected, atol=tolerance)
    alone = np.repeat(np.float32(last[2][2]), H // K, axis=1)  # the new token sees itself
    np.testing.assert_allclose(found[2], alone, atol=tolerance)


def test_refusals():
    def run(length=1, width=64, slots=192, **options):
        _, last = _inputs(length, width, slots, length)
        ids = {"q_segment_ids": np.ones((B, length), np.int32), "kv_segment_ids": np.ones((B, slots), np.int32)}
        return decode_attention(*last, layer=0, **ids, implementation="pallas_tpu", **options)

    with pytest.raises(ConfigError, match="decode attention pallas_tpu cannot do this call: it needs a TPU"):
        run()
    with pytest.raises(ConfigError, match="one new token a row, got 2"):
        run(length=2, interpret=True)
    with pytest.raises(ConfigError, match="multiple of 64, got 40"):
        run(width=40, interpret=True)
    with pytest.raises(ConfigError, match="divisor of 100 slots fits the 12 MiB of VMEM"):
        run(slots=100, interpret=True)
