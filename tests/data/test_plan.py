import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.core.sequence import Layout
from alm_jax.data import plan as plan_module
from alm_jax.data.plan import DataSpec, Plan, Source, measure
from alm_jax.data.rows import read_rows
from alm_jax.data.templates import ALPACA_SHORT
from alm_jax.data.tokenizer import train_tokenizer

LENGTHS = [np.random.default_rng(0).integers(5, 60, 101), np.random.default_rng(1).integers(20, 40, 33)]
SPEC = DataSpec(sources=(Source("a"), Source("b", repeat=2)), batch_size=8, buckets=(16, 32, 64, 128), seed=3)


def epoch(plan, number=0):
    return [plan(number * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)]


def counts(batches):
    return Counter(entry[:2] for batch in batches for entry in batch.entries)


@pytest.mark.parametrize("mixing", ["mixed", "one_source_per_batch"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_row(mixing, shuffle):
    plan = Plan(LENGTHS, replace(SPEC, mixing=mixing, shuffle=shuffle))
    expected = {(0, i): 1 for i in range(101)} | {(1, i): 2 for i in range(33)}
    total = sum(expected.values())
    assert plan.steps_per_epoch == (-(-total // 8) if mixing == "mixed" else 13 + 9)
    for number in (0, 1, 5):
        batches = epoch(plan, number)
        found = counts(batches)
        assert all(found[row] >= n for row, n in expected.items())  # no row is lost
        assert sum(found.values()) - total == 8 * len(batches) - total < 16  # fewer than a batch twice (a group)
        for batch in batches:
            lengths = [LENGTHS[s][r] for s, r, _ in batch.entries]
            assert max(lengths) <= batch.bucket and batch.epoch == number
            assert mixing == "mixed" or len({s for s, _, _ in batch.entries}) == 1
        # a row is in a larger bucket than its own only as a leftover (fewer than 8 a bucket) or to fill the last batch
        larger = sum(LENGTHS[s][r] <= batch.bucket / 2 for batch in batches for s, r, _ in batch.entries)
        assert larger < 8 * 3 * 2
        assert {batch.bucket for batch in batches} <= {16, 32, 64}  # the largest bucket holds no row: never compiled


def test_the_plan_is_a_pure_function_of_the_step():
    plan = Plan(LENGTHS, SPEC)
    steps = [plan(i) for i in range(60)]
    other = pickle.loads(pickle.dumps(plan))
    assert [other(i) for i in reversed(range(60))] == steps[::-1]
    assert steps != [Plan(LENGTHS, replace(SPEC, seed=4))(i) for i in range(60)]
    n = plan.steps_per_epoch
    assert [e[:2] for e in steps[0].entries] != [e[:2] for e in steps[n].entries]
    seeds = [seed for step in steps for _, _, seed in step.entries]
    assert len(set(seeds)) > len(seeds) - 3  # 32 bits: two of 480 agree with probability 3e-5


def test_the_order_stays_the_same_over_versions():
    plan = Plan([np.arange(1, 21)], DataSpec(sources=(Source("a"),), batch_size=4, buckets=(10, 20), seed=1))
    # a run that a later version of this code or of NumPy resumes must see the same rows
    recorded = [(20, [18, 12, 15, 13]), (20, [14, 16, 10, 17]), (20, [12, 18, 14, 19])]
    assert [(b.bucket, [r for _, r, _ in b.entries]) for b in map(plan, (0, 1, 7))] == recorded
    assert plan(0).entries[0][2] == 1835504127


def test_without_shuffling_rows_come_in_order():
    one = DataSpec(sources=(Source("a"),), batch_size=4, buckets=(64,), shuffle=False)
    plan = Plan([LENGTHS[0][:10]], one)
    assert [r for b in epoch(plan) for _, r, _ in b.entries] == [*range(10), 0, 1]
    padded = Plan([LENGTHS[0][:10]], replace(one, last="pad"))
    assert [[row for _, row, _ in rows] for rows in epoch(padded)[-1].sequences] == [[8], [9], [], []]
    two = epoch(Plan(LENGTHS, replace(SPEC, shuffle=False, mixing="one_source_per_batch")))
    assert [b.entries[0][0] for b in two] == [0] * 13 + [1] * 9


@pytest.mark.parametrize("shuffle", [True, False])
def test_sources_in_given_ratios(shuffle):
    """Sources of 13 and 9 batches at 1 to 3: of an epoch's 22, 5.5 and 16.5 become 6 and 16."""
    spec = replace(SPEC, mixing="one_source_per_batch", ratios=(1.0, 3.0), shuffle=shuffle)
    plan = Plan(LENGTHS, spec)
    epochs = [epoch(plan, number) for number in range(13)]
    for batches in epochs:
        assert all(len({s for s, _, _ in batch.entries}) == 1 for batch in batches)
        assert Counter(batch.entries[0][0] for batch in batches) == {0: 6, 1: 16}
    # A source goes on where it was: in 13 epochs the first has been through its rows six times (3 fill its last batch).
    heard = [n for (source, _), n in counts(b for batches in epochs for b in batches).items() if source == 0]
    assert len(heard) == 101 and min(heard) == 6 and sum(heard) == 6 * 13 * 8
    assert pickle.loads(pickle.dumps(plan))(100) == plan(100) == Plan(LENGTHS, spec)(100)


@pytest.mark.parametrize("shuffle", [True, False])
def test_mixed_batches_in_given_ratios(shuffle):
    """Of an epoch's 167 rows (101 and twice 33) every fourth is of the first source: 42 and 125."""
    spec = replace(SPEC, ratios=(1.0, 3.0), shuffle=shuffle)
    plan = Plan(LENGTHS, spec)
    assert plan.steps_per_epoch == Plan(LENGTHS, SPEC).steps_per_epoch == 21
    heard = Counter()
    for number in range(12):
        batches = epoch(plan, number)
        assert not shuffle or sum(len({s for s, _, _ in batch.entries}) == 2 for batch in batches) > 10
        # what fills the epoch's last batch (one of 168 here) is heard twice
        found = Counter(s for batch in batches for s, _, _ in batch.entries)
        assert found[0] in (42, 43) and found[1] in (125, 126) and found.total() == 168
        heard += counts(batches)
    # a source goes on where it was: 12 epochs ask for 504 of the first's rows, each 4 or 5 times, and a few fill up
    times = [heard[0, i] for i in range(101)]
    assert min(times) >= 4 and max(times) <= 7 and 504 <= sum(times) <= 516
    assert pickle.loads(pickle.dumps(plan))(100) == plan(100) == Plan(LENGTHS, spec)(100)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"temperature": 2.0}, np.sqrt([101, 66])),
        ({"temperature": 4.0, "ratios": (16.0, 1.0)}, [2, 1]),
        ({"temperature": 1e9}, [1, 1]),
        ({"temperature": 0.5}, [101**2, 66**2]),
        ({}, [101, 66]),
    ],
)
def test_temperature_evens_sources_out(given, expected):
    """Shares of numbers of rows (repeats counted), or of ratios, to the power of 1 / temperature."""
    share = expected[0] / sum(expected)
    rows = Counter(s for batch in epoch(Plan(LENGTHS, replace(SPEC, **given))) for s, _, _ in batch.entries)
    assert abs(rows[0] - 167 * share) <= 1.5  # rounded, and a row that fills the last batch
    apart = replace(SPEC, mixing="one_source_per_batch", **given)
    batches = Counter(batch.entries[0][0] for batch in epoch(Plan(LENGTHS, apart)))
    assert abs(batches[0] - 22 * share) <= 1 and batches.total() == 22


