"""metrics.jsonl, TensorBoard files and what is shown."""

import json

import pytest

from alm_jax.train.metrics import MetricsFile, Progress, TensorBoard, read_metrics

STAGES = ["align", "all"]


def row(stage, step, **values):
    return {"stage": stage, "step": step, "loss": 0.1 + step, "tokens_per_s": 5.0} | values


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [row("align", step, loss=1 / (3 + step)) for step in range(1, 4)]
    file = MetricsFile(path, STAGES, None)
    for each in rows:
        file.log(each)
    file.sync()
    file.close()
    assert read_metrics(path) == rows  # floats bit for bit


@pytest.mark.parametrize(
    ("resume", "kept"),
    [
        (None, []),
        (("align", 0), []),
        (("align", 2), [("align", 1), ("align", 2), ("align", 2)]),
        (("all", 0), [("align", 1), ("align", 2), ("align", 2), ("align", 3)]),
        (("all", 1), [("align", 1), ("align", 2), ("align", 2), ("align", 3), ("all", 1)]),
    ],
)
def test_a_resume_drops_what_came_after_its_checkpoint(tmp_path, resume, kept):
    path = tmp_path / "metrics.jsonl"
    before = [row("align", 1), row("align", 2), {"stage": "align", "step": 2, "validation_loss": 3.0}]
    before += [row("align", 3), row("all", 1), row("all", 2)]
    half = '{"stage": "all", "st'  # killed while writing
    path.write_text("".join(json.dumps(each) + "\n" for each in before) + half)
    file = MetricsFile(path, STAGES, resume)
    file.log(row("all", 9))
    file.close()
    assert [(r["stage"], r["step"]) for r in read_metrics(path)] == [*kept, ("all", 9)]


def test_tensorboard_has_a_folder_a_stage(tmp_path):
    tracker = TensorBoard(tmp_path)
    tracker.log(row("align", 1))
    tracker.log({"stage": "all", "step": 1, "validation_loss": 2.0})
    tracker.close()
    for stage, tag in (("align", b"loss"), ("all", b"validation_loss")):
        (events,) = (tmp_path / stage).iterdir()
        assert tag in events.read_bytes()


def test_without_a_terminal_progress_is_lines_on_stderr(tmp_path, capsys):
    progress = Progress(tmp_path / "log.txt", every=0.0)
    progress.start("align", 2)
    progress.log(row("align", 1))
    progress.log({"stage": "align", "step": 1, "validation_loss": 2.0})
    progress.say("rows.json[3]: broken")
    progress.log(row("align", 2))
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""  # stdout is for results
    assert err.splitlines() == [
        "align 1/2 loss 1.1000 5 tokens/s",
        "rows.json[3]: broken",
        "align 2/2 loss 2.1000 validation 2.0000 5 tokens/s",
    ]
    assert (tmp_path / "log.txt").read_text().endswith("rows.json[3]: broken\n")


def test_lines_are_few(tmp_path, capsys):
    progress = Progress(None, every=1000.0)
    progress.start("align", 50)
    for step in range(1, 51):
        progress.log(row("align", step))
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/50", "50/50"]


def test_a_quiet_run_still_keeps_its_log(tmp_path, capsys):
    progress = Progress(tmp_path / "log.txt", show=False)
    progress.say("stage align")
    progress.close()
    assert capsys.readouterr().err == ""
    assert "stage align" in (tmp_path / "log.txt").read_text()
