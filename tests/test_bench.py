"""The benchmark's tool on work so small that its ratios mean nothing: that it measures, reports, keeps and compares."""

from __future__ import annotations

import importlib
import importlib.metadata
import json

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The tool, with a toy for the cross-entropy and records in a folder of the test."""
    found = importlib.import_module("bench")
    twice = lambda x: jnp.outer(x, x).sum()
    case = found.Case("toy", lambda x: (x * x).sum(), twice, lambda: (jnp.ones(64),))
    monkeypatch.setitem(found.BENCHES, "cross_entropy", lambda: iter([case]))
    monkeypatch.setattr(found, "RECORDS", tmp_path / "records")
    return found


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_it_measures_both_sides_and_finds_regressions(bench, tmp_path, capsys):
    path = tmp_path / "recorded.json"
    assert bench.main(["cross_entropy", "--rounds", "3", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    (row,) = found["cases"]
    assert len(row["seconds"]["ours"]) == len(row["seconds"]["theirs"]) == 3
    assert row["ratios"]["time"] == row["median"]["ours"] / row["median"]["theirs"]
    assert row["bytes"]["ours"] >= 64 * 4 and found["versions"]["jax"]
    printed = capsys.readouterr().out
    assert "| toy |" in printed and "Not measured: a Pallas or cuDNN kernel" in printed and not row["kernel"]
    edit(path, lambda content: content["cases"][0]["ratios"].update(time=row["ratios"]["time"] / 1e9))
    assert bench.main(["cross_entropy", "--rounds", "1", "--against", str(path)]) == 1
    assert "worse than recorded: toy: time ratio" in capsys.readouterr().err


def test_records_are_kept_by_device(bench, capsys):
    again = ["cross_entropy", "--rounds", "1"]
    assert bench.main([*again, "--check"]) == 2
    assert "measure cross_entropy with --record first" in capsys.readouterr().err
    assert bench.main([*again, "--record"]) == 0
    (path,) = bench.RECORDS.glob("*/cross_entropy.json")
    edit(path, lambda content: content["cases"][0]["ratios"].update(time=1e9))
    assert bench.main([*again, "--check"]) == 0
    edit(path, lambda content: content["cases"][0]["ratios"].update(memory=1e-9))
    assert bench.main([*again, "--check"]) == 1
    edit(path, lambda content: content["cases"][0].update(case="another"))
    capsys.readouterr()
    assert bench.main([*again, "--check"]) == 1
    assert "another: time ratio was 1000000000, and was not measured" in capsys.readouterr().err
    edit(path, lambda content: content.update(device="NVIDIA H100 80GB HBM3"))
    assert bench.main([*again, "--against", str(path)]) == 2
    said = capsys.readouterr().err
    assert "is a record of cross_entropy on NVIDIA H100 80GB HBM3, this is cross_entropy on " in said
    path.rename((bench.RECORDS / "h100").mkdir() or bench.RECORDS / "h100" / path.name)
    assert bench.main([*again, "--check"]) == 2
    assert "(there are some of h100)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_stop"], "no bench is called train_stop: did you mean 'train_step'? expected one of attention, "),
        (["fft"], "no bench is called fft, expected one of attention, "),
        (["cross_entropy", "--rounds", "0"], "--rounds 0: expected 1 or more"),
        (["cross_entropy", "--json", "nowhere/a.json"], "--json nowhere/a.json: there is no folder nowhere"),
        (["cross_entropy", "--against", "a.json"], "no record a.json: measure cross_entropy with --record first"),
        (["cross_entropy", "--against", "b.json"], "b.json is no record of a bench: KeyError('bench')"),
        (["front_end"], "front_end needs kaldi-native-fbank, which is not installed: pip install -e '.[test]'"),
        (["host"], "host needs torch, which is not installed"),
    ],
)
def test_what_cannot_be_measured(arguments, message, bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.json").write_text("{}")
    version = importlib.metadata.version

    def bare(name: str) -> str:
        if name in ("kaldi-native-fbank", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", bare)
    assert bench.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_systems_have_a_row_for_each_part_and_their_share_of_the_peak(bench, monkeypatch, capsys):
    found = importlib.import_module("bench_systems")
    whole = found.Side(lambda: None, lambda: 4_000_000, lambda: 10**6)
    parts = lambda stall: found.Side(lambda: {"stall": stall, "all": 0.5})
    systems = [
        found.System("whole", lambda: whole, lambda: whole, 64, "tokens"),
        found.System("saves", lambda: parts(0.1), lambda: parts(0.4), note="Of what."),
    ]
    monkeypatch.setitem(bench.SYSTEMS, "compile", lambda: iter(systems))
    assert bench.main(["compile", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "| saves: stall | 0.100 | 0.400 | 0.250 | – | – | – | – | – |" in printed
    assert "| saves: all | 0.500 | 0.500 | 1.00 |" in printed and printed.count("Of what.") == 1
    assert " | 4 | 4 | 1.00 |\n" in printed and "Not measured: MFU" in printed and "MFU, ours" not in printed
    (row,) = bench.measure_system(systems[0], 1)
    row["median"] = {"ours": 0.001, "theirs": 0.002}
    result = {"bench": "compile", **bench.machine("compile"), "peak": 2e9, "rounds": 1, "cases": [row]}
    assert "| 64000 tokens | 32000 tokens | 4 | 4 | 1.00 | 50% | 25% |" in bench.report(result)


NAMES = ["attention", "cross_entropy", "decode_attention", "int8_matmul", "log_mel", "window_attention"]


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_of_every_case_give_the_same_shapes(name):
    cases = list(importlib.import_module("bench").BENCHES[name]())
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        arrays = jax.eval_shape(case.arguments)
        assert jax.eval_shape(case.ours, *arrays) == jax.eval_shape(case.theirs, *arrays)
