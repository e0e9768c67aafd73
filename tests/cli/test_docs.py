"""The command lines in docs, README and help texts name commands, configs and options that exist."""

from __future__ import annotations

import re
import shlex
from functools import cache

import pytest

from alm_jax.cli.main import COMMANDS, main
from alm_jax.core.config import apply_overrides, load_config_file
from alm_jax.core.errors import ConfigError
from alm_jax.core.mesh import make_mesh
from alm_jax.core.precision import FLOAT32
from alm_jax.train.curriculum import RunResult
from alm_jax.train.weights import StageModel


def command_lines(text: str) -> list[list[str]]:
    """Arguments of the lines `alm ...` in a text's code, without what stands after two blanks (remarks)."""
    lines = re.findall(r"^(?:\$ |  +|.* && )?(alm [a-z]+ .*|alm [a-z]+)$", text, re.MULTILINE)
    return [shlex.split(re.split(r"\s{2,}|\s#", line)[0])[1:] for line in lines]


def documents(repo):
    paths = [repo / "README.md", *sorted((repo / "docs").glob("*.md"))]
    return {
        path.name: "\n".join(re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE))
        for path in paths
    }


@pytest.fixture
def help_of(capsys):
    def show(args: tuple[str, ...]) -> str:
        assert main([*args, "--help"]) == 0, args
        return capsys.readouterr().out

    return cache(show)


def check(args: list[str], help_of) -> None:
    command, rest = args[0], args[1:]
    if command.isupper() or command.startswith("-"):  # `alm COMMAND --help`
        return
    assert command in COMMANDS, args
    known = help_of((command,))
    flags = [arg.partition("=")[0] for arg in rest if arg.startswith("--")]
    if command == "train" and any("." in flag or flag == "--seed" for flag in flags):
        try:
            load_config_file(rest[0])
            known += help_of((command, rest[0]))
        except ConfigError:  # a reader's own config, or a run
            known += help_of((command, "ltu/tiny"))
    for flag in flags:
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", known), f"{' '.join(args)}: no option {flag}"


def test_documents(repo, help_of):
    lines = {name: command_lines(text) for name, text in documents(repo).items()}
    assert {args[0] for args in lines["commands.md"]} == set(COMMANDS)
    for found in lines.values():
        for args in found:
            check(args, help_of)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_examples_in_help(command, help_of):
    examples = command_lines(help_of((command,)).partition("examples:")[2])
    assert examples
    for args in examples:
        assert args[0] == command
        check(args, help_of)


def test_the_config_file_of_the_documents(repo, tmp_path, monkeypatch, help_of):
    text = (repo / "docs" / "commands.md").read_text()
    path = tmp_path / "my_config.py"
    path.write_text(re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1])
    file = load_config_file(path)
    config = file.get_config()
    assert config.stages[0].steps == 100
    assert [apply_overrides(config, item).stages[0].optim.learning_rate for item in file.sweep()] == [1e-3, 3e-3, 1e-2]

    # What is told of it and of `ltu/tiny` gets as far as training, but for the mistake that is shown.
    begun = []

    def train(experiment, out, resume, profile):
        mesh, model = make_mesh(experiment.mesh), experiment.stage_model
        begun.append([StageModel(model(stage), stage, mesh, FLOAT32).target for stage in experiment.stages])
        return RunResult(out, (), stopped=True)

    monkeypatch.setattr("alm_jax.train.curriculum.train", train)
    monkeypatch.chdir(tmp_path)
    lines = command_lines("\n".join([*documents(repo).values(), help_of(("train",))]))
    lines = [args for args in lines if args[:2] in (["train", "my_config.py"], ["train", "ltu/tiny"])]
    lines = [args for args in lines if "--help" not in args]
    for args in lines:
        assert main(args) == (2 if "stages.read.stebs=5" in args else 0), args
    assert len(begun) == len(lines) - 1 >= 8


def test_the_reader_of_command_lines():
    text = '$ alm ask runs/a --audio b.wav "What?"\nalm quickstart\n  alm train x --out y   # remark\n# alm nothing\n'
    assert command_lines(text) == [
        ["ask", "runs/a", "--audio", "b.wav", "What?"],
        ["quickstart"],
        ["train", "x", "--out", "y"],
    ]
