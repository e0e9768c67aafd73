"""Command lines from annotated dataclasses (tyro); errors are one line, and help teaches by example."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import tyro

from alm_jax.core.config import apply_overrides
from alm_jax.core.errors import UsageError

Options = TypeVar("Options")

# Dotted overrides reach into a union of configs only if tyro takes the default's class and makes no subcommands of it.
_CONFIG = (tyro.conf.AvoidSubcommands,)
_EXAMPLES = {
    "--set": "path=value, e.g. --set stages.0.steps=10",
    "--option": "name=number, e.g. --option ways=5",
    "--santa": "name=value, e.g. --santa share=0.5",
}
_FRAME = re.compile("[╭╮╰╯│]|\x1b\\[[0-9;]*m")  # borders (where the terminal has them) and colours


def parse(kind: type[Options], args: list[str], command: str, program: str = "alm") -> Options:
    """The options of `PROGRAM COMMAND` as an instance of the dataclass `kind`, whose docstring is the help text.

    Raises:
        UsageError: what is wrong with `args`, in one line.
        SystemExit: 0, after printing the help that `args` ask for.
    """
    name = f"{program} {command}"
    with _errors_in_one_line(name):
        return tyro.cli(kind, args=args, prog=name, description=inspect.getdoc(kind), config=_CONFIG)


def parse_known(kind: type[Options], args: list[str], command: str) -> tuple[Options, list[str]]:
    """Like `parse`, with the arguments that `kind` does not know given back for `parse_config`."""
    with _errors_in_one_line(f"alm {command}"):
        return tyro.cli(
            kind,
            args=args,
            prog=f"alm {command}",
            description=inspect.getdoc(kind),
            config=_CONFIG,
            return_unknown_args=True,
        )


def parse_config(config: Options, args: list[str], command: str) -> Options:
    """`config` changed by typed flags such as `--stages.0.steps 10`: every field of it is one."""
    if not args:
        return config
    with _errors_in_one_line(f"alm {command}"):
        return tyro.cli(
            type(config),
            default=config,
            args=args,
            prog=f"alm {command}",
            description="every value of the config is a flag:",
            config=_CONFIG,
        )


def check_folder(out: Path) -> None:
    """Raise UsageError if `--out` is a file, or a URL."""
    if re.match(r"\w+:/", str(out)):  # a path has lost the second slash
        raise UsageError(f"--out {out} is a URL; mount the bucket (gcsfuse, s3fs) and give the folder of the mount")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; give a folder")


def overridden(config: Options, settings: tuple[str, ...]) -> Options:
    """`config` after the `--set path=value` of a command line; registry names stand for configs."""
    from alm_jax.models.registry import named_config

    return apply_overrides(config, parse_settings(settings), named_config) if settings else config


def load_model(options: Any) -> Any:
    """The model that `alm ask` and `alm eval` were told to take."""
    from rich.console import Console

    from alm_jax.api import load

    same = {name: getattr(options, name) for name in ("which", "base", "tokenizer", "memory")}
    with Console(stderr=True).status(f"loading {options.model}"):
        return load(options.model, **same, santa=parse_settings(options.santa, "--santa"))


def parse_settings(settings: tuple[str, ...], flag: str = "--set") -> Mapping[str, str]:
    """`{path: text}` of `--set path=value` options; a later one wins."""
    pairs = [setting.partition("=") for setting in settings]
    wrong = [setting for setting, (path, equals, _) in zip(settings, pairs) if not (path and equals)]
    if wrong:
        raise UsageError(f"{flag} takes {_EXAMPLES[flag]}, got {wrong[0]!r}")
    return {path: value for path, _, value in pairs}


@contextlib.contextmanager
def _errors_in_one_line(program: str) -> Any:
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), warnings.catch_warnings(action="ignore"):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{reduce_box(stderr.getvalue())}; see {program} --help") from None


def reduce_box(text: str) -> str:
    """The message in tyro's box of an error as one line: what is wrong, and what it may have meant."""
    sections: list[list[str]] = [[]]
    for line in text.splitlines()[1:]:  # the first holds the title
        line = _FRAME.sub("", line).strip()
        if not line.strip("─-"):
            sections.append([])
        else:
            sections[-1].append(line)
    sections = [section for section in sections if section]
    message = " ".join(sections[0]).partition(". Got errors")[0].rstrip(".")
    message = message[:1].lower() + message[1:]
    for section in sections[1:]:
        flags = [line for line in section if line.startswith("--")]
        if section[0].startswith("Perhaps you meant") and flags:
            given = message.partition(": ")[2].split(",")[0]
            names = [flag.split()[0] for flag in flags]
            message += f": did you mean {get_close_matches(given, names, n=1, cutoff=0)[0]}?"
        elif section[0].startswith("Argument helptext") and flags:
            message += f" (expected {flags[0]})"
    return message
