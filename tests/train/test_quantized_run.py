"""A run over a quantised decoder, from its first step to what others load of it."""

import json

import pytest

import alm_jax
from alm_jax.cli.main import main
from alm_jax.core.precision import Precision
from alm_jax.data.plan import DataSpec, Source
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import LAYOUT, LORA, ltu
from alm_jax.train.config import Experiment, LoopConfig, Stage, TrainTokenizer
from alm_jax.train.curriculum import train
from alm_jax.train.metrics import read_metrics
from alm_jax.train.optim import OptimConfig
from tests.train.runs import exact


def experiment(rows, storage):
    """Sums in words, LoRA over a decoder of random kernels."""
    decoder = LlamaConfig(vocab_size=300, dim=64, depth=2, heads=2, kv_heads=2, mlp_dim=64, lora=LORA)
    data = DataSpec((Source(str(rows)),), batch_size=4, buckets=(64,))
    return Experiment(
        name="sums",
        model=ltu(decoder, CavMaeConfig(frames=32, dim=16, heads=2, depth=2)),
        layout=LAYOUT,
        tokenizer=TrainTokenizer(300),
        stages=(Stage("adapt", data, ("*.lora_?",), OptimConfig(learning_rate=0.01, warmup_steps=1), steps=5),),
        precision=Precision("float32", "float32", storage),
        loop=LoopConfig(checkpoint_every=2, tensorboard=False),
    )


class Killed(Exception):
    """As by a signal, as far as a test can tell from within."""


class Killer:
    """A tracker after whose third row nothing more is done."""

    def log(self, row):
        if row["step"] == 3:
            raise Killed

    def close(self):
        pass


@pytest.mark.parametrize("storage", [pytest.param("int8", marks=pytest.mark.slow), "nf4"])
def test_trained_killed_resumed_converted_and_asked(storage, caches, tmp_path):
    rows = tmp_path / "rows.json"
    told = [{"instruction": f"What is {i} and {i}?", "audio_id": "", "output": f"It is {2 * i}."} for i in range(8)]
    rows.write_text(json.dumps([{"input": "", **row} for row in told]))
    quantised, outs = experiment(rows, storage), [tmp_path / "whole", tmp_path / "killed"]
    train(quantised, outs[0], progress=False)
    with pytest.raises(Killed):
        train(quantised, outs[1], progress=False, trackers=[Killer()])
    train(quantised, outs[1], resume=True, progress=False)
    whole, killed = (exact(read_metrics(out / "metrics.jsonl")) for out in outs)
    assert len(whole) == 5 and killed == whole  # bit for bit

    assert main(["convert", str(outs[1]), str(tmp_path / "converted")]) == 0
    models = [alm_jax.load(outs[1]), alm_jax.load(tmp_path / "converted")]
    assert all("decoder.blocks.attn.q.kernel" in model.arrays for model in models)  # the values, no codes
    ranked = [model.rank(told[1]["instruction"], ["It is 2.", "It is 14.", "No."]) for model in models]
    assert ranked[0] == ranked[1]
