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
from alm_jax.core.config import load_config_file
from alm_jax.core.errors import AlmError, ConfigError
from alm_jax.core.mesh import MeshConfig, make_mesh
from alm_jax.data.pipeline import make_pipeline
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.templates import ALPACA_SHORT
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.data.waveforms import Waveforms
from alm_jax.layers.dense import Lora
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.ltu import LAYOUT, ltu
from alm_jax.models.ltu_as import ltu_as
from alm_jax.train import plan as plans
from alm_jax.train.chips import GIB, find_topology
from alm_jax.train.config import Experiment, Stage
from alm_jax.train.hlo import BETWEEN_SLICES, Collective
from alm_jax.train.plan import Roofline, StagePlan, abstract_batch, plan

needs_libtpu = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"),
]
DECODER = LlamaConfig(vocab_size=512, dim=128, depth=2, heads=4, kv_heads=4, mlp_dim=256, lora=Lora(rank=8))
ENCODER = CavMaeConfig(frames=64, mels=32, dim=64, heads=4, depth=2)
LARGE = (
    *("ltu/vicuna_7b", "ltu/vicuna_13b", "ltu/vicuna_7b_prepared", "ltu_as/vicuna_7b"),
    *("apt/vicuna_7b", "apt/vicuna_7b_paper", "apt/vicuna_7b_clap", "apt/vicuna_7b_linear"),
    *("mats/vicuna_7b", "mats/audio", "clap/htsat_msclap", "clap/laion_htsat", "audio_mae/base"),
)
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


@pytest.mark.parametrize("front_end", ["host", "device"])
def test_the_batch_is_the_pipelines(tmp_path, front_end):
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
        audio=Waveforms(config.frontend) if front_end == "device" else config.frontend,
        audio_tokens=config.audio_tokens,
    )
    loaded = pipeline.load(0).batch
    reading = Stage("x", data, ALIGN, steps=1, front_end=front_end)
    made = abstract_batch(config, reading, make_mesh(MeshConfig(), jax.devices("cpu")[:1]))
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
    values = dict(stage="all", same_as=None, rows=8, length=64, micro_batch=8, mesh={"data": 1}, arguments=arguments)
    values |= dict(temporaries=5 * GIB, outputs=0, program=0, total=11 * GIB, hbm=16 * GIB, fits=True, roofline=None)
    return StagePlan(**values | dict(estimated=False, compile_seconds=1.0) | changes)


def test_tables():
    topology = find_topology("h100:8")
    shown = lambda **changes: table(result(**changes), topology)
    assert re.search(r"total +11\.00 GiB of 16\.00 GiB: fits, headroom 31% \(compiled in 1 s\)", shown())
    assert "headroom 6%; leave a tenth" in shown(total=15 * GIB)
    assert "the same step as stage all, fits" in shown(stage="more", same_as="all")
    none = dict(temporaries=None, outputs=None, program=None, fits=False)
    text = shown(total=40 * GIB, **none)
    assert re.search(r"the rest +34\.00 GiB", text) and "does not fit; lower micro_batch" in text
    weights = result().arguments | {"frozen": 13 * GIB}
    assert "does not fit; divide the weights" in shown(total=20 * GIB, arguments=weights, **none)

    sums = Collective("all-reduce", 3, 10**9, 9 * 10**9), Collective(BETWEEN_SLICES, 2, 10**9, 5 * 10**8)
    roofline = Roofline(
        2 * 10**12, 10**12, 10**9, sums, compute=0.002, memory=0.0003, network=0.02, mfu=0.05, unknown_loops=1
    )
    text = shown(roofline=roofline, micro_batch=4, largest_micro_batch=8)
    assert "8 rows x 64 positions, 4 rows at a time" in text
    assert re.search(r"compute +2\.0 ms +2\.00 TFLOP \(1\.00 of the model\), 989 TFLOP/s", text)
    assert re.search(r"network +20\.0 ms +9\.00 GB arrive, 450 GB/s", text)
    assert re.search(r"all-reduce +3 of 1\.00 GB in all, 9\.00 GB arrive\n", text)
    assert re.search(r"between slices +2 of 1\.00 GB in all, 0\.50 GB arrive, 50 GB/s", text)
    assert re.search(r"step +20\.0 ms at least, MFU 5% at most; loops of unknown length, counted once: 1", text)
    assert re.search(r"largest micro-batch +8 with a tenth", text)


