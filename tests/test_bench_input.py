"""The benchmark of the input pipeline, on so few clips that its ratio means nothing: that both sides do the same work,
and that it says what it found."""

from __future__ import annotations

import importlib
import json
import os

import pytest

pytestmark = pytest.mark.torch


def test_it_measures_both_sides(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("kaldi_native_fbank", reason="what the pipeline is compared with")
    bench = importlib.import_module("bench_input")
    pinned = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: pinned.append(cpus), raising=False)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setattr(bench, "SECONDS", 1.0)
    arguments = ["--work", str(tmp_path), "--clips", "5", "--rounds", "2", "--json", str(tmp_path / "r")]
    assert bench.main(arguments) in (0, 1) and len(pinned) <= 1
    found = json.loads((tmp_path / "r").read_text())
    assert found["difference"] < 0.02 and found["ratio"] > 0
    assert all(len(runs) == 2 for runs in found["seconds"].values())
    parts = {"decode", "resample", "filterbank", "tokenize", "batch"}
    assert all(set(found["ms_a_clip"][name]) == parts for name in ("alm_jax", "PyTorch"))
    out = capsys.readouterr().out
    assert "| clips/s a core, median |" in out and all(f"| {part}, ms a clip |" in out for part in parts)
    written = (tmp_path / "rows-5.json").stat().st_mtime_ns
    bench.generate(tmp_path, 5)  # once
    assert (tmp_path / "rows-5.json").stat().st_mtime_ns == written
    monkeypatch.setattr(bench.PyTorch, "fbank", lambda self, wave: self.torch.zeros(1024, bench.MELS))
    with pytest.raises(SystemExit, match="features differ"):
        bench.main(arguments)
