"""One cache of scenes, features and compiled programs for all training tests."""

import os

import jax
import pytest


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """Environment of processes that share the caches; in this process they are set as well."""
    root = tmp_path_factory.mktemp("caches")
    shared = {"ALM_CACHE": str(root / "alm"), "JAX_COMPILATION_CACHE_DIR": str(root / "xla")}
    shared["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # of what takes less, as well
    before = os.environ.get("ALM_CACHE")
    os.environ["ALM_CACHE"] = shared["ALM_CACHE"]
    compiled = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", shared["JAX_COMPILATION_CACHE_DIR"])
    yield {**os.environ, **shared}
    jax.config.update("jax_compilation_cache_dir", compiled)
    os.environ.pop("ALM_CACHE")
    if before is not None:
        os.environ["ALM_CACHE"] = before
