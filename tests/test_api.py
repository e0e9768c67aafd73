"""`alm_jax.load`: a run, what `alm convert` writes of it, and checkpoints in the published layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import alm_jax
from alm_jax.audio.io import write_audio
from alm_jax.cli.main import main
from alm_jax.convert import hub
from alm_jax.core import tree
from alm_jax.core.errors import AudioError, CheckpointError, UsageError
from alm_jax.core.precision import MIXED
from alm_jax.core.sequence import Row, collate
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.infer.generate import generate
from alm_jax.infer.sampling import LTU_SAMPLING, Sampling
from alm_jax.models.alm import AlmConfig, build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.ltu import LAYOUT, LORA, ltu
from alm_jax.models.ltu_as import ltu_as
from alm_jax.train.checkpoint import Checkpoints, RunFolder
from alm_jax.train.config import Experiment, Stage, TrainTokenizer, run_config
from alm_jax.train.state import TrainState

DECODER = LlamaConfig(vocab_size=300, dim=16, depth=2, heads=2, kv_heads=2, mlp_dim=16, lora=LORA)
SYSTEMS = {
    "ltu": ltu(DECODER, CavMaeConfig(frames=32, dim=16, heads=2, depth=2)),
    "ltu_as": ltu_as(DECODER, WhisperConfig(dim=16, heads=2, depth=2, positions=500)),
}
QUESTIONS = ["What is heard?", "Why?", "Is it a dog, and how many of them?"]
NOISE = np.random.default_rng(0).normal(size=8000).astype(np.float32) / 4
DRAW = Sampling(temperature=1.0)  # an answer that any difference between two models changes


def write_run(path: Path, name: str, model: AlmConfig) -> Path:
    """A run's folder as training leaves it, with random weights of two steps, of which the first is the best."""
    data = DataSpec((Source("rows.json"),), batch_size=4, buckets=(64,))
    stage = Stage("only", data, ("decoder.*", "aligner.*"), steps=2)
    experiment = Experiment(name=name, model=model, layout=LAYOUT, tokenizer=TrainTokenizer(300), stages=(stage,))
    run = RunFolder.create(path, run_config(experiment))
    train_tokenizer(["What is heard? It is a dog, and a cat."], 300).save(path / "tokenizer")
    rng = np.random.default_rng(0)
    leaves = tree.flatten(tree.abstract(lambda key: build(model, key)))
    arrays = {key: rng.normal(0, 0.3, leaf.shape).astype(np.float32) for key, leaf in leaves.items()}
    trained, frozen = tree.split(arrays, stage.trainable)
    folder = run.stage(0, stage.name)
    folder.begin(frozen, [])
    with Checkpoints(folder) as checkpoints:
        for step, loss in ((1, 0.5), (2, 0.9)):
            params = {key: jnp.asarray(leaf * step) for key, leaf in trained.items()}
            checkpoints.save(TrainState(jnp.int32(step), params, {}, jnp.zeros(2, jnp.uint32)), step, loss)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of each system: its answers are gibberish, but its own."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_run(folder / name, name, model) for name, model in SYSTEMS.items()}


def convert(run: Path, out: Path, *options: str) -> Path:
    assert main(["convert", str(run), str(out), *options]) == 0
    return out


def answers(model, audio=NOISE):
    return model.generate(QUESTIONS, audio, max_new_tokens=12, sampling=DRAW, seed=3)


def same_model(one, other) -> None:
    assert one.arrays.keys() == other.arrays.keys()
    for path, leaf in one.arrays.items():
        assert leaf.dtype == other.arrays[path].dtype and np.array_equal(leaf, other.arrays[path]), path
    assert answers(one) == answers(other)


