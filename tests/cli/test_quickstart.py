"""`alm quickstart --tiny`: everything of the quickstart, from random weights."""

import json

import pytest

from alm_jax.cli.main import main


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    root = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALM_CACHE", str(root / "cache"))
        assert main(["quickstart", "--tiny", "--out", str(root / "run")]) == 0
        yield root / "run"


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


def test_the_loss_fell(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first = [row["loss"] for row in rows if row["stage"] == "read" and "loss" in row]
    assert sum(first[-5:]) < 0.7 * sum(first[:5])


def test_a_second_run_shows_the_same_without_training(out, capsys):
    before = (out / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["quickstart", "--tiny", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert (out / "metrics.jsonl").read_bytes() == before
    assert "held-out mixtures" in shown and "majority" in shown and "alm ask" in shown
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
