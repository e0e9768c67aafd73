"""Pretrained sources of a stage: what is read, recorded, and checked again on a resume."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from alm_jax.convert import bert, clap, llama
from alm_jax.convert.names import PLAIN
from alm_jax.convert.save import export, save_safetensors
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError, ConfigError
from alm_jax.core.mesh import make_mesh
from alm_jax.core.precision import FLOAT32, MIXED
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.alm import build
from alm_jax.models.clap import Clap, ClapConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.quantized import quantize
from alm_jax.models.text.bert import Bert, BertConfig
from alm_jax.train.checkpoint import RunFolder
from alm_jax.train.config import Weights
from alm_jax.train.weights import StageModel, begin, restore
from tests.modules import randomised
from tests.train import test_apt_run as apt_run
from tests.train.runs import short

SEED = 5
pytestmark = pytest.mark.usefixtures("caches")  # what draws the random parameters of a model is compiled once


@pytest.fixture
def decoder(tmp_path):
    """(folder, arrays) of a decoder in the layout of transformers, with other values than a run would draw."""
    config = short().stage_model(short().stages[0]).decoder
    model = randomised(lambda key: build(replace(short().model, decoder=config), key), 0.1)
    arrays = {p.removeprefix("decoder."): a for p, a in tree.flatten(model).items() if p.startswith("decoder.")}
    save_safetensors(tmp_path / "vicuna", export(arrays, llama.hf(config), PLAIN))
    return tmp_path / "vicuna", arrays


def experiment_with(*sources, trainable=("aligner.*", "*.lora_?")):
    """One stage that trains the aligner and LoRA over a pretrained decoder."""
    base = short()
    stage = replace(base.stages[1], trainable=trainable)
    return replace(base, stages=(stage,), weights=tuple(sources), seed=SEED)


def model_of(experiment, precision=FLOAT32, index=0):
    stage = experiment.stages[index]
    return StageModel(experiment.stage_model(stage), stage, make_mesh(experiment.mesh), precision)


def begun(experiment, tmp_path, precision=FLOAT32):
    run = RunFolder.create(tmp_path / "run", {})
    model = model_of(experiment, precision)
    start = begin(experiment, 0, run, model)
    folder = run.stage(0, experiment.stages[0].name)
    folder.begin(start.carried, start.sources)
    return model, start, folder


def test_every_parameter_has_one_origin(decoder, tmp_path):
    path, theirs = decoder
    experiment = experiment_with(Weights("decoder.*", str(path)))
    model, start, _ = begun(experiment, tmp_path)
    assert start.params.keys() == model.trained and not start.params.keys() & start.frozen.keys()
    assert start.params.keys() | start.frozen.keys() == model.target.keys()
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(start.frozen[f"decoder.{name}"], leaf)
        assert start.origin[f"decoder.{name}"] == str(path)
    assert all(name.startswith("encoder.") for name in start.carried)  # random and frozen; the decoder is not copied
    assert {start.origin[name] for name in model.trained} == {"random"}
    (source,) = start.sources
    assert source.name == str(path) and source.patterns == ("decoder.*",)
    assert list(source.sha256) == ["model.safetensors"] and len(source.sha256["model.safetensors"]) == 64


def test_random_parameters_are_those_of_the_whole_model(tmp_path):
    experiment = experiment_with()
    model, start, _ = begun(experiment, tmp_path)
    whole = tree.flatten(build(model.config, jax.random.key(SEED)))
    for path, leaf in (start.params | start.frozen).items():
        # Compiled as a part of the model or alone, a draw differs by rounding.
        np.testing.assert_allclose(leaf, whole[path], atol=1e-6, err_msg=path)


def test_frozen_parameters_are_held_as_the_precision_says_and_carried_as_they_came(decoder, tmp_path):
    experiment = experiment_with(Weights("decoder.*", str(decoder[0])))
    _, start, folder = begun(experiment, tmp_path, MIXED)
    assert {str(leaf.dtype) for leaf in start.frozen.values()} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in start.params.values()} == {"float32"}
    assert {str(leaf.dtype) for leaf in folder.carried().values()} == {"float32"}


@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_frozen_kernels_of_the_decoder_are_held_in_fewer_bits(decoder, tmp_path, storage):
    path, theirs = decoder
    experiment = experiment_with(Weights("decoder.*", str(path)))
    precision = replace(FLOAT32, decoder=storage)
    model, start, folder = begun(experiment, tmp_path, precision)
    assert start.frozen.keys() | start.params.keys() == model.target.keys()
    kernels = [name for name in theirs if name.startswith("blocks.") and name.endswith(".kernel")]
    assert len(kernels) == 7
    for name, leaf in theirs.items():
        if name not in kernels:  # embeddings, norms and the head as they were
            np.testing.assert_array_equal(start.frozen[f"decoder.{name}"], leaf)
            continue
        for part, values in quantize(leaf, storage).items():
            np.testing.assert_array_equal(start.frozen[f"decoder.{name}.{part}"], values)
            assert model.target[f"decoder.{name}.{part}"].dtype == values.dtype
    assert all(name.startswith("encoder.") for name in start.carried)
    again = restore(experiment, 0, folder, model)
    for name, leaf in start.frozen.items():
        np.testing.assert_array_equal(again.frozen[name], leaf, err_msg=name)
    # What reads the run without, an export say, has the source's own values.
    plain = restore(experiment, 0, folder, model_of(experiment))
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(plain.frozen[f"decoder.{name}"], leaf)


def test_random_kernels_are_carried_as_they_came_and_held_in_fewer_bits(tmp_path):
    experiment = experiment_with(trainable=("aligner.*", "decoder.blocks.attn.q.*"))
    model, start, folder = begun(experiment, tmp_path, replace(FLOAT32, decoder="int8"))
    assert "decoder.blocks.attn.q.kernel" in start.params  # what trains is not quantised
    assert str(folder.carried()["decoder.blocks.attn.k.kernel"].dtype) == "float32"
    again = restore(experiment, 0, folder, model)
    for name, leaf in start.frozen.items():
        np.testing.assert_array_equal(again.frozen[name], leaf, err_msg=name)


def test_a_resume_reads_the_same_frozen_parameters(decoder, tmp_path):
    experiment = experiment_with(Weights("decoder.*", str(decoder[0])))
    model, start, folder = begun(experiment, tmp_path)
    again = restore(experiment, 0, folder, model)
    assert again.params == {} and again.frozen.keys() == start.frozen.keys()
    for path, leaf in start.frozen.items():
        np.testing.assert_array_equal(again.frozen[path], leaf, err_msg=path)


def test_a_source_that_changed_or_went_away_stops_a_resume(decoder, tmp_path):
    path, theirs = decoder
    experiment = experiment_with(Weights("decoder.*", str(path)))
    model, _, folder = begun(experiment, tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights found"):
        restore(experiment, 0, folder, model)
    config = model.config.decoder
    other = {name: np.asarray(leaf) + 1 for name, leaf in theirs.items()}
    save_safetensors(path, export(other, llama.hf(config), PLAIN))
    with pytest.raises(CheckpointError, match=r"vicuna has changed since the run began .*sources\.json"):
        restore(experiment, 0, folder, model)


def test_the_first_source_that_has_a_parameter_gives_it(decoder, tmp_path):
    """Trained before, the decoder comes from the stage before and the checkpoint is not even opened."""
    base = short()
    missing = str(tmp_path / "gone")
    first = replace(base.stages[0], trainable=("decoder.*",), init_from=())
    experiment = replace(base, stages=(first, base.stages[1]), weights=(Weights("decoder.*", missing),))
    run = RunFolder.create(tmp_path / "run", {})
    from alm_jax.train.checkpoint import Checkpoints
    from alm_jax.train.optim import make_optimizer
    from alm_jax.train.state import create_state

    model = model_of(experiment)
    trained = {path: jax.numpy.full(model.target[path].shape, 0.5) for path in model.trained}
    run.stage(0, first.name).begin({}, [])
    with Checkpoints(run.stage(0, first.name)) as checkpoints:
        checkpoints.save(create_state(trained, make_optimizer(first.optim, 6), jax.random.key(0)), 6)
    start = begin(experiment, 1, run, model_of(experiment, index=1))
    assert start.sources == []
    for path in trained:
        assert start.origin[path] == f"stage {first.name}"
        np.testing.assert_array_equal(start.frozen[path], 0.5)
        assert path in start.carried


@pytest.mark.parametrize("towers", ["audio", "both"])
def test_an_encoder_is_towers_of_a_whole_clap(tmp_path, towers):
    tiny = ClapConfig(
        audio=HtsatConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), classes=3),
        text=Gpt2Config(60, dim=16, depth=1, heads=2, mlp_dim=64, positions=80),
        dim=12,
    )
    like = tree.flatten(tree.abstract(lambda key: Clap(tiny, key)))
    rng = np.random.default_rng(0)
    whole = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in like.items()}
    save_safetensors(tmp_path / "clap", export(whole, clap.official(tiny), PLAIN))
    base, encoder = short(), ClapEncoderConfig(tiny, towers)
    aligner = PooledLinearConfig(tiny.dim, base.model.decoder.dim, (1, 1), 1)
    experiment = replace(
        experiment_with(Weights("encoder.*", str(tmp_path / "clap"))),
        model=replace(base.model, frontend=tiny.frontend, encoder=encoder, aligner=aligner),
    )
    _, start, _ = begun(experiment, tmp_path)
    heard = {path.removeprefix("encoder."): leaf for path, leaf in start.frozen.items() if path.startswith("encoder.")}
    assert {path.split(".")[0] for path in heard} == ({"audio", "text"} if towers == "both" else {towers})
    for path, leaf in heard.items():
        np.testing.assert_array_equal(leaf, whole[path], err_msg=path)


def test_an_aligner_begins_as_a_bert(tmp_path):
    """The rows of its words that BERT lacks, `[DEC]`'s and ten more, are as random as without it; on a resume too."""
    base = apt_run.short()
    aligner = base.model.aligner
    sizes = {"dim": aligner.hidden, "depth": aligner.depth, "heads": aligner.heads, "mlp_dim": aligner.mlp_dim}
    config = BertConfig(vocab_size=aligner.vocab_size - 11, positions=aligner.positions, **sizes)
    model = tree.flatten(randomised(lambda key: Bert(config, key), 0.1))
    save_safetensors(tmp_path / "bert", export(model, bert.hf(config), PLAIN))
    stage = replace(base.stages[0], trainable=("aligner.queries",))
    plain = replace(base, stages=(stage,), weights=())
    experiment = replace(plain, weights=(Weights("aligner.*", str(tmp_path / "bert")),))
    model_, start, folder = begun(experiment, tmp_path)
    found, words = start.frozen, np.asarray(model["embed.words.embedding"])
    np.testing.assert_array_equal(found["aligner.embed.embedding"][: len(words)], words)
    random = begin(plain, 0, RunFolder.create(tmp_path / "plain", {}), model_of(plain)).frozen
    np.testing.assert_array_equal(
        found["aligner.embed.embedding"][len(words) :], random["aligner.embed.embedding"][len(words) :]
    )
    np.testing.assert_array_equal(found["aligner.cross.attn.k.kernel"], random["aligner.cross.attn.k.kernel"])
    for name in ("mlp", "query_mlp"):
        np.testing.assert_array_equal(found[f"aligner.blocks.{name}.up.kernel"], model["blocks.mlp.up.kernel"])
    again = restore(experiment, 0, folder, model_).frozen
    assert again.keys() == found.keys()
    for path in again:
        np.testing.assert_array_equal(again[path], found[path], err_msg=path)


def test_sources_that_do_not_fit(decoder, tmp_path):
    path, theirs = decoder
    run = RunFolder.create(tmp_path / "run", {})

    def refuse(*sources, error=CheckpointError, match):
        experiment = experiment_with(*sources)
        with pytest.raises(error, match=match):
            begin(experiment, 0, run, model_of(experiment))

    refuse(Weights("decode.*", str(path)), error=ConfigError, match=r"weights 'decode.\*' .* fit no parameter")
    refuse(Weights("decoder.*", str(tmp_path / "nowhere")), match="model '.*nowhere' not found: no such file or folder")
    refuse(Weights("encoder.*", str(path)), match=r"has layout llama_hf, which fits a LlamaConfig; 'encoder.\*' is")
    config = model_of(experiment_with()).config.decoder
    part = {name: leaf for name, leaf in theirs.items() if name != "norm.scale"}
    save_safetensors(tmp_path / "part", export(part, llama.hf(config), PLAIN))
    refuse(Weights("decoder.*", str(tmp_path / "part")), match=r"parameters that no key fills: norm\.scale")