def test_a_run(runs, tmp_path):
    model = alm_jax.load(runs["ltu"])
    assert model.config == SYSTEMS["ltu"] and model.spec.layout == LAYOUT and model.spec.sampling == Sampling()
    together = answers(model)
    assert len(set(together)) == 3 and together == [
        model.generate(question, NOISE, max_new_tokens=12, sampling=DRAW, seed=3) for question in QUESTIONS
    ]
    assert answers(model, None) != together
    assert model.embed(NOISE).shape == (SYSTEMS["ltu"].audio_tokens, 16)
    assert {leaf.dtype for leaf in alm_jax.load(runs["ltu"], dtype="bfloat16").arrays.values()} == {
        jnp.dtype("float32"),  # what trained
        jnp.dtype("bfloat16"),
    }
    best = alm_jax.load(str(runs["ltu"]), which="best")
    scale = "decoder.norm.scale"
    np.testing.assert_array_equal(2 * best.arrays[scale], model.arrays[scale])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(16000), "silent, every sample is zero"),
        (NOISE[:399], "shorter than a frame (25 ms)"),  # which is 400 samples
        (NOISE[:1], "shorter than a frame (25 ms)"),
        (NOISE[:400], None),
    ],
)
@pytest.mark.parametrize("name", SYSTEMS)
def test_clips_with_next_to_nothing_to_hear(runs, tmp_path, caplog, name, samples, message):
    model, path = alm_jax.load(runs[name]), tmp_path / "clip.wav"
    write_audio(path, samples, 16000)
    assert np.isfinite(model.embed(path)).all()
    told = [record.getMessage() for record in caplog.records if record.name == "alm_jax.infer.clips"]
    assert len(told) == (message is not None) and all(text.startswith(f"{path}: {message}") for text in told)


