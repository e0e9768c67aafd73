"""Dispatch, errors and exit codes of `alm`."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from alm_jax import __version__
from alm_jax.cli import main as cli
from alm_jax.core.errors import AlmError, ConfigError, DataError


@pytest.fixture
def command(monkeypatch):
    """Makes the body of `alm inspect` whatever a test needs."""

    def install(body):
        monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(run=body))

    return install


def test_help(capsys):
    for args in (["--help"], ["-h"], ["help"]):
        assert cli.main(args) == 0
        out, err = capsys.readouterr()
        assert not err
        for name, text in cli.COMMANDS.items():
            assert name in out and text in out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"alm_jax {__version__}\n"


def test_no_command_and_a_wrong_one(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("usage: alm COMMAND")
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("alm: error: no command 'trian': did you mean 'train'?")


def test_a_command_gets_what_follows_its_name(command, capsys):
    got = []
    command(lambda args: got.append(args))
    assert cli.main(["inspect", "a", "--b", "c"]) == 0
    assert cli.main(["--debug", "inspect", "a"]) == 0
    assert cli.main(["inspect", "a", "--debug"]) == 0
    assert got == [["a", "--b", "c"], ["a"], ["a"]]
    command(lambda args: 1)
    assert cli.main(["inspect"]) == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("rows.json row 3: no field 'output'"), 1, "alm: error: rows.json row 3: no field 'output'\n"),
        (ConfigError("two\nlines"), 2, "alm: error: two lines\n"),
        (AlmError(""), 1, "alm: error: no message\n"),
        (OSError(28, "No space left on device", "x"), 1,
         "alm: error: OSError: [Errno 28] No space left on device: 'x' (run with --debug for the traceback)\n"),
        (ZeroDivisionError("by zero"), 1,
         "alm: error: ZeroDivisionError: by zero (run with --debug for the traceback)\n"),
    ],
)  # fmt: skip
def test_errors_are_one_line(command, capsys, error, code, line):
    def fail(args):
        raise error

    command(fail)
    assert cli.main(["inspect"]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", line)
    assert cli.main(["inspect", "--debug"]) == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith(line.replace(" (run with --debug for the traceback)", ""))


def test_interrupted(command, capsys):
    def stop(args):
        raise KeyboardInterrupt

    command(stop)
    assert cli.main(["inspect"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away():
    # More than a pipe holds, so that the write fails whenever the reader is gone.
    code = (
        "import sys; from types import SimpleNamespace; from alm_jax.cli import main as cli\n"
        "cli.import_module = lambda name: SimpleNamespace(run=lambda args: print('x\\n' * 200000))\n"
        "sys.exit(cli.main(['inspect']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help_with_examples(name, capsys):
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: alm {name}")
    assert f"  alm {name} " in out.partition("examples:")[2]


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "alm_jax", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("alm: error: no command 'nothing'.")


@pytest.mark.parametrize("command", ["quickstart --tiny", "train ltu/tiny", "sweep ltu/tiny", "scenes shipped --num 2"])
def test_an_out_that_is_a_file(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main([*command.split(), "--out", str(tmp_path / "file")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
