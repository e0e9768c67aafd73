"""The tuning tool on a kernel that takes as long as its block size says, by a clock that nothing else moves."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.mesh import device_kind
from alm_jax.kernels import tuning


@pytest.fixture
def toy(monkeypatch):
    """A kernel of three candidates: 60 s, 1 s and one that fails."""
    cases, now = importlib.import_module("bench_cases"), [0.0]

    def pass_time(size, x):
        now[0] += float(size)
        return np.asarray(x)

    def ours(x):
        blocks = tuning.choose("toy", {"size": x.size}, [{"size": 60}, {"size": 1}, {"size": 0}])
        if not blocks["size"]:
            raise jax.errors.JaxRuntimeError("out of VMEM")
        return jax.pure_callback(pass_time, jax.ShapeDtypeStruct(x.shape, x.dtype), blocks["size"], x)

    monkeypatch.setattr(importlib.import_module("tune_kernels"), "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(tuning, "table", dict)
    monkeypatch.setitem(cases.BENCHES, "toy", lambda: iter([cases.Case("toy", ours, ours, lambda: (jnp.ones(4),))]))


def test_it_writes_the_fastest_and_goes_on_where_it_was(tmp_path, toy, capsys):
    tool, path = importlib.import_module("tune_kernels"), tmp_path / "tuned.json"
    path.write_text("{}")
    arguments = ["toy", "--rounds", "1", "--table", str(path)]
    assert tool.main(arguments) == 0
    assert json.loads(path.read_text()) == {device_kind(): {"toy": {"size=4": {"size": 1}}}}
    assert "3/3 {'size': 0}: does not run (out of VMEM)" in capsys.readouterr().err
    assert tool.main(arguments) == 0
    assert "toy size=4: known, {'size': 1}" in capsys.readouterr().err


def test_what_cannot_be_tuned(capsys):
    tool = importlib.import_module("tune_kernels")
    with pytest.raises(SystemExit):
        tool.main(["fft"])
    assert "no kernel is called fft: expected some of attention," in capsys.readouterr().err
    if jax.default_backend() == "cpu":
        assert tool.main(["log_mel"]) == 1
        assert capsys.readouterr().err == "no kernel that runs on cpu has block sizes: tune on a TPU\n"
