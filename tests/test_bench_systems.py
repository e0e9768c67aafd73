"""Benches of whole systems at a toy's size: both sides do the same work, and the report says what was found."""

from __future__ import annotations

import importlib
import json

import pytest

from alm_jax.core import tree
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.registry import CONFIGS

pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [pytest.mark.torch, pytest.mark.slow]  # half a minute


@pytest.fixture
def systems(monkeypatch):
    found = importlib.import_module("bench_systems")
    toy = LlamaConfig(vocab_size=64, dim=32, depth=2, heads=2, kv_heads=2, mlp_dim=64)
    monkeypatch.setitem(CONFIGS, "toy", toy)
    shape = found.Shape("toy", CavMaeConfig(frames=256, mels=32, dim=16, heads=2, depth=1), 2, 8)
    monkeypatch.setattr(found, "_shapes", lambda rows, text: [shape])
    monkeypatch.setattr(found, "NEW", 3)
    return found


def test_steps_and_answers(systems, tmp_path, capsys):
    bench = importlib.import_module("bench")
    for name, unit in (("train_step", "tokens"), ("generation", "new tokens")):
        assert bench.main([name, "--rounds", "2", "--json", str(tmp_path / name)]) == 0
        (row,) = json.loads((tmp_path / name).read_text())["cases"]
        assert len(row["seconds"]["ours"]) == len(row["seconds"]["theirs"]) == 2 and row["unit"] == unit
        assert row["ratios"]["time"] == row["median"]["ours"] / row["median"]["theirs"]
        assert "| LTU over toy, 2 rows of" in capsys.readouterr().out


def test_both_sides_are_of_one_size(systems):
    (shape,) = systems._shapes(0, 0)
    _, params, frozen, _ = systems._our_model(shape, ("encoder.*", "aligner.*", "*.lora_?"))
    listener, decoder, _ = systems._their_model(shape)
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (listener, decoder)]
    ours = {part: tree.size({k: v for k, v in params.items() if k.startswith(part)}) for part in ("decoder", "encoder")}
    assert ours["decoder"] == trained[1]
    assert tree.size(frozen) == sum(p.numel() for p in decoder.parameters() if not p.requires_grad)
    # Of the listener all but position and class embeddings and norms is the same.
    assert ours["encoder"] == pytest.approx(trained[0], rel=0.2)
