"""The benchmark of loads, on a model whose ratios mean nothing: that it measures both sides and says what it found."""

from __future__ import annotations

import importlib
import json

import pytest

from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.registry import CONFIGS

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_it_measures_loads_and_conversions(repo, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    bench = importlib.import_module("bench_convert")
    config = LlamaConfig(vocab_size=64, dim=32, depth=2, heads=4, kv_heads=4, mlp_dim=48)
    monkeypatch.setitem(CONFIGS, "tiny", config)
    assert bench.main(["--work", str(tmp_path), "--shape", "tiny", "--rounds", "1", "--json", str(tmp_path / "r")]) < 2
    found = json.loads((tmp_path / "r").read_text())
    size = sum(path.stat().st_size for path in (tmp_path / "tiny").glob("*.safetensors"))
    assert found["load"][0]["arrays"] == found["torch"][0]["arrays"] and size * 0.7 < found["load"][0]["arrays"] < size
    assert found["load"][0]["devices"] == 8 and found["convert"]["bytes"] > found["load"][0]["arrays"]
    assert found["goals"].keys() == {
        "memory added by the load / arrays",
        "time of the load / PyTorch's, medians",
        "peak of alm convert, GB",
    }
    out = capsys.readouterr().out
    assert "| alm_jax, 8 host devices |" in out and all(goal in out for goal in found["goals"])
    assert not (tmp_path / "tiny-converted").exists()
    written = (tmp_path / "tiny" / "config.json").stat().st_mtime
    bench.generate(tmp_path / "tiny", "tiny")  # once
    assert (tmp_path / "tiny" / "config.json").stat().st_mtime == written