def test_memory_that_the_compiler_asks_for():
    error = RuntimeError("Ran out of memory on HBM, the total memory (203.50G) exceeds available HBM (15.75G).")
    assert plans._needed(error, stage()) == 203.5 * GIB
    with pytest.raises(AlmError, match="stage 'align': the TPU compiler failed: something else"):
        plans._needed(RuntimeError("something\nelse"), stage())


def test_bad_input():
    """Before anything is compiled: the second stage's fault ends it before the first one's plan."""
    gpus = find_topology("h100:4")

    def refused(match, *stages, mesh=None, decoder=DECODER, names=()):
        with pytest.raises(ConfigError, match=match):
            next(plan(experiment(stage(), *stages, model=ltu(decoder, ENCODER), mesh=mesh), gpus, names))

    refused("no stage is named 'aline': did you mean 'align'", names=["aline"])
    refused("topology h100:4: mesh .* does not fit 4 devices", mesh=MeshConfig(1, 16, 1))
    last = stage("last", batch_size=66)
    refused("h100:4: stage 'last': data.batch_size 66 is not a multiple of the 4 devices along data and fsdp", last)
    last = stage("last", micro_batch=2)
    refused("h100:4: stage 'last': micro_batch 2 is not a multiple of the 4 devices", last)
    heads = replace(DECODER, heads=2, kv_heads=2)
    refused("mesh.tensor 4 does not divide model.decoder.heads 2: set", mesh=MeshConfig(1, 1, 4), decoder=heads)
    odd = replace(DECODER, vocab_size=510)
    refused("does not divide", mesh=MeshConfig(1, 1, 4), decoder=odd)


def test_weights_too_large_by_themselves():
    large = replace(DECODER, dim=2**15, heads=256, kv_heads=256, mlp_dim=2**17, depth=32)
    (found,) = plan(experiment(model=ltu(large, ENCODER)), find_topology("h100:8"))
    frozen = 2 * (2 * 512 * 2**15 + 32 * (4 * 2**30 + 3 * 2**32 + 2**16) + 2**15) // 8
    assert not found.fits and found.compile_seconds == 0 and found.roofline is None
    assert found.total > found.arguments["frozen"] > frozen > found.hbm


def test_published_sizes():
    """Vicuna 7B over sixteen chips."""
    topology, config = find_topology("h100:16"), load_config_file("ltu/vicuna_7b").get_config()
    step = plans._stage_step(config, config.stages[-1], topology, plans._mesh(config, topology))
    llama = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    assert step.arguments["frozen"] == 2 * llama / 16


