"""Short rows packed into sequences: every row once, in a batch as by itself, and a pure function of the step."""

import json
import pickle
from collections import Counter
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.core.sequence import Batch, Layout
from alm_jax.data.packing import alone, packed
from alm_jax.data.pipeline import make_pipeline
from alm_jax.data.plan import DataSpec, Plan, Source
from alm_jax.data.templates import ALPACA_SHORT
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.layers.dense import Lora
from alm_jax.models.alm import build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import ltu
from alm_jax.train.config import Stage
from alm_jax.train.objectives import next_token, normalised_weights

RNG = np.random.default_rng(0)
LENGTHS = [RNG.integers(5, 60, 301), RNG.integers(20, 40, 133)]
SLOTS = [RNG.integers(0, 3, 301), np.ones(133, np.int64)]
SPEC = DataSpec(
    sources=(Source("a"), Source("b", repeat=2)), batch_size=4, buckets=(32, 64, 128), seed=3, pack=True, max_slots=4
)


@pytest.mark.parametrize("length, most", [(60, 99), (128, 99), (128, 4), (64, 2)])
def test_sequences_hold_every_row_once_within_the_limits(length, most):
    lengths, slots = LENGTHS[0], SLOTS[0]
    packs = packed(lengths, slots, np.random.default_rng(1).permutation(301), length=length, max_slots=most)
    assert sorted(packs.rows.tolist()) == list(range(301))
    assert [sum(lengths[packs[i]]) for i in range(len(packs))] == packs.sums(lengths).tolist()
    assert packs.sums(lengths).max() <= length and packs.sums(slots).max() <= most
    # as good as can be where positions are scarce; where windows are too, some sequences run out of these first
    fewest = max(-(-lengths.sum() // length), -(-slots.sum() // most))
    assert fewest <= len(packs) <= (1.05 if most == 99 else 1.25) * fewest
    assert packs.rows.tolist() != sorted(packs.rows.tolist()) and len(alone(301)) == 301


def test_many_rows_a_sequence():
    lengths = np.random.default_rng(0).integers(40, 140, 50_000)
    packs = packed(lengths, np.ones(50_000, int), np.arange(50_000), length=1024, max_slots=32)
    assert lengths.sum() / (len(packs) * 1024) > 0.99


def epoch(plan, number=0):
    return [plan(number * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)]


@pytest.mark.parametrize("mixing", ["mixed", "one_source_per_batch"])
def test_a_plan_of_sequences(mixing):
    spec = replace(SPEC, mixing=mixing)
    plan = Plan(LENGTHS, spec, SLOTS)
    unpacked = Plan(LENGTHS, replace(spec, pack=False))
    assert plan.steps_per_epoch < 0.45 * unpacked.steps_per_epoch and plan.num_rows == 434
    for number in (0, 3):
        batches = epoch(plan, number)
        found = Counter(entry[:2] for batch in batches for entry in batch.entries)
        assert set(found) == {(s, i) for s, n in enumerate(LENGTHS) for i in range(len(n))}
        assert all(n >= (2 if source else 1) for (source, _), n in found.items())
        for batch in batches:
            assert len(batch.sequences) == 4
            for rows in batch.sequences:
                assert sum(LENGTHS[s][r] for s, r, _ in rows) <= batch.bucket
                assert sum(SLOTS[s][r] for s, r, _ in rows) <= 4
                assert len({s for s, _, _ in rows}) == 1  # of one source
            assert mixing == "mixed" or len({s for s, _, _ in batch.entries}) == 1
    steps = [plan(i) for i in range(40)]
    assert len({seed for step in steps for _, _, seed in step.entries}) == sum(len(step.entries) for step in steps)
    other = pickle.loads(pickle.dumps(plan))
    assert (
        [other(i) for i in reversed(range(40))]
        == steps[::-1]
        == [Plan(LENGTHS, spec, SLOTS)(i) for i in range(40)][::-1]
    )
    assert steps != [Plan(LENGTHS, replace(spec, seed=4), SLOTS)(i) for i in range(40)]
    ordered = Plan(LENGTHS, replace(spec, shuffle=False, last="pad"), SLOTS)
    assert Counter(r for b in epoch(ordered) for s, r, _ in b.entries if not s) == Counter(range(301))


WORDS = ["What is heard?", "A dog barks.", "Rain falls on a tin roof.", "Nothing."]
TOKENIZER = train_tokenizer(WORDS, 270)
LAYOUT = Layout(bos="after_audio", loss_on="answer", max_text_tokens=150)
FRONTEND = KaldiFbank(num_mels=32, frames=64)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """14 rows of no clip, one and two; the clip of one is missing."""
    folder = tmp_path_factory.mktemp("rows")
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", np.random.default_rng(i).uniform(-0.5, 0.5, 6000 * (i + 1)), 16000)
    clips = ["", "0.wav", ["1.wav", "2.wav"], "missing.wav"]
    rows = [
        {"instruction": WORDS[i % 3], "audio_id": clips[3 if i == 5 else i % 3], "output": f"{WORDS[-1 - i % 4]} {i}"}
        for i in range(14)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def pipeline(rows_file, tokens=2, **spec):
    values = dict(sources=(Source(str(rows_file)),), batch_size=2, buckets=(256,), seed=1, max_bad_share=0.2) | spec
    options = dict(template=ALPACA_SHORT, layout=LAYOUT, tokenizer=TOKENIZER, audio=FRONTEND, audio_tokens=tokens)
    return make_pipeline(DataSpec(**values), **options)


def by_itself(rows_file):
    """The batch of each row alone."""
    data = pipeline(rows_file, shuffle=False, batch_size=1)
    return [data.load(i).batch for i in range(14)]


def test_a_packed_row_is_what_it_is_by_itself(rows_file):
    data, single = pipeline(rows_file, pack=True, max_slots=4), by_itself(rows_file)
    shapes = set()
    for loaded in data.iterate(0, data.plan.steps_per_epoch):
        batch = loaded.batch
        shapes.add(len(loaded.planned.entries))
        assert len(loaded.bad) == any(row == 5 for _, row, _ in loaded.planned.entries)
        for b, rows in enumerate(loaded.planned.sequences):
            at = slot = clip = 0
            for n, (_, row, _) in enumerate(rows, start=1):
                own = single[row]
                length, slots = int((own.kv_segment_ids[0] != 0).sum()), int((own.audio_clip[0] >= 0).sum())
                here, there = np.s_[b, at : at + length], np.s_[0, :length]
                for name in ("tokens", "positions", "targets", "loss_weight", "indicator_index", "penalty_mask"):
                    np.testing.assert_array_equal(getattr(batch, name)[here], getattr(own, name)[there], err_msg=name)
                heard = own.audio_index[there]
                np.testing.assert_array_equal(batch.audio_index[here], np.where(heard < 0, -1, heard + 2 * slot))
                assert (batch.q_segment_ids[here] == n).all() and (batch.kv_segment_ids[here] == n).all()
                np.testing.assert_array_equal(batch.audio[b, slot : slot + slots], own.audio[0, :slots])
                np.testing.assert_array_equal(
                    batch.audio_clip[b, slot : slot + slots], own.audio_clip[0, :slots] + clip
                )
                at, slot, clip = at + length, slot + slots, clip + slots
            assert not batch.kv_segment_ids[b, at:].any() and not batch.loss_weight[b, at:].any()
            assert not batch.audio[b, slot:].any()
    assert max(shapes) > 4  # more rows than sequences


def test_workers_and_resume_change_nothing(rows_file):
    one, several = (pipeline(rows_file, pack=True, max_slots=4, workers=n) for n in (0, 2))
    whole = list(one.iterate(0, 8))
    for expected, loaded in zip(whole[3:], several.iterate(3, 5), strict=True):
        assert expected.planned == loaded.planned and expected.bad == loaded.bad
        for f in fields(Batch):
            np.testing.assert_array_equal(getattr(expected.batch, f.name), getattr(loaded.batch, f.name))


DECODER = LlamaConfig(vocab_size=270, dim=32, depth=2, heads=4, kv_heads=2, mlp_dim=48, lora=Lora())


def test_loss_and_gradients_are_those_of_the_rows_apart(rows_file):
    """All rows, with and without clips, in a few sequences and each in its own; both of one shape, compiled once."""
    config = ltu(DECODER, CavMaeConfig(frames=64, mels=32, dim=16, heads=2, depth=2))
    like, rng = tree.abstract(lambda key: build(config, key)), np.random.default_rng(0)
    params = {path: rng.normal(0, 0.1, leaf.shape).astype(np.float32) for path, leaf in tree.flatten(like).items()}

    @jax.jit
    @jax.value_and_grad
    def loss(params, batch):
        weight = normalised_weights(batch.loss_weight, jnp.zeros(14, jnp.int32), 1)
        return next_token(tree.unflatten(like, params), batch, weight, None, jnp.float32)[0]

    batches = []
    for packs in (True, False):
        spec = {"pack": packs, "max_slots": 4, "last": "pad", "batch_size": 14}
        batch = pipeline(rows_file, config.audio_tokens, **spec).load(0).batch
        more = 4 - batch.audio.shape[1]
        clips = np.pad(batch.audio_clip, ((0, 0), (0, more)), constant_values=-1)
        batches.append(replace(batch, audio=np.pad(batch.audio, ((0, 0), (0, more), (0, 0), (0, 0))), audio_clip=clips))
    together, apart = batches
    used = [int((batch.kv_segment_ids != 0).any(-1).sum()) for batch in batches]
    assert used[0] <= 7 and used[1] == 14 and together.audio_index.max() >= 3 * config.audio_tokens
    assert together.loss_weight.sum() == apart.loss_weight.sum() > 100
    (value, grads), (expected, wanted) = (loss(params, batch) for batch in batches)
    # float32: keys stand elsewhere among those that are summed, and positions in the sums of gradients
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for path in wanted:
        scale = float(jnp.abs(wanted[path]).max())
        np.testing.assert_allclose(grads[path], wanted[path], rtol=0, atol=2e-5 * scale + 1e-9, err_msg=path)
    assert sum(float(jnp.abs(grads[path]).max()) > 0 for path in grads) > 0.9 * len(grads)


def test_what_cannot_be_packed(rows_file):
    with pytest.raises(ConfigError, match="pack is given without max_slots"):
        DataSpec((Source("a"),), 4, (64,), pack=True)
    with pytest.raises(ConfigError, match=r"a row hears 2 windows, data.max_slots is 1"):
        pipeline(rows_file, pack=True, max_slots=1)
    spec = replace(SPEC, sources=(Source("a"),))
    stage = Stage("s", spec, ("*",), steps=1)
    with pytest.raises(ConfigError, match=r"several rows into a sequence, and objective heard_words takes a sequence"):
        replace(stage, objective="heard_words")
    with pytest.raises(ConfigError, match=r"objective audio_text_contrast takes a sequence as one row"):
        replace(stage, objective="audio_text_contrast")
    with pytest.raises(ConfigError, match="loss_group 2 counts rows"):
        replace(stage, loss_group=2)
    with pytest.raises(ConfigError, match="needs the windows of each row"):
        replace(pipeline(rows_file, pack=True, max_slots=4), slots=None)