def test_calls_that_make_no_sense(runs):
    model = alm_jax.load(runs["ltu"])
    for call, error, message in (
        (lambda: model.generate([], NOISE), UsageError, "no questions: give one at least"),
        (lambda: model.generate(["Why?", "How?"], [NOISE]), UsageError, "2 questions but 1 clips"),
        (lambda: model.generate(" ", NOISE), UsageError, "the question is empty"),
        (lambda: model.embed([]), UsageError, "no clips: give one at least"),
        (lambda: model.embed(NOISE[:0]), AudioError, r"shape \(0,\): expected finite numbers"),
        (lambda: model.embed((NOISE.reshape(2, -1), 16000)), AudioError, r"shape \(2, 4000\): expected finite numbers"),
        (lambda: model.embed((NOISE, 0)), AudioError, "sample rate 0: expected a positive whole number"),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(("name", "to"), [("ltu", "alm"), ("ltu_as", "official")])
def test_a_converted_run_answers_as_the_run_does(runs, tmp_path, name, to, capsys):
    out = convert(runs[name], tmp_path / "out", "--to", to)
    assert capsys.readouterr().out == f"{out / 'model.safetensors'}\n"
    assert (out / "encoder").exists() == (name == "ltu_as")
    same_model(alm_jax.load(out), alm_jax.load(runs[name]))
    same_model(alm_jax.load(out / "model.safetensors"), alm_jax.load(runs[name]))
    assert main(["convert", str(runs[name]), str(out)]) == 1
    assert "config.json" in capsys.readouterr().err


def published(runs, folder: Path, name: str) -> tuple[Path, Path, Path]:
    """A run's model as it would be published: LoRA and audio in one `.safetensors`, LLaMA and encoder apart."""
    whole = convert(runs[name], folder / "whole")
    tensors = load_file(whole / "model.safetensors")
    own = {key for key in tensors if "lora" in key or "audio" in key}
    for part in ("own", "llama"):
        (folder / part).mkdir()
    save_file({key: tensors[key] for key in own}, folder / "own" / "model.safetensors")
    llama = {key.removeprefix("base_model.model."): value for key, value in tensors.items() if key not in own}
    save_file(llama, folder / "llama" / "model.safetensors")
    config = {"num_attention_heads": 2, "audio_num_heads": 2, "encoder_attention_heads": 2}
    for part in ("own", "llama", *(["whole/encoder"] if name == "ltu_as" else [])):
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder / "own", folder / "llama", whole


@pytest.mark.parametrize("name", SYSTEMS)
def test_published_checkpoints_over_their_bases(runs, tmp_path, monkeypatch, name):
    own, llama, whole = published(runs, tmp_path, name)
    shutil.copy(whole / "tokenizer.json", llama)
    shutil.copy(whole / "tokenizer_config.json", llama)
    run = alm_jax.load(runs[name])
    base = [llama, whole / "encoder"] if name == "ltu_as" else llama
    model = alm_jax.load(own / "model.safetensors", base=base)
    assert model.config == run.config
    assert model.spec.sampling == LTU_SAMPLING
    same_model(model, run)
    # Without a Whisper given, LTU-AS listens through the published one.
    resolve = lambda asked: hub.resolve(str(whole / "encoder") if asked == "openai/whisper-large" else asked)
    monkeypatch.setattr("alm_jax.infer.checkpoint.resolve", resolve)
    same_model(alm_jax.load(own, base=llama, tokenizer=llama / "tokenizer.json"), run)


def test_on_accelerators_the_base_is_bfloat16(runs, tmp_path, monkeypatch):
    """What a checkpoint holds itself keeps its float32, as training held it."""
    own, llama, whole = published(runs, tmp_path, "ltu")
    monkeypatch.setattr("alm_jax.infer.checkpoint.default_precision", lambda: MIXED)
    model = alm_jax.load(own, base=llama, tokenizer=whole)
    dtypes = {path: leaf.dtype.name for path, leaf in model.arrays.items()}
    half = {path for path in dtypes if path.startswith("decoder.") and "lora" not in path}
    assert dtypes == {path: "bfloat16" if path in half else "float32" for path in dtypes}
    model = alm_jax.load(own, base=llama, tokenizer=whole, dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in model.arrays.values()} == {"bfloat16"} and model.dtype == jnp.bfloat16


def test_missing_pieces_are_named_with_the_argument_that_gives_them(runs, tmp_path, monkeypatch):
    own, llama, whole = published(runs, tmp_path, "ltu")

    def refused(*parts: str, error=CheckpointError, **arguments):
        with pytest.raises(error) as caught:
            alm_jax.load(own, **arguments)
        assert all(part in str(caught.value) for part in parts), caught.value
        assert "\n" not in str(caught.value)

    refused("lacks its LLaMA", "as base; alm ask: --base", "lacks a tokenizer", "alm ask: --tokenizer")
    refused("lacks a tokenizer", base=llama)
    refused("not needed", error=UsageError, base=[llama, llama], tokenizer=whole)
    refused("no such", tokenizer=tmp_path / "nothing", base=llama)
    (llama / "config.json").unlink()
    refused("how many heads the Llama of width 16 has", "with num_attention_heads into", base=llama, tokenizer=whole)
    (llama / "config.json").write_text('{"num_attention_heads": 2, "rope_scaling": {"type": "yarn"}}')
    refused("llama", "rope_type is 'yarn'; expected default, linear, llama3", base=llama, tokenizer=whole)
    (llama / "config.json").write_text('{"num_attention_heads": "two"}')
    refused("num_attention_heads is 'two'", base=llama, tokenizer=whole)
    (llama / "config.json").write_text('{"num_attention_heads": 2}')
    with pytest.raises(CheckpointError, match="layout llama_hf, which is a part"):
        alm_jax.load(llama)

    as_own, as_llama, as_whole = published(runs, tmp_path / "as", "ltu_as")
    refused("holds the encoder", error=UsageError, base=[llama, as_whole / "encoder"])
    (own / "config.json").write_text("{")
    refused("config.json: cannot be read as JSON", base=llama, tokenizer=whole)
    monkeypatch.setattr("alm_jax.infer.checkpoint.resolve", lambda name: hub.resolve(name, allow_download=False))
    with pytest.raises(CheckpointError, match=r"openai/whisper-large.*give it as base \(alm ask: --base\)"):
        alm_jax.load(as_own, base=as_llama, tokenizer=as_whole)


def test_damaged_and_newer_specs(runs, tmp_path):
    out = convert(runs["ltu"], tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(CheckpointError, match=r"format 2; this version of alm_jax reads 1: upgrade"):
        alm_jax.load(out)
    (out / "config.json").write_text(json.dumps(config | {"spec": {"@type": "Other"}}))
    with pytest.raises(CheckpointError, match="unknown class 'Other'"):
        alm_jax.load(out)
    config["spec"]["model"]["decoder"]["mlp_dim"] = 24
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"decoder\.blocks\.mlp\.up\.kernel is \(16, 24\)"):
        alm_jax.load(out)


def test_arguments_that_have_no_use(runs, tmp_path):
    for message, arguments in {
        "expected 'last' or 'best'": {"which": "first"},
        "is a run, which has its own": {"base": "vicuna"},
        "leave those arguments out": {"tokenizer": "vicuna"},
        "expected 'float32' or 'bfloat16'": {"dtype": "float16"},
        "dtype is 'half'": {"dtype": "half"},
    }.items():
        with pytest.raises(UsageError, match=message):
            alm_jax.load(runs["ltu"], **arguments)
    with pytest.raises(UsageError, match="only a run has a best checkpoint"):
        alm_jax.load(tmp_path, which="best")
    with pytest.raises(CheckpointError, match=r"ltu_at: no such run or checkpoint: did you mean 'ltu_as'\?"):
        alm_jax.load(runs["ltu"].parent / "ltu_at")
    with pytest.raises(CheckpointError, match="no weights found"):
        alm_jax.load(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1, "experiment"')
    (tmp_path / "stages").mkdir()
    with pytest.raises(CheckpointError, match="half written or damaged"):
        alm_jax.load(tmp_path)


@pytest.fixture
def ltu_tiny(golden_ltu, tmp_path) -> Path:
    """The recorded checkpoint with its config beside it, as a published one has."""
    shutil.copy(golden_ltu / "ltu_tiny.safetensors", tmp_path / "model.safetensors")
    shutil.copy(golden_ltu / "ltu_tiny_config.json", tmp_path / "config.json")
    return tmp_path


@pytest.mark.golden
def test_a_recorded_checkpoint_generates_the_recorded_ids(ltu_tiny, golden_ltu, monkeypatch):
    class Words:
        vocab_size, eos_id = 128, 2

    monkeypatch.setattr("alm_jax.infer.checkpoint.load_tokenizer", lambda path: Words)
    model = alm_jax.load(ltu_tiny, tokenizer=ltu_tiny)
    io = np.load(golden_ltu / "ltu_tiny_io.npz")
    tokens = model.config.audio_tokens
    for b in range(2):
        prompt = io[f"gen_prompt_{b}"]
        index = np.concatenate([np.arange(tokens), np.full(len(prompt), -1)])
        ids = np.concatenate([np.zeros(tokens, int), prompt])
        row = Row(ids, index, np.full(len(ids), -1), ids * 0, ids * 0.0, index < 0, (0,))
        batch = collate([row], 64, slots=1, pad="left")
        batch.audio = io["fbank"][b : b + 1, None]
        for recorded, sampling in {"": Sampling(), "_rep110": Sampling(repetition_penalty=1.1)}.items():
            wanted = io[f"gen_ids{recorded}_{b}"].tolist()
            assert generate(model._model, batch, max_new_tokens=8, sampling=sampling) == [wanted]


@pytest.mark.golden
@pytest.mark.torch
def test_a_recorded_bin_over_its_base(golden_ltu, tmp_path):
    """LTU's own way: a `.bin` of LoRA and audio tensors, over a LLaMA with a sentencepiece model beside it."""
    pytest.importorskip("torch")
    whole = load_file(golden_ltu / "ltu_tiny_c.safetensors")
    llama = {key: value for key, value in whole.items() if "lora" not in key and "audio" not in key}
    (tmp_path / "base").mkdir()
    save_file({key.split(".", 2)[2]: value for key, value in llama.items()}, tmp_path / "base" / "model.safetensors")
    shutil.copy(golden_ltu / "ltu_tiny_c_spm.model", tmp_path / "base" / "tokenizer.model")
    shutil.copy(golden_ltu / "ltu_tiny_c_trained.bin", tmp_path)
    for folder in (tmp_path, tmp_path / "base"):
        shutil.copy(golden_ltu / "ltu_tiny_c_config.json", folder / "config.json")
    model = alm_jax.load(tmp_path / "ltu_tiny_c_trained.bin", base=tmp_path / "base")
    assert (model.config.decoder.heads, model.config.encoder.heads, model.config.decoder.lora.rank) == (4, 2, 8)
    assert model.spec.sampling == LTU_SAMPLING
    embedding = next(value for key, value in llama.items() if "embed_tokens" in key)
    assert np.array_equal(model.arrays["decoder.embed.embedding"], embedding)

    import torch

    trained = torch.load(tmp_path / "ltu_tiny_c_trained.bin", weights_only=True)
    kernel = next(value for key, value in trained.items() if key.endswith("audio_proj.1.weight"))
    assert np.array_equal(model.arrays["aligner.proj.kernel"], kernel.numpy().T)
    recorded = json.loads((golden_ltu / "ltu_tiny_c_text.json").read_text())
    row = recorded["rows"][0]
    prompt = model.spec.template.prompt(row["instruction"], row["input"])
    ids = recorded["tokenized"]["cutoff108_train_on_inputs_True"][0]["input_ids"]
    assert ids[: 1 + len(model.tokenizer.encode(prompt))] == [1, *model.tokenizer.encode(prompt)]
    clip = golden_ltu / "fbank" / row["audio_id"]
    assert model.generate(row["instruction"], clip, max_new_tokens=4) == model.generate(
        row["instruction"], clip, max_new_tokens=4
    )