def test_the_largest_micro_batch(monkeypatch):
    """Those that divide 96 rows and are multiples of 4 devices; a third of the HBM at 16, so 32 leave a tenth."""
    asked = []

    def planned(step, progress):
        asked.append(step.micro_batch)
        return result(rows=96, micro_batch=step.micro_batch, total=step.micro_batch * GIB // 3, hbm=16 * GIB)

    monkeypatch.setattr(plans._StageStep, "planned", planned)

    def largest(micro_batch):
        asked.clear()
        stages = experiment(stage(batch_size=96, micro_batch=micro_batch))
        return next(plan(stages, find_topology("h100:4"), largest=True)).largest_micro_batch

    assert largest(16) == 32 and asked[0] == 16 and len(asked) <= 4
    assert largest(None) == 32 and asked[0] == 96
    monkeypatch.setattr(plans._StageStep, "planned", lambda step, progress: result(rows=96, micro_batch=96, fits=False))
    assert largest(None) == 0


def test_gpus_are_counted_from_shapes(tmp_path, capsys):
    """The whole of it by the command; what is needed of a step that recomputes nothing is a closed form."""
    path = tmp_path / "small.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from tests.train.test_plan import ALL, DECODER, ENCODER, experiment, ltu, stage\n"
        "def get_config():\n"
        "    model = ltu(replace(DECODER, remat='full'), replace(ENCODER, remat='full'))\n"
        "    return replace(experiment(stage('all', ALL, micro_batch=16), model=model), topologies=('h100:8',))\n"
    )
    assert main(["plan", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    (entry,) = found["stages"]
    assert err == "counting stage all on h100:8, 16 rows at a time ...\n"
    assert found["topology"] == "h100:8" and found["chips"] == 8 and entry["estimated"] and entry["micro_batch"] == 16
    roofline, rows = entry["roofline"], 8
    needed = model_flops(rows)
    assert roofline["model_flops"] == needed < roofline["flops"] < 4 / 3 * needed
    assert roofline["seconds"] == max(roofline[name] for name in ("compute", "memory", "network"))
    assert roofline["mfu"] == pytest.approx(needed / 989e12 / roofline["seconds"])
    # kept at least: the stream before each of a device's two layers, of two rows of 64 positions in bfloat16
    assert entry["temporaries"] > 2 * (2 * 64 * 128 * 2)
    gathered = next(each for each in roofline["collectives"] if each["kind"] == "all-gather")
    whole = entry["arguments"]["frozen"] * 8  # bfloat16, nearly all divided; forward and backward of four micro-batches
    assert gathered["bytes"] > 0.9 * 2 * 4 * whole


def model_flops(rows: int) -> int:
    """Of rows of 64 positions through DECODER and of 8 patches through ENCODER, all of which but the decoder trains."""
    length, vocab, dim, depth, hidden, rank = 64, 512, 128, 2, 256, 8
    products = depth * (4 * dim**2 + 3 * dim * hidden) + vocab * dim  # frozen: backward is their input's gradient
    scores = depth * 2 * length * dim  # both factors have gradients
    adapters = depth * 2 * 2 * rank * dim  # and so have these
    decoder = 2 * rows * length * (2 * products + 3 * (scores + adapters))
    patches, width, patch = 8, 64, 256
    blocks = 2 * (12 * width**2 + 2 * patches * width)
    encoder = 2 * rows * patches * (3 * blocks + 2 * patch * width)  # no gradient of the sound
    return decoder + encoder + 3 * 2 * rows * 2 * width * dim  # two tokens a clip


class TestCompiled:
    pytestmark = needs_libtpu

    def test_what_a_chip_holds(self):
        """A stage on four chips, and the same once more."""
        stages = stage("first", ALL, micro_batch=16), stage("again", ALL, micro_batch=16)
        first, again = plan(experiment(*stages), find_topology("v5e:2x2"))

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

        # nothing twice, but the kernel of the loss makes its logits once more; rel: what a compiler may move or drop
        roofline, logits = first.roofline, 2 * 16 * 64 * vocab * dim
        assert roofline.model_flops == model_flops(16) and roofline.unknown_loops == 0
        assert roofline.flops == pytest.approx(roofline.model_flops + logits, rel=0.01)
        gathered = {each.kind: each.bytes for each in roofline.collectives}["all-gather"]
        # kernels of the decoder's blocks in bfloat16, forward and backward of four micro-batches; the rest is smaller
        kernels = depth * (4 * dim**2 + 3 * dim * hidden)
        assert 4 * 2 * 2 * kernels < gathered < 2 * 4 * 2 * 2 * kernels
        assert roofline.bytes > first.arguments["frozen"] + 2 * first.arguments["trained"]

    def test_activations_are_divided_by_rows(self):
        """A chip of four holds the attention scores of its 16 rows, not of the batch."""
        rows, heads, patches = 64, 4, 256
        model = ltu(DECODER, replace(ENCODER, frames=512, mels=128, heads=heads, remat="full"))
        (found,) = plan(experiment(stage("all", ALL, rows), model=model), find_topology("v5e:2x2"))
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
        assert entry["temporaries"] is None and entry["roofline"] is None
        assert err == "compiling stage align on v5e:2x2, 8192 rows at a time ...\n"

    @pytest.mark.slow
    @pytest.mark.parametrize("config", LARGE)
    def test_large_configs_fit(self, config, capsys):
        """Every stage on every slice or box that the config names, with a tenth of the memory left."""
        names = load_config_file(config).get_config().topologies
        assert names
        for name in names:
            assert main(["plan", config, "--topology", name, "--json"]) == 0
            for found in json.loads(capsys.readouterr().out)["stages"]:
                assert found["headroom"] >= 0.1, (name, found["stage"])
