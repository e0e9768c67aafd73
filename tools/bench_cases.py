"""What `tools/bench.py` compares and `tools/tune_kernels.py` tunes: kernels at sizes of models, small ones on CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Case:
    """A row of the table: two functions of the same arrays.

    Attributes:
        name: unique in its bench. ours, theirs: what is compared. arguments: makes the arrays.
    """

    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    arguments: Callable[[], tuple[Any, ...]]


def attention() -> Iterator[Case]:
    """Values and gradients of causal attention over padded rows."""
    import jax
    import jax.numpy as jnp

    from alm_jax.kernels.attention import attention
    from alm_jax.models.registry import named_config

    def side(implementation: str) -> Callable[..., Any]:
        def loss(q, k, v, ids):
            options = {"q_segment_ids": ids, "kv_segment_ids": ids, "causal": True}
            return jnp.sum(attention(q, k, v, **options, implementation=implementation).astype(jnp.float32))

        return jax.value_and_grad(loss, (0, 1, 2))

    def arrays(c: Any, rows: int, length: int):
        heads = [(rows, length, count, c.head_width) for count in (c.heads, c.kv_heads, c.kv_heads)]
        real = jnp.arange(length) < length - 100 * jnp.arange(rows)[:, None]
        return *_normal(*heads), real.astype(jnp.int32)

    small = [("smollm2_135m", 2, 512)]
    large = [(model, 4, length) for model in ("vicuna_7b", "llama3.1_8b") for length in (512, 1024, 2048)]
    for model, rows, length in small if on_cpu() else large:
        name = f"{model}, {rows} rows of {length}"
        yield Case(name, side("auto"), side("reference"), partial(arrays, named_config(model), rows, length))


def cross_entropy() -> Iterator[Case]:
    """Value and gradients of a decoder's head and its loss, trained and frozen."""
    import jax

    from alm_jax.kernels.linear_cross_entropy import linear_cross_entropy
    from alm_jax.models.registry import named_config

    def side(implementation: str, trains: bool) -> Callable[..., Any]:
        loss = partial(linear_cross_entropy, vocab_axis=0, implementation=implementation)
        return jax.value_and_grad(loss, (0, 1) if trains else 0)

    def arrays(tokens: int, width: int, vocab: int):
        hidden, kernel = _normal((4, tokens // 4, width), (vocab, width))
        keys = jax.random.split(jax.random.key(1))
        targets = jax.random.randint(keys[0], hidden.shape[:2], 0, vocab)
        return hidden, kernel / width**0.5, targets, jax.random.uniform(keys[1], hidden.shape[:2])

    small = [("smollm2_135m", 1024, True), ("smollm2_135m", 1024, False)]
    large = [("vicuna_7b", 8192, False), ("vicuna_7b", 8192, True), ("llama3.1_8b", 4096, False)]
    for model, tokens, trains in small if on_cpu() else small + large:
        config = named_config(model)
        name = f"{model}, {tokens} tokens, head {'trains' if trains else 'frozen'}"
        make = partial(arrays, tokens, config.dim, config.vocab_size)
        yield Case(name, side("auto", trains), side("reference", trains), make)


def decode_attention() -> Iterator[Case]:
    """One new token a row over one layer of the cache; rows began at different slots."""
    import jax.numpy as jnp

    from alm_jax.kernels.decode_attention import decode_attention
    from alm_jax.models.registry import named_config

    def side(implementation: str) -> Callable[..., Any]:
        def run(q, k, v, k_cache, v_cache, ids):
            options = {"layer": 1, "q_segment_ids": ids[:, -1:], "kv_segment_ids": ids}
            return decode_attention(q, k, v, k_cache, v_cache, **options, implementation=implementation)

        return run

    def arrays(c: Any, rows: int, slots: int):
        new, cache = (rows, 1, c.kv_heads, c.head_width), (2, rows, c.kv_heads, slots, c.head_width)
        ids = jnp.arange(slots) >= slots // 2 * jnp.arange(rows)[:, None] // rows
        return *_normal((rows, 1, c.heads, c.head_width), new, new, cache, cache), ids.astype(jnp.int32)

    small = [("smollm2_135m", 4, 512)]
    large = [(model, 16, slots) for model in ("vicuna_7b", "llama3.1_8b") for slots in (256, 512, 1024, 2048)]
    for model, rows, slots in small if on_cpu() else large:
        name = f"{model}, {rows} rows, {slots} slots"
        yield Case(name, side("auto"), side("reference"), partial(arrays, named_config(model), rows, slots))


def int8_matmul() -> Iterator[Case]:
    """Values and gradient for the input of a layer of a decoder, its kernel in int8 against one as models compute."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from alm_jax.core.mesh import platform
    from alm_jax.kernels.int8_matmul import int8_matmul
    from alm_jax.models.registry import named_config

    def ours(implementation: str) -> Callable[..., Any]:
        def loss(x, codes, scale, kernel):
            return _squares(int8_matmul(x, codes, scale, implementation=implementation))

        return jax.value_and_grad(loss)

    theirs = jax.value_and_grad(lambda x, codes, scale, kernel: _squares(x @ kernel))

    def arrays(rows: int, inputs: int, outputs: int):
        codes = np.random.default_rng(0).integers(-127, 128, (inputs, outputs)).astype(np.int8)
        x, kernel = _normal((1, rows, inputs), (inputs, outputs))
        return x, jnp.asarray(codes), jnp.full(outputs, 1 / 127), kernel

    names = ("pallas_tpu", "reference") if platform() == "tpu" else ("reference",)
    small, large = [("smollm2_135m", 1024)], [("vicuna_7b", rows) for rows in (16, 1024, 8192)]
    for model, rows in small if on_cpu() else large:
        c = named_config(model)
        for name in names:
            make = partial(arrays, rows, c.dim, c.mlp_dim)
            yield Case(f"{model}, mlp.up of {rows} tokens, {name}", ours(name), theirs, make)


def log_mel() -> Iterator[Case]:
    """Front ends on the device, from samples to what encoders take."""
    import jax.numpy as jnp

    from alm_jax.audio import KaldiFbank, LibrosaLogMel, WhisperLogMel

    rows = 2 if on_cpu() else 64

    def arrays(samples: int):
        return *_normal((rows, samples), dtype="float32"), jnp.full(rows, samples)

    for front_end in (KaldiFbank(), WhisperLogMel(), LibrosaLogMel()):
        name = f"{type(front_end).__name__}, {rows} clips of {front_end.frames} frames"
        sides = [partial(front_end.jax, implementation=name) for name in ("auto", "reference")]
        yield Case(name, *sides, partial(arrays, front_end.frames * front_end.hop))


def window_attention() -> Iterator[Case]:
    """Values and gradients, the bias's too, in the stages of HTSAT, with shifted windows where it has them."""
    import jax
    import jax.numpy as jnp

    from alm_jax.kernels.window_attention import window_attention
    from alm_jax.models.encoders.htsat import HtsatConfig, shift_regions

    def side(regions: Any, implementation: str) -> Callable[..., Any]:
        def loss(*arrays):
            out = window_attention(*arrays, regions, implementation=implementation)
            return jnp.sum(out.astype(jnp.float32) ** 2)

        return jax.value_and_grad(loss, (0, 1, 2, 3))

    c, clips = HtsatConfig(), 1 if on_cpu() else 32
    places = c.window**2

    def arrays(windows: int, heads: int, width: int):
        q, k, v = _normal(*[(windows, places, heads, width)] * 3)
        return q, k, v, *_normal((heads, places, places), dtype="float32")

    for edge, dim, heads in zip(c.grid, c.dims, c.heads):
        shifted = edge > c.window
        regions = jnp.asarray(shift_regions(edge, edge, c.window, c.window // 2)) if shifted else None
        name = f"{clips} clips, grid {edge}, {heads} heads{', shifted' if shifted else ''}"
        make = partial(arrays, clips * (edge // c.window) ** 2, heads, dim // heads)
        yield Case(name, side(regions, "auto"), side(regions, "reference"), make)


BENCHES: dict[str, Callable[[], Iterator[Case]]] = {
    "attention": attention,
    "cross_entropy": cross_entropy,
    "decode_attention": decode_attention,
    "int8_matmul": int8_matmul,
    "log_mel": log_mel,
    "window_attention": window_attention,
}


def _squares(y: Any) -> Any:
    import jax.numpy as jnp

    return jnp.sum(jnp.square(y.astype(jnp.float32)))


def on_cpu() -> bool:
    """Whether programs run on a CPU."""
    from alm_jax.core.mesh import platform

    return platform() == "cpu"


def _normal(*shapes: tuple[int, ...], dtype: str | None = None) -> tuple[Any, ...]:
    """Normal numbers, in the dtype that models compute in here if no other is named."""
    import jax

    from alm_jax.core.precision import default_precision

    keys, dtype = jax.random.split(jax.random.key(0), len(shapes)), dtype or default_precision().compute
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes))
