"""Benches of whole systems at a toy's size: both sides do the same work, and the report says what was found."""

from __future__ import annotations

import importlib
import json

import jax
import pytest

from alm_jax.core import tree
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig

pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [pytest.mark.torch, pytest.mark.slow]  # a minute


@pytest.fixture
def systems(monkeypatch):
    found, parts = importlib.import_module("bench_systems"), importlib.import_module("bench_parts")
    toy = LlamaConfig(vocab_size=64, dim=32, depth=2, heads=2, kv_heads=2, mlp_dim=64)
    shape = found.Shape("toy", toy, CavMaeConfig(frames=256, mels=32, dim=16, heads=2, depth=1), 2, 8)
    for module in (found, parts):
        monkeypatch.setattr(module, "shapes", lambda rows, text: [shape])
    monkeypatch.setattr(found, "NEW", 3)
    monkeypatch.setattr(parts, "DEPTH", 2)
    return found


PARTS = {
    "train_step": [""],
    "generation": [""],
    "host": [": until it is dispatched", ": until its end"],
    "compile": [": trace and lower", ": compile"],
}


@pytest.mark.parametrize("name", PARTS)
def test_every_system_is_measured(name, systems, tmp_path, capsys):
    bench = importlib.import_module("bench")
    assert bench.main([name, "--rounds", "2", "--json", str(tmp_path / "found")]) == 0
    rows = json.loads((tmp_path / "found").read_text())["cases"]
    printed, over = capsys.readouterr().out, "2 narrow layers" if name == "host" else "toy"
    for row, part in zip(rows, PARTS[name], strict=True):
        assert row["case"].startswith(f"LTU over {over}, 2 rows of ") and row["case"].endswith(f" tokens{part}")
        assert len(row["seconds"]["ours"]) == len(row["seconds"]["theirs"]) == 2
        assert row["ratios"]["time"] == row["median"]["ours"] / row["median"]["theirs"]
        assert f"| {row['case']} |" in printed
    if name == "train_step":
        assert rows[0]["bytes"]["ours"] > 0 and rows[0]["unit"] == "tokens"
        # Of each of the decoder's layers at least two products, forward and backward, with the two kernels of its MLP
        # that are 32 x 64 and its gate, at every token.
        assert rows[0]["flops"] > 2 * 2 * rows[0]["work"] * 2 * 3 * 32 * 64
        if rows[0]["bytes"]["theirs"] is None:
            assert "Not measured: PyTorch's memory" in printed


def test_both_sides_are_of_one_size(systems):
    (shape,) = systems.shapes(0, 0)
    _, make = systems._our_model(shape, systems.TRAINED)
    params, frozen = jax.eval_shape(make)
    listener, decoder, _ = systems._their_model(shape)
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (listener, decoder)]
    ours = {part: tree.size({k: v for k, v in params.items() if k.startswith(part)}) for part in ("decoder", "encoder")}
    assert ours["decoder"] == trained[1]
    assert tree.size(frozen) == sum(p.numel() for p in decoder.parameters() if not p.requires_grad)
    # Of the listener all but position and class embeddings and norms is the same.
    assert ours["encoder"] == pytest.approx(trained[0], rel=0.2)
