"""`alm quickstart --tiny`: everything of the quickstart, from random weights, in fewer steps and about fewer scenes."""

import json

import pytest

from alm_jax.cli import quickstart
from alm_jax.cli.main import main

SHIPPED = {"TINY_CONFIG": quickstart.TINY_CONFIG, "_TINY": quickstart._TINY}
FEWER = """
from alm_jax.core.config import apply_overrides, load_config_file

SIZES = {"n": 24, "scene.seconds": 2.0, "scene.event_seconds": 1.0}


def get_config():
    fewer = {"model.encoder.frames": 192, "model.frontend.frames": 192, "model.aligner.grid": (8, 12)}
    for stage, steps in {"read": 24, "all": 4}.items():
        fewer |= {f"stages.{stage}.steps": steps, f"stages.{stage}.validation.every": steps}
        fewer |= {f"stages.{stage}.data.sources.0.{name}": value for name, value in SIZES.items()}
        fewer[f"stages.{stage}.optim.warmup_steps"] = 2
    return apply_overrides(load_config_file("ltu/tiny").get_config(), fewer)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The quickstart's tiny size made smaller; the folder that it may write to."""
    root = tmp_path_factory.mktemp("quickstart")
    (root / "fewer.py").write_text(FEWER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALM_CACHE", str(root / "cache"))
        patch.setattr(quickstart, "TINY_CONFIG", str(root / "fewer.py"))
        patch.setattr(quickstart, "_TINY", quickstart.Size(per_kind=2, scenes=8, kinds=quickstart._TINY.kinds))
        yield root


@pytest.fixture(scope="module")
def out(small):
    assert main(["quickstart", "--tiny", "--out", str(small / "run")]) == 0
    return small / "run"


def test_what_it_leaves(out):
    results = json.loads((out / "results.json").read_text())
    assert set(results["tables"]) == {"held-out mixtures", "unseen clips"}
    for rows in results["tables"].values():
        assert [row["kind"] for row in rows] == ["events", "count", "presence"]
        for row in rows:
            assert set(row["scores"]) == {"trained", "untrained", "majority"}
            assert all(0 <= value <= 1 for value in row["scores"].values())
    assert len(results["answers"]) == 5
    assert (out / "sample.flac").stat().st_size > 10_000


def losses(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["stage"] == "read" and "loss" in row]


def fell(read):
    return sum(read[-5:]) < 0.7 * sum(read[:5])


def test_the_loss_fell(out):
    assert fell(losses(out))


@pytest.mark.slow
def test_as_shipped(tmp_path, monkeypatch):
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    for name, value in SHIPPED.items():  # which the other tests of this file make smaller
        monkeypatch.setattr(quickstart, name, value)
    assert main(["quickstart", "--tiny", "--out", str(tmp_path / "run")]) == 0
    read = losses(tmp_path / "run")
    assert len(read) == 60 and fell(read)


def test_a_second_run_shows_the_same_without_training(out, capsys):
    before = (out / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["quickstart", "--tiny", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert (out / "metrics.jsonl").read_bytes() == before
    assert "held-out mixtures" in shown and "majority" in shown and "alm ask" in shown
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
