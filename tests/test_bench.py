"""The benchmark's tool on arrays so small that its ratios mean nothing: that it measures, reports and compares."""

from __future__ import annotations

import importlib
import json

import jax.numpy as jnp


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
    assert "| toy |" in capsys.readouterr().out
    row["ratios"]["time"] /= 1e9
    path.write_text(json.dumps(found))
    assert bench.main(["cross_entropy", "--rounds", "1", "--against", str(path)]) == 1
    assert "slower or larger than recorded: toy: time ratio" in capsys.readouterr().err


def test_the_cases_of_cross_entropy():
    bench = importlib.import_module("bench")
    names = [case.name for case in bench.cross_entropy()]
    assert names[0] == "smollm2_135m, 1024 tokens, head trains" and len(set(names)) == len(names)
