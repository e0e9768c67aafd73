"""A tiny experiment on text alone, and one run of it, which the commands' tests share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alm_jax.cli.main import main

CONFIG = """
from pathlib import Path

from alm_jax.data.plan import DataSpec, Source
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import LAYOUT, LORA, ltu
from alm_jax.train.config import Experiment, LoopConfig, Stage, TrainTokenizer, Validation
from alm_jax.train.optim import OptimConfig


def get_config():
    rows = DataSpec((Source(str(Path(__file__).parent / "rows.json")),), batch_size=4, buckets=(64,))
    decoder = LlamaConfig(vocab_size=300, dim=16, depth=2, heads=2, kv_heads=2, mlp_dim=16, lora=LORA)
    stage = Stage(
        "only", rows, ("decoder.*",), OptimConfig(warmup_steps=1), steps=2, validation=Validation(rows, every=1)
    )
    return Experiment(
        name="sums",
        model=ltu(decoder, CavMaeConfig(frames=32, dim=16, heads=2, depth=2)),
        layout=LAYOUT,
        tokenizer=TrainTokenizer(300),
        stages=(stage,),
        loop=LoopConfig(tensorboard=False),
    )


def sweep():
    for rate in (1e-3, 1e-2):
        yield {"stages.only.optim.learning_rate": rate}
"""


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    """Path of a config whose run takes seconds."""
    folder = tmp_path_factory.mktemp("config")
    rows = [
        {"instruction": f"What is {i} and {i}?", "input": "", "audio_id": "", "output": f"It is {2 * i}."}
        for i in range(8)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "sums.py").write_text(CONFIG)
    return folder / "sums.py"


@pytest.fixture(scope="session")
def trained(config, tmp_path_factory) -> Path:
    """Folder of a run of `config`, three steps long by a typed flag."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALM_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("runs") / "sums"
        assert main(["train", str(config), "--out", str(out), "--stages.0.steps", "3"]) == 0
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Commands keep what they derive in the test's folder."""
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
