"""Generation: cached against uncached, padded against alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import UsageError
from alm_jax.core.sequence import Row, collate
from alm_jax.infer.generate import generate, steps
from alm_jax.infer.sampling import Sampling
from alm_jax.layers.dense import Lora
from alm_jax.layers.rope import LinearRope
from alm_jax.models.alm import build
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import ltu

VOCAB = 50


LLAMA = LlamaConfig(VOCAB, dim=32, depth=2, heads=4, kv_heads=2, mlp_dim=48, lora=Lora())
GPT2 = Gpt2Config(VOCAB, dim=32, depth=2, heads=4, mlp_dim=48, positions=32, tie_embeddings=False)


def _model(decoder):
    encoder = CavMaeConfig(frames=64, mels=32, dim=16, heads=2, depth=2)
    model = build(ltu(decoder, encoder), jax.random.key(0))
    # A fresh model is nearly flat: sharpen its logits, so that greedy choices are far apart.
    return jax.tree.map(lambda x: 6 * x if x.ndim == 2 and x.shape[-1] == VOCAB else x, model)


@pytest.fixture(scope="module")
def model():
    return _model(LLAMA)


def _prompt(text_length, heard, seed):
    rng = np.random.default_rng(seed)
    audio = 2 if heard else 0
    n = audio + text_length
    index = np.full(n, -1)
    index[:audio] = np.arange(audio)
    tokens = np.where(index >= 0, 0, rng.integers(3, VOCAB, n))
    nothing = np.zeros(n)
    return Row(tokens, index, np.full(n, -1), nothing, nothing, index < 0, (0,) if heard else ())


def _batch(rows, waves, length=None):
    batch = collate(rows, length or max(map(len, rows)), slots=1, pad="left")
    batch.audio = waves[:, None]
    return batch


@pytest.fixture(scope="module")
def prompts():
    rows = [_prompt(3, True, 0), _prompt(9, True, 1), _prompt(6, False, 2)]
    return rows, np.random.default_rng(3).normal(size=(3, 64, 32)).astype(np.float32)


@pytest.mark.parametrize("decoder", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_cached_logits_equal_a_full_forward_pass(decoder, prompts):
    model, (rows, audio) = _model(decoder), prompts
    batch = _batch(rows[1:2], audio[1:2])
    length = batch.shape[1]
    tokens, seen = [], []
    for ids, _, logits in steps(model, batch, max_new_tokens=5):
        tokens.append(int(ids[0]))
        seen.append(np.asarray(logits[0]))
    row = rows[1]
    grown = Row(
        np.concatenate([row.tokens, tokens]),
        np.concatenate([row.audio_index, np.full(5, -1)]),
        *(
            np.concatenate([getattr(row, n), np.zeros(5) - (n == "indicator_index")])
            for n in ("indicator_index", "targets", "loss_weight", "penalty_mask")
        ),
        clips=(0,),
    )
    full = model.logits(model.hidden(_batch([grown], audio[1:2])))[0]
    np.testing.assert_allclose(np.stack(seen), full[length - 1 : length + 4], atol=2e-5)  # float32, other sum orders


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(repetition_penalty=1.3), Sampling(0.8, 20, 0.9, 1.1)])
def test_padded_or_alone_a_row_gives_the_same_answer(model, prompts, sampling):
    rows, audio = prompts
    seeds = np.array([5, 6, 7])
    together = generate(model, _batch(rows, audio, 24), max_new_tokens=8, sampling=sampling, seeds=seeds)
    for i, row in enumerate(rows):
        alone = generate(
            model, _batch([row], audio[i : i + 1]), max_new_tokens=8, sampling=sampling, seeds=seeds[i : i + 1]
        )
        assert alone[0] == together[i]


def test_a_table_of_positions_ends_the_answer(prompts):
    model, (rows, audio) = _model(GPT2), prompts
    batch = _batch(rows, audio)
    assert batch.shape[1] == 11
    answers = generate(model, batch, max_new_tokens=22)  # the last one is not read
    assert [len(answer) for answer in answers] == [22] * 3
    assert generate(model, _batch(rows[:1], audio[:1]), max_new_tokens=22) == answers[:1]
    with pytest.raises(UsageError, match=r"11 tokens and 23 new ones do not fit the decoder's 32 positions: .* 22 new"):
        generate(model, batch, max_new_tokens=23)


@pytest.mark.parametrize(("rope", "positions"), [(None, 32), (LinearRope(2.0), 16)])
def test_rotary_positions_end_where_training_did(prompts, rope, positions):
    """A linearly stretched model's config tells the length from before (`lmsys/vicuna-7b-v1.5-16k`: 4096, factor 4)."""
    model = _model(replace(LLAMA, positions=positions, rope_scaling=rope))
    with pytest.raises(UsageError, match=r"11 tokens and 23 new ones do not fit the decoder's 32 positions: .* 22 new"):
        generate(model, _batch(*prompts), max_new_tokens=23)


def test_rows_stop_at_eos_and_the_loop_stops_with_the_last(model, prompts):
    rows, audio = prompts
    free = generate(model, _batch(rows, audio), max_new_tokens=8)
    eos = free[0][2]
    stopped = generate(model, _batch(rows, audio), max_new_tokens=8, eos_ids=(eos,))
    for answer, whole in zip(stopped, free):
        assert answer == (whole[: whole.index(eos)] if eos in whole else whole)


def test_one_decode_step_is_compiled_for_a_bucket(model, prompts):
    from alm_jax.infer import generate as module

    rows, audio = prompts
    generate(model, _batch(rows, audio, 12), max_new_tokens=3)
    before = module._decode._cache_size()
    generate(model, _batch(rows, audio, 20), max_new_tokens=9)
    assert module._decode._cache_size() == before


def test_a_batch_without_audio(model, prompts):
    row = prompts[0][2]
    with_empty_slot = generate(model, _batch([row], prompts[1][:1]), max_new_tokens=4)
    text_only = collate([row], len(row), slots=0, pad="left")
    assert generate(model, text_only, max_new_tokens=4) == with_empty_slot
    assert jnp.isfinite(model.hidden(text_only)).all()
