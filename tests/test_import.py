"""What a user waits for before anything happens: `import alm_jax` and `alm --help`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib

import pytest

import alm_jax

HEAVY = {"jax", "numpy", "flax", "tyro", "rich", "matplotlib", "transformers", "torch"}


def run(*command: str) -> str:
    return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True).stdout


def test_import_is_quick_and_pulls_in_nothing_heavy():
    code = (
        "import json, sys, time; start = time.perf_counter(); import alm_jax;"
        "print(json.dumps([time.perf_counter() - start, [*sys.modules]]))"
    )
    seconds, modules = min(json.loads(run("-c", code)) for _ in range(3))
    assert not HEAVY & set(modules)
    assert seconds < 1.0  # the promise; measured 0.001 s, so that a busy machine does not matter


def test_help_is_quick():
    def once() -> float:
        start = time.perf_counter()
        assert "usage: alm COMMAND" in run("-m", "alm_jax", "--help")
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 1.5  # the promise; measured 0.1 s


def test_help_imports_nothing_heavy():
    code = "import sys; from alm_jax.cli.main import main; main(['--help']); print(*sys.modules)"
    assert not HEAVY & set(run("-c", code).split("\n")[-2].split())


def test_version(repo):
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    assert alm_jax.__version__ == project["version"]
    assert project["scripts"] == {"alm": "alm_jax.cli.main:main"}


def test_load_is_found_when_it_is_asked_for():
    assert callable(alm_jax.load) and alm_jax.load.__module__.startswith("alm_jax.")
    with pytest.raises(AttributeError, match="no attribute 'lood'"):
        _ = alm_jax.lood
