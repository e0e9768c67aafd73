"""The benchmark's tool on arrays so small that its ratios mean nothing: that it measures, reports and compares."""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import pytest


def test_it_measures_both_sides_and_finds_regressions(tmp_path, monkeypatch, capsys):
    bench = importlib.import_module("bench")
    twice = lambda x: jnp.outer(x, x).sum()
    case = bench.Case("toy", lambda x: (x * x).sum(), twice, lambda: (jnp.ones(64),))
    monkeypatch.setitem(bench.BENCHES, "cross_entropy", lambda: iter([case]))
    path = tmp_path / "recorded.json"
    assert bench.main(["cross_entropy", "--rounds", "3", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    (row,) = found["cases"]
    assert len(row["seconds"]["ours"]) == len(row["seconds"]["theirs"]) == 3
    assert row["ratios"]["time"] == row["median"]["ours"] / row["median"]["theirs"]
    assert row["bytes"]["ours"] >= 64 * 4 and found["versions"]["jax"]
    printed = capsys.readouterr().out
    assert "| toy |" in printed and "Not measured: a Pallas or cuDNN kernel" in printed and not row["kernel"]
    row["ratios"]["time"] /= 1e9
    path.write_text(json.dumps(found))
    assert bench.main(["cross_entropy", "--rounds", "1", "--against", str(path)]) == 1
    assert "slower or larger than recorded: toy: time ratio" in capsys.readouterr().err


NAMES = ["attention", "cross_entropy", "decode_attention", "int8_matmul", "log_mel", "window_attention"]


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_of_every_case_give_the_same_shapes(name):
    cases = list(importlib.import_module("bench").BENCHES[name]())
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        arrays = jax.eval_shape(case.arguments)
        assert jax.eval_shape(case.ours, *arrays) == jax.eval_shape(case.theirs, *arrays)
