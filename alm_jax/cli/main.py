"""The `alm` command: finds the subcommand, and turns every way to fail into one line and an exit code.

A subcommand `alm NAME` is the module `alm_jax/cli/NAME.py` with `run(args: list[str]) -> int | None`: it gets the
arguments after its name, reads them with `alm_jax.cli.parse.parse`, prints its result, and returns the exit code (None
is 0). It raises `AlmError` for what a user can mend; `--debug` is taken out of the arguments before. Its module is
imported only when it is called, and its line of help stands in `COMMANDS` here, so that `alm --help` imports nothing.

Exit codes: 0; 1 it failed; 2 wrong usage or config; 130 interrupted; 141 the reader of the output went away.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module

from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import AlmError, UsageError

COMMANDS = {
    "quickstart": "train a small model on composed scenes, score it, and show what to ask it",
    "ask": "answer questions about a sound file",
    "train": "run a config's stages in a folder",
    "sweep": "run a config's variants and seeds, and compare them",
    "plan": "compile a config's step for a TPU topology and show memory per chip",
    "inspect": "list the parameters of a run, a checkpoint or a published model",
    "convert": "write a run or checkpoint in the names of another library",
    "verify": "compare the forward pass with transformers on the same weights",
    "scenes": "compose labelled clips into scenes with questions and answers",
    "eval": "run benchmarks on a model, and report what they find",
    "memory": "build a memory of texts that clips are drawn towards (MATS), and show what one holds",
    "data": "prepare published data sets for training",
    "tasks": "formulate labelled clips as rows of questions and answers",
}

EXAMPLES = """\
examples:
  alm quickstart                                    everything once, in minutes, on a laptop
  alm train ltu/tiny --out runs/tiny                a shipped config, or the path of your own
  alm ask runs/tiny --audio dog.wav "What is heard?"
  alm COMMAND --help                                options and examples of one command
"""


def usage() -> str:
    """The text of `alm --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: alm COMMAND [OPTIONS]\n\nAudio-language models in JAX.\n\n"
        f"commands:\n{commands}\n\noptions:\n  -h, --help  this text\n  --version   the version\n"
        f"  --debug     show the traceback of an error (any command)\n\n{EXAMPLES}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and give its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = [arg for arg in given if arg != "--debug"]
    debug = len(args) < len(given)
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _leave(130)
    except BrokenPipeError:
        # What is still buffered has no reader; without this Python complains about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = _one_line(str(error)) or "no message"
        if isinstance(error, AlmError):
            print(f"alm: error: {message}", file=sys.stderr)
            return _leave(error.exit_code)
        hint = "" if debug else " (run with --debug for the traceback)"
        print(f"alm: error: {type(error).__name__}: {message}{hint}", file=sys.stderr)
        return _leave(1)


def _leave(code: int) -> int:
    """The exit code of a failure; where other processes take part, exits with it at once."""
    if (processes := sys.modules.get("alm_jax.core.processes")) is not None:
        processes.leave(code)
    return code


def _dispatch(args: list[str]) -> int:
    if not args:
        print(usage(), file=sys.stderr, end="")
        return UsageError.exit_code
    name, *rest = args
    if name in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if name == "--version":
        from alm_jax import __version__

        print(f"alm_jax {__version__}")
        return 0
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}{did_you_mean(name, COMMANDS) or '.'} Commands: {', '.join(COMMANDS)}")
    try:
        return import_module(f"alm_jax.cli.{name}").run(rest) or 0
    except SystemExit as stop:  # the argument parser, after printing help
        return int(stop.code or 0)


def _one_line(text: str, limit: int = 2000) -> str:
    return " ".join(text.split())[:limit]
