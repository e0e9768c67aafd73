"""The loss plot of a run."""

import json

from alm_jax.train.plots import plot_losses


def test_a_plot_of_two_stages(tmp_path):
    rows = [{"stage": s, "step": k, "loss": 3.0 / k} for s in ("one", "two") for k in range(1, 6)]
    rows.append({"stage": "two", "step": 5, "validation_loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    image = plot_losses(tmp_path)
    assert image == tmp_path / "loss.png"
    assert image.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and image.stat().st_size > 5000


def test_a_run_without_steps_still_gives_a_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert plot_losses(tmp_path).stat().st_size > 1000
