"""Plans against closed forms of what a chip holds; the compiler itself runs where libtpu is installed."""

import importlib.util
import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
import soundfile

from alm_jax.cli.main import main
from alm_jax.cli.plan import table
from alm_jax.core.errors import AlmError, ConfigError, UsageError
from alm_jax.core.mesh import MeshConfig, make_mesh
from alm_jax.data.pipeline import make_pipeline
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.templates import ALPACA_SHORT
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.layers.dense import Lora
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.ltu import LAYOUT, ltu
from alm_jax.models.ltu_as import ltu_as
from alm_jax.train import plan as plans
from alm_jax.train.config import Experiment, Stage
from alm_jax.train.plan import CHIPS, GIB, StagePlan, abstract_batch, plan, tpu_topology

needs_libtpu = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"),
]
DECODER = LlamaConfig(vocab_size=512, dim=128, depth=2, heads=4, kv_heads=4, mlp_dim=256, lora=Lora(rank=8))
ENCODER = CavMaeConfig(frames=64, mels=32, dim=64, heads=4, depth=2)
ALIGN = ("aligner.*",)
ALL = ("encoder.*", "aligner.*", "*.lora_?")


@pytest.fixture(scope="module", autouse=True)
def _flags_of_libtpu():
    """It ends the process at a flag that its own XLA does not know, such as one of the CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        yield


def stage(name="align", trainable=ALIGN, batch_size=64, buckets=(32, 64), **options):
    return Stage(name, DataSpec((Source("rows.json"),), batch_size, buckets), trainable, steps=10, **options)


def experiment(*stages, model=None, mesh=None):
    model = model or ltu(DECODER, ENCODER)
    return Experiment("toy", model, LAYOUT, "tokenizer", stages or (stage(),), mesh=mesh or MeshConfig(1, -1, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "GENERATION:SHAPE that is known, such as v4:2x2x4, v5e:4x4"),
        ("v5f:4x4", "did you mean 'v5"),
        ("v5e:4x4x4", "slices of v5e have 2 sides, as in v5e:4x4"),
        ("v5p:2x2", "slices of v5p have 3 sides"),
        ("v5e:4y4", "GENERATION:SHAPE"),
    ],
)
def test_unknown_topologies(name, message):
    with pytest.raises(UsageError, match=message):
        tpu_topology(name)


def test_without_libtpu(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AlmError, match=r"pip install 'alm_jax\[tpu\]'"):
        tpu_topology("v5e:4x4")
    assert main(["plan", "ltu/tiny", "--topology", "v5e:4x4"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_batch_is_the_pipelines(tmp_path):
    """Shapes and dtypes of the batch that is compiled for are those of a batch that was loaded."""
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    rows = [{"instruction": "What?", "audio_id": "a.wav", "output": "Rain, rain, rain and rain."}] * 3
    rows.append({"instruction": "Which?", "audio_id": ["a.wav", "a.wav"], "output": "Both."})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tokenizer = train_tokenizer(["What? Rain."], 270)
    config = ltu(DECODER, ENCODER)
    data = DataSpec((Source(str(tmp_path / "rows.json")),), batch_size=4, buckets=(24, 208), max_slots=2)
    pipeline = make_pipeline(
        data,
        template=ALPACA_SHORT,
        layout=LAYOUT,
        tokenizer=tokenizer,
        audio=config.frontend,
        audio_tokens=config.audio_tokens,
    )
    loaded = pipeline.load(0).batch
    made = abstract_batch(config, Stage("x", data, ALIGN, steps=1), make_mesh(MeshConfig(), jax.devices("cpu")[:1]))
    shapes = lambda batch: jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), batch)
    assert shapes(made) == shapes(loaded)


def test_the_batch_of_cached_features():
    """float16 features of one clip in place of its frames (`data.features`, `train.features`)."""
    config = ltu_as(DECODER, WhisperConfig(dim=64, heads=8, depth=3))
    mesh = make_mesh(MeshConfig(), jax.devices("cpu")[:1])
    audio = abstract_batch(replace(config, encoder=None), stage(features="cached"), mesh).audio
    assert audio.shape == (64, 1, 3, 25, 64) and audio.dtype == np.float16
    assert abstract_batch(config, stage(), mesh).audio.shape == (64, 1, 1000, 80)


def result(**changes):
    arguments = {"frozen": 3 * GIB, "trained": GIB, "optimizer": 2 * GIB, "batch": 0, "padding": 0}
    values = dict(stage="all", same_as=None, rows=8, length=64, mesh={"data": 1}, arguments=arguments)
    values |= dict(temporaries=5 * GIB, outputs=0, program=0, total=11 * GIB, hbm=16 * GIB, fits=True)
    return StagePlan(**values | dict(compile_seconds=1.0) | changes)


def test_tables():
    assert re.search(r"total +11\.00 GiB of 16\.00 GiB: fits, headroom 31%", table(result()))
    assert "the same step as stage all, fits" in table(result(stage="more", same_as="all"))
    none = dict(temporaries=None, outputs=None, program=None, fits=False)
    text = table(result(total=40 * GIB, **none))
    assert re.search(r"the rest +34\.00 GiB", text) and "does not fit; lower micro_batch" in text
    weights = result().arguments | {"frozen": 13 * GIB}
    assert "does not fit; divide the weights" in table(result(total=20 * GIB, arguments=weights, **none))


def test_memory_that_the_compiler_asks_for():
    error = RuntimeError("Ran out of memory on HBM, the total memory (203.50G) exceeds available HBM (15.75G).")
    assert plans._needed(error, stage()) == 203.5 * GIB
    with pytest.raises(AlmError, match="stage 'align': the TPU compiler failed: something else"):
        plans._needed(RuntimeError("something\nelse"), stage())


class TestCompiled:
    pytestmark = needs_libtpu

    def test_topologies(self):
        for name, chip in CHIPS.items():
            topology = tpu_topology(chip.example)
            sides = [int(side) for side in chip.example.split(":")[1].split("x")]
            assert len(topology.devices) == np.prod(sides) * chip.devices, name
            assert topology.hbm == chip.hbm * GIB / chip.devices
        with pytest.raises(UsageError, match="topology 'v5e:3x3' cannot be made"):
            tpu_topology("v5e:3x3")

    def test_what_a_chip_holds(self):
        """A stage on four chips, and the same once more."""
        stages = stage("first", ALL, micro_batch=16), stage("again", ALL, micro_batch=16)
        first, again = plan(experiment(*stages), tpu_topology("v5e:2x2"))

        vocab, dim, depth, hidden, enc, patches = 512, 128, 2, 256, 64, 8
        decoder = 2 * vocab * dim + depth * (4 * dim**2 + 3 * dim * hidden + 2 * dim) + dim
        divided = 256 * enc + patches * enc + 3 * enc  # patches, positions; their bias and the modality; ...
        divided += depth * (12 * enc**2 + 2 * enc + 4 * enc) + enc  # kernels, biases and norms of the blocks; last norm
        divided += enc * dim + dim + depth * 2 * 8 * dim  # aligner; LoRA's A over query and value
        whole = depth * (7 * enc + 2 * 8 * dim)  # biases over heads and hidden units; LoRA's B
        assert first.arguments["frozen"] == 2 * decoder / 4
        # what trains is float32, and so are Adam's two moments; beside them its counts, the step, the key's two words
        assert first.arguments["trained"] == 4 * (divided / 4 + whole)
        assert 0 < first.arguments["optimizer"] - 2 * first.arguments["trained"] <= 64
        # a position has seven int32, a float32 and a bool, a row its clip's number and frames
        assert first.arguments["batch"] == 16 * (64 * (8 * 4 + 1) + 4 + 4 * 64 * 32)

        assert first.fits and (first.rows, first.length) == (64, 64) and first.headroom > 0.9
        further = (first.temporaries, first.outputs, first.program)
        assert first.total == sum(first.arguments.values()) + sum(further)
        assert first.arguments["padding"] >= 0 and first.temporaries > 0
        assert first.outputs < 4096  # the state is donated; metrics are scalars
        assert again == replace(first, stage="again", same_as="first", compile_seconds=0.0)

    def test_activations_are_divided_by_rows(self):
        """A chip of sixteen holds the attention scores of its four rows, not of the batch."""
        rows, heads, patches = 64, 4, 512
        model = ltu(DECODER, CavMaeConfig(dim=64, heads=heads, depth=2, remat="full"))
        (found,) = plan(experiment(stage("all", ALL, rows), model=model), tpu_topology("v5e:4x4"))
        assert found.temporaries < 4 * rows * heads * patches**2 / 2

    def test_a_step_that_does_not_fit(self, tmp_path, capsys):
        """Logits [8192, 64, 131072] in float32 are 256 GiB, 64 GiB a chip."""
        path = tmp_path / "large.py"
        path.write_text(
            "from dataclasses import replace\n"
            "from tests.train.test_plan import ALIGN, DECODER, ENCODER, experiment, ltu, stage\n"
            "def get_config():\n"
            "    model = ltu(replace(DECODER, vocab_size=131072, cross_entropy='reference'), ENCODER)\n"
            "    return experiment(stage(batch_size=8192, buckets=(64,)), model=model)\n"
        )
        assert main(["plan", str(path), "--topology", "v5e:2x2", "--json"]) == 1
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert found["chips"] == 4 and found["fits"] is False
        (entry,) = found["stages"]
        assert entry["fits"] is False and entry["total"] > 64 * GIB and entry["headroom"] < -3
        assert entry["temporaries"] is None and not err

    def test_bad_input(self):
        topology = tpu_topology("v5e:2x2")
        with pytest.raises(ConfigError, match="no stage is named 'aline': did you mean 'align'"):
            list(plan(experiment(), topology, ["aline"]))
        with pytest.raises(ConfigError, match="does not fit 4 devices"):
            list(plan(experiment(mesh=MeshConfig(1, 16, 1)), topology))
        with pytest.raises(ConfigError, match="micro_batch 6 has to divide"):
            list(plan(experiment(stage(micro_batch=6)), topology))
        with pytest.raises(ConfigError, match="does not divide: "):
            list(plan(experiment(model=ltu(replace(DECODER, vocab_size=510), ENCODER), mesh=MeshConfig(1, 1, 4)),
                      topology))  # fmt: skip

    @pytest.mark.slow
    @pytest.mark.parametrize(("config", "name"), [("ltu/vicuna_7b", "open"), ("ltu_as/vicuna_7b", "mix")])
    def test_published_sizes_fit(self, config, name, capsys):
        """7B on sixteen chips of 16 GiB, every parameter that trains with float32 moments, a tenth left over."""
        assert main(["plan", config, "--topology", "v5e:4x4", "--stage", name, "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["stages"]
        llama = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
        assert found["arguments"]["frozen"] == 2 * llama / 16
        assert found["headroom"] > 0.1
