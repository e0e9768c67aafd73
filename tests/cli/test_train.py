"""`alm train`: where the experiment comes from, how it is changed, and what is refused before anything runs."""

from __future__ import annotations

import json

import pytest

from alm_jax.cli.main import main
from alm_jax.cli.train import read_experiment
from alm_jax.core.config import apply_overrides, load_config_file, shipped_configs
from alm_jax.train.config import run_config
from alm_jax.train.metrics import read_metrics


@pytest.fixture
def calls(monkeypatch):
    """What would be trained, in place of training it."""
    found = []

    class Result:
        stopped = False

    def train(experiment, out, resume, profile):
        found.append((experiment, out, resume))
        return Result

    monkeypatch.setattr("alm_jax.train.curriculum.train", train)
    return found


def test_a_run(trained, config, capsys):
    losses = [row["step"] for row in read_metrics(trained / "metrics.jsonl") if "loss" in row]
    assert losses == [1, 2, 3]
    assert read_experiment(str(trained)).stages[0].steps == 3
    assert read_experiment(str(trained / "config.json")) == read_experiment(str(trained))

    before = (trained / "metrics.jsonl").read_bytes()
    assert main(["train", str(trained), "--out", str(trained), "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out == f'{trained} is trained; ask it: alm ask {trained} --audio FILE "QUESTION"\n'
    assert "stage only: finished before" in err
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_in_use(trained, config, capsys):
    assert main(["train", str(config), "--out", str(trained)]) == 2
    assert "is not empty: go on with --resume, or give another --out" in capsys.readouterr().err
    assert main(["train", str(config), "--out", str(trained), "--resume"]) == 2
    assert "stages.0.steps was 3, is 2" in capsys.readouterr().err


def test_a_run_that_failed_on_its_data_begins_anew(config, tmp_path, capsys):
    """With a config that was corrected, in the same folder; before its first checkpoint there is nothing to lose."""
    command = ["train", str(config), "--out", str(tmp_path / "run")]
    assert main([*command, "--set", "stages.only.data.sources.0.rows=nowhere.json", "--seed", "3"]) == 1
    assert "nowhere.json" in capsys.readouterr().err
    assert main(command) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    err = capsys.readouterr().err
    assert f"{tmp_path / 'run'} has no finished checkpoint: the run begins anew, with this config" in err
    assert read_experiment(str(tmp_path / "run")).seed == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row] == [1, 2]


def test_values_are_changed_by_flags_and_by_set(calls, config, tmp_path):
    flags = ["--seed", "7", "--model.decoder.lora.rank", "2", "--stages.0.optim.learning-rate", "3e-4"]
    given = ["--set", "stages.only.steps=5", "--set", "model.decoder.rope_theta=5e5", "--resume"]
    assert main(["train", str(config), "--out", str(tmp_path / "run"), *given, *flags]) == 0
    ((experiment, out, resume),) = calls
    assert (out, resume) == (tmp_path / "run", True)
    assert (experiment.seed, experiment.stages[0].steps, experiment.stages[0].optim.learning_rate) == (7, 5, 3e-4)
    assert (experiment.model.decoder.lora.rank, experiment.model.decoder.rope_theta) == (2, 5e5)


def test_parts_are_given_by_name(calls, config, tmp_path):
    given = ["--set", "model.decoder=smollm2_135m", "--set", "model.aligner.out_dim=576"]
    assert main(["train", str(config), "--out", str(tmp_path), *given]) == 0
    assert calls[0][0].model.decoder.depth == 30


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "stages.only.stebs=5"], "unknown field 'stebs' in stages.only (Stage): did you mean 'steps'?"),
        (["--set", "stages.9.steps=5"], "unknown field '9' in stages (tuple). It holds 0, only"),
        (["--set", "stages.0.steps=x"], "stages.0.steps: expected int or None, got 'x'"),
        (["--set", "model.decoder=smollm_135m"], "no config is named 'smollm_135m': did you mean 'smollm2_135m'?"),
        (
            ["--set", "model.decoder=cav_mae"],
            "expected LlamaConfig or Gpt2Config or None, got 'cav_mae', which names a CavMaeConfig",
        ),
        (["--set", "model.decoder.dim=32"], "model: aligner.out_dim 16 differs from decoder.dim 32"),
        (["--set", "seed"], "--set takes path=value, e.g. --set stages.0.steps=10, got 'seed'"),
        (["--stages.0.stebs", "5"], "unrecognized options: --stages.0.stebs, 5: did you mean --stages.0.steps?"),
        (["--model.decoder.dim", "32"], "aligner.out_dim 16 differs from decoder.dim 32"),
        (["--stages.0.features", "dead"], "invalid choice 'dead' for argument '--stages.0.features'"),
        (["--seed", "one"], "error parsing --seed: invalid literal for int() with base 10: 'one'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(calls, config, tmp_path, capsys, args, message):
    assert main(["train", str(config), "--out", str(tmp_path / "run"), *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("alm: error: ") and err.count("\n") == 1
    assert message in err
    assert not calls and not (tmp_path / "run").exists()


def test_mistakes_in_what_is_trained(calls, tmp_path, capsys):
    assert main(["train", "ltu/tyny", "--out", str(tmp_path)]) == 2
    assert "no config file 'ltu/tyny': did you mean 'ltu/tiny'?" in capsys.readouterr().err
    (tmp_path / "half.json").write_text('{"experiment": {"@type": "Experim')
    assert main(["train", str(tmp_path / "half.json"), "--out", str(tmp_path)]) == 1
    assert "half.json: cannot be read as the config of a run" in capsys.readouterr().err
    (tmp_path / "other.json").write_text(json.dumps({"experiment": {"@type": "Other"}}))
    assert main(["train", str(tmp_path / "other.json"), "--out", str(tmp_path)]) == 1
    assert "saved config holds an unknown class 'Other'" in capsys.readouterr().err
    (tmp_path / "bad.py").write_text("def get_config():\n    return 1 / 0\n")
    assert main(["train", str(tmp_path / "bad.py"), "--out", str(tmp_path)]) == 2
    assert "bad.py:2: ZeroDivisionError: division by zero" in capsys.readouterr().err
    other = "from alm_jax.train.optim import OptimConfig\ndef get_config():\n    return OptimConfig()\n"
    (tmp_path / "other.py").write_text(other)
    assert main(["train", str(tmp_path / "other.py"), "--out", str(tmp_path)]) == 2
    assert "get_config() returns a OptimConfig, expected an Experiment" in capsys.readouterr().err


def test_help_of_a_config_lists_its_values_as_flags(config, capsys):
    assert main(["train", str(config), "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--stages.0.steps {None}|INT", "--model.decoder.lora.rank INT", "--tokenizer.vocab-size INT"):
        assert flag in out


ROOT = shipped_configs()
SHIPPED = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_take_typed_flags_and_are_kept_as_json(calls, name, tmp_path):
    assert main(["train", name, "--out", str(tmp_path), "--stages.0.steps", "5", "--stages.0.epochs", "None"]) == 0
    ((experiment, _, _),) = calls
    plain = load_config_file(name).get_config()
    assert experiment == apply_overrides(plain, {"stages.0.steps": 5, "stages.0.epochs": None})
    (tmp_path / "config.json").write_text(json.dumps(run_config(experiment)))
    assert read_experiment(str(tmp_path)) == experiment