def test_fewer_rows_than_a_batch():
    plan = Plan([np.array([5, 50])], DataSpec(sources=(Source("a"),), batch_size=5, buckets=(16, 64)))
    assert plan.steps_per_epoch == 1
    assert plan(0).bucket == 64 and set(counts([plan(0)])) == {(0, 0), (0, 1)}


def test_millions_of_rows():
    lengths = np.random.default_rng(0).integers(40, 140, 1_000_000)
    spec = DataSpec(sources=(Source("a"),), batch_size=256, buckets=(64, 96, 128, 144))
    plan = Plan([lengths], spec)
    seen = np.zeros(len(lengths), np.int64)
    for batch in epoch(plan):
        np.add.at(seen, [r for _, r, _ in batch.entries], 1)
    assert seen.min() == 1 and seen.sum() == 256 * plan.steps_per_epoch


@pytest.mark.parametrize(
    "change, message",
    [
        ({"buckets": (64, 32)}, "ascending"),
        ({"buckets": ()}, "ascending"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sources": (Source("a", repeat=0),)}, "repeat"),
        ({"sources": ()}, "sources is empty"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": -1}, "seed -1"),
        ({"ratios": (1.0,)}, "expected a number above 0 for each of 2 sources"),
        ({"ratios": (1.0, 0.0), "mixing": "one_source_per_batch"}, "expected a number above 0"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"max_bad_share": 2.0}, "max_bad_share is 2.0, expected 0 to 1"),
    ],
)
def test_wrong_specs(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(SPEC, **change)


def test_rows_that_do_not_fit():
    with pytest.raises(ConfigError, match="up to 59 positions, buckets end at 32"):
        Plan(LENGTHS, replace(SPEC, buckets=(32,)))
    with pytest.raises(DataError, match=r"\[101, 0\]"):
        Plan([LENGTHS[0], LENGTHS[1][:0]], SPEC)


def test_lengths_are_measured_once(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(f'{{"instruction": "{"a" * n}", "audio_id": "x", "output": "b"}}' for n in range(1, 30)))
    rows = read_rows(path)
    tokenizer = train_tokenizer(["a b"], 259)
    args = dict(template=ALPACA_SHORT, layout=Layout(max_text_tokens=70), tokenizer=tokenizer, audio_tokens=7)
    fixed = 7 + 1 + len(tokenizer.encode(ALPACA_SHORT.prompt(""))) + 1 + 1
    monkeypatch.setattr(plan_module, "_CHUNK", 10)
    lengths, clips = measure(rows, **args, cache_dir=tmp_path / "cache")
    assert clips.tolist() == [1] * 29
    np.testing.assert_array_equal(lengths, [min(fixed + n, 77) for n in range(1, 30)])

    monkeypatch.setattr(plan_module, "row_lengths", lambda *a, **k: pytest.fail("measured again"))
    np.testing.assert_array_equal(measure(rows, **args, cache_dir=tmp_path / "cache"), [lengths, clips])
    for change in ({"audio_tokens": 8}, {"layout": Layout()}, {"tokenizer": train_tokenizer(["cc"], 260)}):
        with pytest.raises(BaseException, match="measured again"):
            measure(rows, **(args | change), cache_dir=tmp_path / "cache")
