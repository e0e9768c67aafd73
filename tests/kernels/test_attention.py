"""Attention against a softmax written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.kernels.attention import attention, splash

B, L, H, K, D = 2, 7, 4, 2, 8


def _inputs(seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(B, L, H, D), (B, L, K, D), (B, L, K, D)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def _written_out(q, k, v, seen, bias=None):
    """float64; `seen` bool [B, L, S], `bias` [B, H, L, S]."""
    out = np.zeros(q.shape)
    for b in range(B):
        for h in range(H):
            group = h // (H // K)
            scores = q[b, :, h].astype(np.float64) @ k[b, :, group].T.astype(np.float64) / np.sqrt(D)
            scores = np.where(seen[b], scores if bias is None else scores + bias[b, h], -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, group]
    return out


def test_grouped_causal_segments():
    q, k, v = _inputs()
    q_ids = np.array([[1, 1, 1, 2, 2, 2, 2], [1] * 7])
    kv_ids = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 0, 1, 1, 1, 1]])
    ours = attention(q, k, v, q_segment_ids=jnp.array(q_ids), kv_segment_ids=jnp.array(kv_ids), causal=True)
    seen = (q_ids[:, :, None] == kv_ids[:, None]) & (kv_ids != 0)[:, None] & np.tril(np.ones((L, L), bool))
    np.testing.assert_allclose(ours, _written_out(q, k, v, seen), atol=2e-6)  # float32 against float64


def test_causal_with_a_prefix():
    """The prefix is seen by all and sees itself alone; the rest is causal."""
    q, k, v = _inputs()
    kv_ids = np.array([[1] * 7, [1, 1, 1, 1, 0, 1, 1]])
    ids = {"q_segment_ids": jnp.ones((B, L), jnp.int32), "kv_segment_ids": jnp.array(kv_ids)}
    seen = np.tril(np.ones((L, L), bool))
    seen[:, :3] = True
    expected = _written_out(q, k, v, seen & (kv_ids != 0)[:, None])
    np.testing.assert_allclose(attention(q, k, v, causal=True, prefix=3, **ids), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(H, L, L), (B, H, L, L)])
def test_a_bias_on_the_scores(shape):
    (q, k, v), bias = _inputs(), np.random.default_rng(5).normal(size=shape).astype(np.float32)
    ids = np.array([[1, 1, 1, 2, 2, 2, 2], [1] * 7])
    expected = _written_out(q, k, v, ids[:, :, None] == ids[:, None], np.broadcast_to(bias, (B, H, L, L)))
    ids = jnp.array(ids)
    np.testing.assert_allclose(
        attention(q, k, v, bias=bias, q_segment_ids=ids, kv_segment_ids=ids), expected, atol=2e-6
    )


def test_a_query_that_sees_nothing_is_finite():
    q, k, v = _inputs()
    nothing = jnp.zeros((B, L), jnp.int32)
    run = lambda q: attention(q, k, v, q_segment_ids=nothing, kv_segment_ids=nothing, causal=True).sum()
    assert np.isfinite(run(q)) and np.isfinite(jax.grad(run)(q)).all()


@pytest.mark.parametrize(
    ("lengths", "mask"),
    [((256, 256), {"causal": True}), ((256, 256), {"causal": True, "prefix": 70}), ((128, 256), {})],
)
def test_splash_is_the_reference(lengths, mask, monkeypatch):
    """Values and gradients of what sees a key, by the interpreter; ids of queries and keys differ."""
    monkeypatch.setattr(splash, "_BLOCKS", (128,))
    rng = np.random.default_rng(2)
    sizes = zip((*lengths, lengths[1], lengths[0]), (4, 2, 2, 4))
    q, k, v, wanted = (jnp.float32(rng.normal(size=(B, n, heads, 64))) for n, heads in sizes)
    q_ids, kv_ids = (np.sort(rng.integers(1, 3, (B, n))) for n in lengths)
    kv_ids[:, 100:120] = 0
    q_ids[0, -10:] = 0
    ids = {"q_segment_ids": jnp.int32(q_ids), "kv_segment_ids": jnp.int32(kv_ids)}
    seen = (q_ids[:, :, None] == kv_ids[:, None]) & (kv_ids != 0)[:, None]
    if mask:
        seen &= np.tril(np.ones(lengths, bool)) | (np.arange(lengths[1]) < mask.get("prefix", 0))
    wanted = wanted * seen.any(-1)[..., None, None]

    def run(attend, **options):
        loss = lambda q, k, v: jnp.sum(attend(q, k, v, **ids, **mask, **options) * wanted)
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

    ours, expected = run(splash.attention, interpret=True), run(attention, implementation="reference")
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-4)  # a sum of numbers of both signs
    for mine, theirs in zip(ours[1], expected[1]):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())  # float32 sums in another order


def test_a_named_implementation_never_falls_back():
    if jax.default_backend() != "cpu":
        pytest.skip("an accelerator is present, which one of them can do this call on")
    with pytest.raises(ConfigError, match="attention cudnn cannot do this call: it needs a GPU"):
        attention(*_inputs(), implementation="cudnn")
    with pytest.raises(ConfigError, match="attention splash cannot do this call: it needs a TPU"):
        attention(*_inputs(), implementation="splash")


def test_what_splash_refuses():
    q, k, _ = map(jnp.asarray, _inputs())
    assert splash.refusal(q, k, bias=q, interpret=True) == "it adds no bias to the scores"
    assert "multiples of 128, got 7 queries and 7 keys" in splash.refusal(q, k, interpret=True)
    long = jnp.zeros((1, 256, 4, 64))
    assert splash.refusal(long, long, interpret=True) is None
    assert "multiple of 64, got 40" in splash.refusal(long[..., :40], long[..., :40], interpret=True)
