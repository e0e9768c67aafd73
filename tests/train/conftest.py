"""One cache of scenes, features and compiled programs for all training tests."""

import os
import subprocess

import jax
import pytest


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """Environment of processes that share the caches; in this process they are set as well."""
    root = tmp_path_factory.mktemp("caches")
    shared = {"ALM_CACHE": str(root / "alm"), "JAX_COMPILATION_CACHE_DIR": str(root / "xla")}
    shared["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # JAX keeps what took a second or more
    before = os.environ.get("ALM_CACHE")
    os.environ["ALM_CACHE"] = shared["ALM_CACHE"]
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    settings = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], shared["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update(names[1], 0.1)
    yield {**os.environ, **shared}
    for name, value in settings.items():
        jax.config.update(name, value)
    os.environ.pop("ALM_CACHE")
    if before is not None:
        os.environ["ALM_CACHE"] = before


@pytest.fixture
def mounted(tmp_path):
    """`mounted(options)` is a folder on a file system of its own, in memory; skips where none may be mounted."""
    disks = []

    def mount(options):
        disk = tmp_path / "disk"
        disk.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", disk], check=True)
