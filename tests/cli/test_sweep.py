"""`alm sweep`: which runs there are, what becomes of runs that fail or stop, and the numbers of the table.

All but one test put a small script in place of `alm train`: it leaves what a run leaves, or fails as a run fails.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from alm_jax.cli import sweep_runs
from alm_jax.cli.main import main
from alm_jax.cli.sweep_report import Summary, measure, plot, summarize
from alm_jax.cli.sweep_runs import Run, labels, plan_runs
from alm_jax.cli.train import read_experiment
from alm_jax.core.config import apply_overrides, load_config_file
from alm_jax.core.errors import ConfigError, UsageError
from alm_jax.models.encoders.whisper import WhisperConfig

# Called with the run's config and folder. `stages.only.steps` says how it ends; the losses follow from rate and seed.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path

config, out = Path(sys.argv[1]), Path(sys.argv[2])
flat = json.loads(config.read_text())["flat"]
with open(config.parent.parent / "calls.txt", "a") as file:
    file.write(f"{config.parent.name} {config.stem}\\n")
print("training")
steps, seed, rate = flat["stages.0.steps"], flat["seed"], flat["stages.0.optim.learning_rate"]
if steps == 11:
    print("alm: error: rows.json row 3: no field 'output'", file=sys.stderr)
    sys.exit(1)
if steps == 12:
    os.kill(os.getpid(), signal.SIGKILL)
if steps == 13:
    sys.exit(3)
if steps == 14:
    os.kill(os.getppid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(60)
stage = out / "stages" / "0_only"
stage.mkdir(parents=True)
losses = [3.0 + seed, 1.0 + seed + rate, 2.0 + seed + rate]
rows = [{"stage": "only", "step": n, "loss": 9.0} for n in range(3)]
rows += [{"stage": "only", "step": n, "validation_loss": loss} for n, loss in enumerate(losses)]
(out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
if steps != 15:
    (stage / "finished.json").write_text(json.dumps({"step": steps}))
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Replaces training; gives the runs that were started so far, as (variant's folder, seed)."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    command = lambda run: [sys.executable, str(script), str(run.config), str(run.folder)]
    monkeypatch.setattr(sweep_runs, "command", command)
    calls = tmp_path / "out" / "calls.txt"

    def started():
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [tuple(line.rsplit("-", 1)[0] for line in text.split()) for text in lines]

    return started


@pytest.fixture
def sweep(config, tmp_path):
    """Runs `alm sweep` over given items of the shared config; returns its exit code."""

    def run(items, *args):
        path = tmp_path / "variants.py"
        path.write_text(f"{config.read_text()}\n\ndef sweep():\n    return {items!r}\n")
        (tmp_path / "rows.json").write_text("[]")
        return main(["sweep", str(path), "--out", str(tmp_path / "out"), *args])

    return run


RATES = [{"stages.only.optim.learning_rate": 0.5}, {"stages.only.optim.learning_rate": 0.25}]
RATE = "stages.only.optim.learning_rate"


def records(tmp_path):
    return json.loads((tmp_path / "out" / "sweep.json").read_text())


def test_variants_times_seeds(trainer, sweep, tmp_path, capsys):
    assert sweep(RATES, "--seeds", "3") == 0
    rates = ["learning_rate=0.5", "learning_rate=0.25"]
    assert trainer() == [(rate, f"seed{n}") for n in range(3) for rate in rates]
    out = capsys.readouterr().out
    # Losses 1 + seed + rate over seeds 0, 1, 2: mean 2 + rate, standard deviation of a sample 1.
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert cells == [
        ["learning_rate=0.5", "3", "2.5000 ± 1.0000", "3.5000 ± 1.0000"],
        ["learning_rate=0.25", "3", "2.2500 ± 1.0000", "3.2500 ± 1.0000"],
    ]
    found = records(tmp_path)
    assert [run["status"] for run in found["runs"]] == ["done"] * 6
    assert found["runs"][1]["measures"] == {"best_validation_loss": 1.25, "final_validation_loss": 2.25}
    assert found["variants"][0]["measures"]["best_validation_loss"] == {"mean": 2.5, "std": 1.0}
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row[RATE], row["best_validation_loss"]) for row in rows[:3]] == [
        ("0", "0.5", "1.5"),
        ("0", "0.25", "1.25"),
        ("1", "0.5", "2.5"),
    ]
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_skipped(trainer, sweep, tmp_path, capsys):
    assert sweep(RATES[:1]) == 0
    assert sweep(RATES, "--seeds", "2") == 0
    assert trainer() == [
        ("learning_rate=0.5", "seed0"),
        ("learning_rate=0.25", "seed0"),
        ("learning_rate=0.5", "seed1"),
        ("learning_rate=0.25", "seed1"),
    ]
    assert "[1/4] learning_rate=0.5   seed 0  already done" in capsys.readouterr().out
    # Where and how often a run looks after itself is not what it computes; its batch size is.
    assert sweep(RATES, "--seeds", "2", "--set", "loop.log_every=7") == 0
    assert len(trainer()) == 4
    assert sweep(RATES, "--set", "stages.only.data.batch_size=2") == 0
    assert len(trainer()) == 6


def test_failures_are_recorded_and_the_rest_is_run(trainer, sweep, tmp_path, capsys):
    items = [{"stages.only.steps": n} for n in (11, 12, 13, 1)]
    assert sweep(items) == 1
    out = capsys.readouterr().out
    assert re.search(r"\[1/4\] steps=11  seed 0  failed after \d+ s: rows.json row 3: no field 'output'", out)
    runs = records(tmp_path)["runs"]
    assert [run["status"] for run in runs] == ["failed", "failed", "failed", "done"]
    assert [run["error"] for run in runs] == [
        "rows.json row 3: no field 'output'",
        "killed by SIGKILL",
        "exit code 3",
        None,
    ]
    assert [(v["done"], v["failed"]) for v in records(tmp_path)["variants"]] == [(0, 1), (0, 1), (0, 1), (1, 0)]
    assert (tmp_path / "out" / runs[0]["folder"]).with_suffix(".log").read_text().startswith("training\n")
    assert sweep(items) == 1
    assert [name for name, _ in trainer()[4:]] == ["steps=11", "steps=12", "steps=13"]


def test_all_fail(trainer, sweep, tmp_path, capsys):
    assert sweep([{"stages.only.steps": 11}]) == 1
    assert "0, 1 failed" in capsys.readouterr().out
    assert not (tmp_path / "out" / "sweep.png").exists()


def test_sigterm_stops_the_run_and_the_sweep(trainer, sweep, tmp_path, capsys):
    assert sweep([{"stages.only.steps": n} for n in (1, 14, 2)]) == 130
    assert [run["status"] for run in records(tmp_path)["runs"]] == ["done", "stopped", "waiting"]
    out, err = capsys.readouterr()
    assert "steps=1" in out and "stopped; the same command goes on from here" in err
    assert [name for name, _ in trainer()] == ["steps=1", "steps=14"]


def test_a_run_that_ends_before_its_last_step_is_not_done(trainer, sweep, tmp_path):
    assert sweep([{"stages.only.steps": 15}]) == 1
    assert records(tmp_path)["runs"][0]["status"] == "stopped"


@pytest.mark.parametrize(
    ("items", "args", "message"),
    [
        ([{"stages.only.stebs": 1}], [], "unknown field 'stebs' in stages.only (Stage): did you mean 'steps'?"),
        ([{}, {}], [], "the sweep gives one variant twice: base"),
        ([{"seed": 1}], [], "the config's sweep() sets seed; leave it out and give --seeds"),
        ([], [], "the config's sweep() gives no variants"),
        ([3], [], "sweep() gives dictionaries {path: value}, got 3"),
        (RATES, ["--seeds", "0"], "--seeds is 0; expected at least 1"),
        (RATES, ["--set", f"{RATE}=1"], f"--set {RATE}: the config's sweep() sets it for each variant"),
    ],
)
def test_mistakes_come_before_any_run(trainer, sweep, tmp_path, capsys, items, args, message):
    assert sweep(items, *args) == 2
    assert message in capsys.readouterr().err
    assert not trainer() and not (tmp_path / "out").exists()


def test_a_config_without_sweep_has_its_seeds(trainer, config, tmp_path):
    path = config.with_name("alone.py")
    path.write_text(config.read_text().partition("def sweep")[0])
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--seeds", "2"]) == 0
    assert trainer() == [("base", "seed0"), ("base", "seed1")]


def test_the_run_gets_the_variant_s_whole_config(config, tmp_path):
    base = load_config_file(config).get_config()
    (run,) = plan_runs(
        base, [{"model.decoder": apply_overrides(base, {"model.decoder.depth": 3}).model.decoder}], 1, tmp_path
    )
    run.folder.parent.mkdir()
    run.config.write_text(json.dumps(sweep_runs.run_config(run.experiment)))
    assert read_experiment(str(run.config)) == run.experiment
    assert run.experiment.model.decoder.depth == 3


def test_runs_go_to_a_launcher(sweep, tmp_path, capsys):
    """A stand-in for one, which is given what `alm train` takes, and says of its second run why it failed."""
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import json, pathlib, sys\n"
        "before, config, flag, out, resume = sys.argv[2:]\n"
        "assert (sys.argv[1], before, flag, resume) == ('--nodes=2', '--', '--out', '--resume'), sys.argv\n"
        "if json.load(open(config))['flat']['stages.0.steps'] == 2:\n"
        "    print('launch: process 1 failed with exit code 1 (log): no clip', 'launch: failed', sep='\\n')\n"
        "    sys.exit(1)\n"
        "folder = pathlib.Path(out, 'stages', '0_only')\n"
        "folder.mkdir(parents=True)\n"
        "(folder / 'finished.json').write_text('{\"step\": 1}')\n"
        "row = {'stage': 'only', 'step': 1, 'validation_loss': 1.5}\n"
        "pathlib.Path(out, 'metrics.jsonl').write_text(json.dumps(row) + '\\n')\n"
    )
    items = [{"stages.only.steps": n} for n in (1, 2)]
    assert sweep(items, "--launch", f"{sys.executable} {launcher} --nodes=2") == 1
    assert [run["status"] for run in records(tmp_path)["runs"]] == ["done", "failed"]
    assert records(tmp_path)["runs"][1]["error"] == "process 1 failed with exit code 1 (log): no clip"
    assert sweep(items, "--launch", "nosuch --nodes 2") == 2
    assert "--launch nosuch --nodes 2: nosuch is not installed here" in capsys.readouterr().err


def test_labels():
    items = [{"stages.0.steps": 1, "stages.1.steps": 2}, {"stages.0.optim.learning_rate": 1e-4}, {}]
    assert labels(items) == ["0.steps=1, 1.steps=2", "learning_rate=0.0001", "base"]
    assert labels([{"model.encoder": WhisperConfig()}, {"model.encoder": None}]) == [
        "encoder=WhisperConfig",
        "encoder=None",
    ]


def test_variants_that_read_alike_are_told_apart(config, tmp_path):
    base = load_config_file(config).get_config()
    decoders = [apply_overrides(base, {"model.decoder.depth": n}).model.decoder for n in (3, 4)]
    runs = plan_runs(base, [{"model.decoder": decoder} for decoder in decoders], 1, tmp_path)
    assert len({run.variant for run in runs}) == len({run.folder for run in runs}) == 2
    with pytest.raises(UsageError):
        plan_runs(base, [{}], 0, tmp_path)
    with pytest.raises(ConfigError, match="unknown field"):
        plan_runs(base, [{"nothing": 1}], 1, tmp_path)


def write_metrics(folder: Path, *rows):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_measures_are_of_the_last_stage_and_of_results(tmp_path):
    write_metrics(
        tmp_path,
        {"stage": "a", "step": 1, "validation_loss": 0.1},
        {"stage": "b", "step": 1, "validation_loss": 3.0},
        {"stage": "b", "step": 2, "loss": 9.0},
        {"stage": "b", "step": 2, "validation_loss": 2.0},
        {"stage": "b", "step": 3, "validation_loss": 2.5},
    )
    assert measure(tmp_path) == {"best_validation_loss": 2.0, "final_validation_loss": 2.5}
    (tmp_path / "results.json").write_text('{"scores": {"count": 0.5, "n": 7}, "name": "x", "ok": true}')
    assert measure(tmp_path) | {} == {
        "best_validation_loss": 2.0,
        "final_validation_loss": 2.5,
        "scores.count": 0.5,
        "scores.n": 7.0,
    }
    write_metrics(tmp_path / "b", {"stage": "a", "step": 1, "loss": 2.0}, {"stage": "a", "step": 2, "loss": 1.0})
    assert measure(tmp_path / "b") == {"final_loss": 1.0}


def some_runs(tmp_path, values):
    """Runs of variants `{value: losses of its seeds}` of one number, and their measures."""
    runs, measures = [], {}
    for value, losses in values.items():
        for seed, loss in enumerate(losses):
            run = Run(f"x={value}", {"a.x": value}, seed, tmp_path / f"{value}-{seed}", None, "done")
            runs.append(run)
            measures[run.folder] = {"loss": loss}
    return runs, measures


def test_summaries(tmp_path):
    runs, measures = some_runs(tmp_path, {1: [1.0, 3.0], 2: [5.0]})
    runs.append(Run("x=2", {"a.x": 2}, 9, tmp_path / "failed", None, "failed"))
    assert summarize(runs, measures) == [
        Summary("x=1", {"a.x": 1}, 2, 0, {"loss": (2.0, 2.0**0.5)}),
        Summary("x=2", {"a.x": 2}, 1, 1, {"loss": (5.0, None)}),
    ]


@pytest.mark.parametrize("values", [{3: [1.0, 2.0], 1: [2.0]}, {"b": [1.0], "a": [2.0, 3.0]}])
def test_plots_of_numbers_and_of_names(tmp_path, values):
    runs, measures = some_runs(tmp_path, values)
    plot(tmp_path / "sweep.png", runs, summarize(runs, measures), measures)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_real_run_in_its_own_process(config, tmp_path, capsys):
    path = config.with_name("one.py")
    path.write_text(config.read_text().partition("def sweep")[0])
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr()
    (run,) = records(tmp_path)["runs"]
    assert run["status"] == "done" and set(run["measures"]) == {"best_validation_loss", "final_validation_loss"}
    assert (tmp_path / "out" / run["folder"] / "config.json").is_file()
