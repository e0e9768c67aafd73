"""A loaded CLAP against its model called directly, from a published layout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alm_jax
from alm_jax.audio.io import write_audio
from alm_jax.cli.main import main
from alm_jax.convert import clap
from alm_jax.convert.names import PLAIN
from alm_jax.convert.save import export, save_safetensors
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError, DataError, UsageError
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.eval.retrieval import class_embeddings
from alm_jax.infer.memory import Bank, identity
from alm_jax.models.clap import Clap, ClapConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.encoders.htsat import HtsatConfig

TINY = ClapConfig(
    audio=HtsatConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), classes=3),
    text=Gpt2Config(300, dim=64, depth=1, heads=1, mlp_dim=256, positions=80),
    dim=12,
)
TEXTS = ["a dog barks", "rain falls on a roof while a siren wails"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder, model): MS-CLAP's layout at toy size, with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("clap")
    like = tree.abstract(lambda key: Clap(TINY, key))
    rng = np.random.default_rng(0)
    values = {path: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32) for path, leaf in tree.flatten(like).items()}
    values = {path: np.abs(leaf) + 0.1 if path.endswith(".var") else leaf for path, leaf in values.items()}
    save_safetensors(folder, export(values, clap.official(TINY), PLAIN))
    train_tokenizer(TEXTS, 300).save(folder)
    return folder, tree.unflatten(like, {path: jnp.asarray(leaf) for path, leaf in values.items()})


@pytest.fixture(scope="module")
def loaded(published):
    return alm_jax.load_clap(published[0])


def test_embeddings_are_the_models_own(published, loaded):
    _, model = published
    waves = [np.random.default_rng(i).normal(size=44100 * (1 + 2 * i)).astype(np.float32) for i in range(3)]
    frames = jnp.stack([loaded.config.frontend.numpy(wave) for wave in waves])
    expected = jax.jit(lambda model, x: model.encode_audio(x, normalise=True))(model, frames)
    found = loaded.embed_audio(waves, batch_size=2)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32, another batch
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(loaded.scale, np.exp(model.logit_scale[0]), rtol=1e-6)


def test_texts_end_as_ms_claps_do_whatever_is_beside_them(published, loaded):
    _, model = published
    words = loaded.tokenizer
    for text, found in zip(TEXTS, loaded.embed_text(TEXTS)):
        opening = [] if words.bos_id is None else [words.bos_id]  # GPT-2's has none
        ids = jnp.array([[*opening, *words.encode(text + " "), words.eos_id]])
        np.testing.assert_allclose(found, model.encode_text(ids, jnp.ones_like(ids), normalise=True)[0], atol=1e-5)
        np.testing.assert_allclose(found, loaded.embed_text([text])[0], atol=1e-5)


def test_a_long_text_loses_its_end(loaded):
    long = " ".join(["siren"] * 200)
    np.testing.assert_allclose(*loaded.embed_text([long, long + " and a dog"]), atol=1e-6)


def test_what_is_refused(published, loaded, tmp_path):
    with pytest.raises(UsageError, match="no clips"):
        loaded.embed_audio([])
    with pytest.raises(UsageError, match="expected a list"):
        loaded.embed_text("a dog")
    with pytest.raises(DataError, match="a caption is empty"):
        loaded.embed_text([" "])
    with pytest.raises(UsageError, match="is no run: only a run has a best checkpoint"):
        alm_jax.load_clap(published[0], which="best")
    part = {"h.0.attn.c_attn.weight": (2, 6), "h.0.mlp.c_fc.weight": (2, 8), "wpe.weight": (3, 2)}
    save_safetensors(tmp_path / "gpt2", [(name, np.zeros(shape, np.float32)) for name, shape in part.items()])
    with pytest.raises(CheckpointError, match="has the layout gpt2_hf; expected a CLAP"):
        alm_jax.load_clap(tmp_path / "gpt2")


def test_benchmarks_of_a_clap_by_itself(published, loaded, tmp_path, capsys):
    """Zero-shot classes and retrieval, as its embeddings give them; a benchmark that asks is refused."""
    lines = ["file,label,caption"]
    waves = []
    for i in range(4):
        waves.append(np.random.default_rng(i).normal(size=8000).astype(np.float32) / 4)
        write_audio(tmp_path / f"{i}.wav", waves[-1], 44100)
        lines.append(f"{i}.wav,{('dog', 'rain')[i % 2]},{('a dog', 'rain', 'a siren', 'the roof')[i]}")
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    args = ["eval", str(published[0]), "--data", str(tmp_path / "clips.csv"), "--out", str(tmp_path / "out")]
    assert main([*args, "--benchmark", "esc50,clotho_retrieval"]) == 0
    told = lambda name, file: (tmp_path / "out" / name / file).read_text()
    vectors = np.concatenate([loaded.embed_audio([tmp_path / f"{i}.wav"]) for i in range(4)])
    kept = [json.loads(line)["prediction"] for line in told("esc50", "predictions.jsonl").splitlines()]
    np.testing.assert_allclose(kept, vectors, rtol=1e-6)  # seven digits are kept
    classes = class_embeddings(loaded, ["dog", "rain"])
    right = (vectors @ classes.T).argmax(1) == [0, 1, 0, 1]
    assert json.loads(told("esc50", "metrics.json"))["metrics"]["accuracy"] == right.mean()
    texts = loaded.embed_text(["a dog", "rain", "a siren", "the roof"])
    first = (vectors @ texts.T).argmax(1) == np.arange(4)
    found = json.loads(told("clotho_retrieval", "metrics.json"))
    assert found["how"] == "embed" and found["metrics"]["audio_to_text_r1"] == first.mean()
    before = (tmp_path / "out" / "report.html").read_bytes()
    assert main([*args, "--benchmark", "esc50,clotho_retrieval"]) == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    capsys.readouterr()
    assert main([*args, "--benchmark", "clotho"]) == 2
    assert "clotho gets answers by generate, and a CLAP by itself only embeds" in capsys.readouterr().err
    assert main([*args, "--benchmark", "esc50", "--how", "generate"]) == 2
    assert main([*args, "--benchmark", "esc50", "--memory", "x"]) == 2
    assert "has no use for --base, --memory and --santa" in capsys.readouterr().err


def test_a_memory_of_a_clap_by_itself(published, loaded, tmp_path, capsys):
    texts, out = tmp_path / "texts.txt", tmp_path / "bank.safetensors"
    texts.write_text("\n".join(TEXTS))
    assert main(["memory", "build", str(texts), "--model", str(published[0]), "--out", str(out)]) == 0
    assert f"2 of 2 texts in {out}" in capsys.readouterr().out
    bank = Bank.open(out)
    np.testing.assert_array_equal(bank.embeddings, loaded.embed_text(TEXTS))
    assert bank.clap == identity(loaded) and set(bank.clap) == {"audio", "text"}
