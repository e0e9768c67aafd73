"""Typed flags from dataclasses, and tyro's boxes of errors as one line."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
import tyro

from alm_jax.cli.parse import parse, parse_config, parse_known, parse_settings
from alm_jax.core.errors import ConfigError, UsageError


@dataclass
class Options:
    """Do it.

    examples:
      alm do a
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """whom"""
    num: int = 1
    """how many"""


@dataclass(frozen=True)
class Small:
    dim: int = 8


@dataclass(frozen=True)
class Large:
    dim: int = 64
    heads: int = 4

    def __post_init__(self):
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of heads {self.heads}")


@dataclass(frozen=True)
class Step:
    steps: int = 10
    learning_rate: float = 1e-3
    model: dict[str, Any] = field(default_factory=dict)
    kind: Literal["live", "cached"] = "live"


@dataclass(frozen=True)
class Run:
    encoder: Small | Large | None = field(default_factory=Large)
    head: Small | None = None
    stages: tuple[Step, ...] = (Step(), Step(model={"a.b": (1, 2)}))


def test_options():
    assert parse(Options, ["a", "--num", "3"], "do") == Options("a", 3)
    assert parse_known(Options, ["a", "--x.y", "3"], "do") == (Options("a"), ["--x.y", "3"])


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Options, ["--help"], "do")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: alm do")
    for text in ("Do it.\n", "examples:\n  alm do a\n", "whom", "how many"):
        assert text in out


def test_every_value_of_a_config_is_a_flag():
    flags = ["--encoder.heads", "8", "--stages.0.learning_rate", "1e-4", "--stages.1.kind", "cached"]
    want = Run(encoder=Large(heads=8), stages=(Step(learning_rate=1e-4), Step(model={"a.b": (1, 2)}, kind="cached")))
    assert parse_config(Run(), flags, "do") == want
    assert parse_config(Run(), [], "do") == Run()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "missing from alm do: NAME whom (required)"),
        (["a", "--num", "x"], "error parsing --num: invalid literal for int() with base 10: 'x' (expected --num INT)"),
        (["a", "--num"], "missing value for argument '--num'. Expected 1 values"),
        (["a", "--nun", "3"], "unrecognized options: --nun, 3: did you mean --num?"),
        (["a", "b"], "unrecognized options: b"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_errors_are_one_line(args, message, columns, encoding, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(UsageError) as caught:
        parse(Options, args, "do")
    assert str(caught.value) == f"{message}; see alm do --help"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--stages.0.kind", "dead"],
            r"invalid choice 'dead' for argument '--stages.0.kind'. Expected one of \('live'",
        ),
        (["--stages.0.step", "3"], "unrecognized options: --stages.0.step, 3: did you mean --stages.0.steps?"),
        (["--stages.2.steps", "3"], "unrecognized options: --stages.2.steps, 3"),
        (["--head.dim", "3"], "unrecognized options: --head.dim, 3"),
        (["--encoder.heads", "3"], "dim 64 is not a multiple of heads 3"),
    ],
)
def test_wrong_flags_of_a_config(args, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_config(Run(), args, "do")
    assert "\n" not in str(caught.value)


def test_settings():
    assert parse_settings(("a.b=1", "c=x=y", "a.b=2", "d=")) == {"a.b": "2", "c": "x=y", "d": ""}
    for wrong in ("a.b", "=3"):
        with pytest.raises(UsageError, match=rf"--set takes path=value, .* got '{wrong}'"):
            parse_settings(("a=1", wrong))
