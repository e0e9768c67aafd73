"""Memory banks, and a model that draws clips towards them."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import alm_jax
from alm_jax import api
from alm_jax.cli.main import main
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError, ConfigError, DataError, UsageError
from alm_jax.data.captions import Captions, read_texts
from alm_jax.data.rows import read_rows
from alm_jax.data.templates import MATS
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.infer.batch import fingerprint
from alm_jax.infer.loaded import LoadedModel, Spec
from alm_jax.infer.memory import Bank, build_bank, gap_variance, identity, memory_of
from alm_jax.models.aligners.mapper import MapperConfig
from alm_jax.models.alm import build
from alm_jax.models.clap import ClapConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.ltu import LAYOUT as LTU_LAYOUT
from alm_jax.models.mats import LAYOUT, mats
from alm_jax.models.santa import SantaConfig, noise_variance, santa

WORDS = train_tokenizer(["A dog barks and a man speaks! Rain falls."], 300)
TEXTS = [f"A {what} {does}." for what in ("dog", "cat", "man") for does in ("barks", "walks", "speaks", "sleeps")]
HTSAT = HtsatConfig(embed_dim=8, depths=(1, 1), heads=(1, 2))
CLAP = ClapConfig(HTSAT, Gpt2Config(300, dim=24, depth=1, heads=2, mlp_dim=32, positions=80), dim=16)  # text 24 wide
LLAMA = LlamaConfig(vocab_size=300, dim=16, depth=1, heads=2, kv_heads=2, mlp_dim=24)
SANTA = SantaConfig(clusters=2, neighbours=3)
NOISE = np.random.default_rng(0).normal(size=9000).astype(np.float32) / 4


def loaded(seed: int = 0, towers: str = "both") -> LoadedModel:
    config = mats(
        LLAMA, ClapEncoderConfig(CLAP, towers), MapperConfig(clip_tokens=2, tokens=2, width=16, depth=1), SANTA
    )
    like = tree.flatten(tree.abstract(lambda key: build(config, key)))
    rng = np.random.default_rng(seed)
    arrays = {path: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for path, leaf in like.items()}
    arrays = {p: jnp.abs(leaf) + 0.5 if p.endswith(".var") else leaf for p, leaf in arrays.items()}
    return LoadedModel(Spec(config, LAYOUT, MATS), arrays, WORDS, encoder_tokenizer=WORDS)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return loaded()


@pytest.fixture(scope="module")
def bank(model) -> Bank:
    return build_bank(model, TEXTS)


def test_a_bank_holds_the_embeddings_of_its_texts(model, bank, tmp_path):
    ids = np.stack([Captions(WORDS, 77, " ").numpy(text) for text in TEXTS])
    expected = model._model.encoder.text(jnp.maximum(ids, 0), jnp.asarray(ids >= 0, jnp.int32))
    expected /= jnp.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(bank.embeddings, expected, atol=1e-5)  # batched otherwise
    bank.save(tmp_path / "bank.safetensors")
    again = Bank.open(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(again.embeddings, bank.embeddings)
    assert replace(again, embeddings=None) == replace(bank, embeddings=None)
    assert set(bank.clap) == {"audio", "text"} and bank.count == 12


def test_texts_are_drawn_by_the_seed(model, bank):
    done = []
    small = build_bank(model, [*TEXTS, TEXTS[0], "  "], size=5, progress=lambda *told: done.append(told))
    np.testing.assert_array_equal(small.embeddings, build_bank(model, TEXTS, size=5).embeddings)
    assert done[-1] == (5, 5) and (small.count, small.texts) == (12, bank.texts)
    places = [np.abs(bank.embeddings - row).max(1).argmin() for row in small.embeddings]
    assert sorted(set(places)) == places
    assert np.abs(build_bank(model, TEXTS, size=5, seed=1).embeddings - small.embeddings).max() > 0.01


def test_a_clip_is_drawn_towards_the_texts(model, bank, tmp_path):
    memory = memory_of(bank, model, SANTA)
    drawn = model.with_memory(memory, SANTA)
    (before,), (after,) = model.encode([NOISE]), drawn.encode([NOISE])
    np.testing.assert_allclose(after[:, 0, 0], santa(before[:, 0, 0], memory, SANTA), atol=1e-5)
    assert np.abs(after - before).max() > 0.01 and model.memory is None
    np.testing.assert_array_equal(drawn.embed_audio([NOISE]), model.embed_audio([NOISE]))
    # One clip, or among others: the same answer; and answers to files note what they were made with.
    (alone,), (_, among) = drawn.encode([NOISE]), drawn.encode([NOISE[:5000], NOISE])
    np.testing.assert_allclose(alone, among, atol=1e-5)
    assert (
        len({fingerprint(model), fingerprint(drawn), fingerprint(model.with_memory(memory, replace(SANTA, share=1.0)))})
        == 3
    )
    assert isinstance(drawn.generate("What is heard?", NOISE, max_new_tokens=3), str)


def test_another_clap_is_refused(model, bank):
    other = loaded(seed=1)
    with pytest.raises(
        CheckpointError, match=r"bank\.safetensors was made with another CLAP than this model's: build one"
    ):
        memory_of(bank, other, SANTA, "bank.safetensors")
    # A model that only hears knows its own by the audio tower; in bfloat16 the CLAP is the same one.
    listens = LoadedModel(
        replace(model.spec, model=replace(model.config, encoder=ClapEncoderConfig(CLAP, "audio"))),
        {path: leaf for path, leaf in model.arrays.items() if not path.startswith("encoder.text.")},
        WORDS,
    )
    assert memory_of(bank, listens, SANTA).bank.shape == (12, 16)
    with pytest.raises(UsageError, match="this model has no text tower: build the memory with a model"):
        listens.embed_text(["a dog"])
    halves = {path: leaf.astype(jnp.bfloat16) for path, leaf in model.arrays.items()}
    assert identity(LoadedModel(model.spec, halves, WORDS, encoder_tokenizer=WORDS)) == bank.clap
    statistics = {path: leaf + 1 if path.endswith((".mean", ".var")) else leaf for path, leaf in model.arrays.items()}
    assert identity(LoadedModel(model.spec, statistics, WORDS)) == bank.clap


def test_models_without_a_clap_take_no_memory(bank):
    from tests.infer.test_loaded import LLAMA as DECODER
    from tests.infer.test_loaded import CavMaeConfig, ltu

    config = ltu(DECODER, CavMaeConfig(frames=32, dim=16, heads=2, depth=2))
    arrays = tree.flatten(build(config, jax.random.key(0)))
    with pytest.raises(UsageError, match="listens through no CLAP"):
        memory_of(bank, LoadedModel(Spec(config, LTU_LAYOUT, MATS), arrays, WORDS), SANTA)


def test_too_little_to_remember(model, bank, tmp_path):
    with pytest.raises(DataError, match="no texts to remember"):
        build_bank(model, ["", " "])
    with pytest.raises(ConfigError, match=r"santa\.clusters is 100 and the memory holds 12 texts"):
        memory_of(bank, model, SantaConfig())
    with pytest.raises(UsageError, match="a memory of 0 texts"):
        build_bank(model, TEXTS, size=0)
    with pytest.raises(CheckpointError, match="no such memory bank; make it with alm memory build"):
        Bank.open(tmp_path / "nothing.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError):
        Bank.open(tmp_path / "torn.safetensors")


def test_long_texts_and_exclamation_marks(model):
    """A text of more than 77 tokens loses its end; a "!" is read like any other token where padding is another id."""
    long = model.embed_text(["a dog barks and " * 30, "a dog barks and " * 40, "a dog barks"])
    np.testing.assert_allclose(long[0], long[1], atol=1e-5)
    assert np.abs(long[0] - long[2]).max() > 0.01 and np.isfinite(model.embed_text(["Stop! it rings!"])).all()


@pytest.fixture
def rows(tmp_path):
    told = []
    for i, text in enumerate(TEXTS[:4]):
        soundfile.write(tmp_path / f"{i}.wav", NOISE * (i + 1) / 4, 44100)
        told.append({"instruction": "What?", "audio_id": f"{i}.wav", "caption": text, "output": text})
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in told))
    return tmp_path / "rows.jsonl"


def test_the_gap_between_clips_and_captions(model, rows):
    clips, texts = model.embed_audio([rows.parent / f"{i}.wav" for i in range(4)]), model.embed_text(TEXTS[:4])
    np.testing.assert_allclose(gap_variance(model, read_rows(rows)), noise_variance(clips, texts), rtol=1e-4)
    two = [gap_variance(model, read_rows(rows), pairs=2, seed=seed) for seed in (0, 0, 3)]
    assert two[0] == two[1] != two[2]
    assert read_texts(rows) == TEXTS[:4]


def test_commands(model, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "_load", lambda *args: model)
    monkeypatch.setattr(api, "clap_by_itself", lambda name: False)
    out, texts = tmp_path / "bank.safetensors", tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    build = ["memory", "build", str(texts), "--model", "run", "--out", str(out)]
    assert main([*build, "--size", "10"]) == 0 and capsys.readouterr().out == f"10 of 12 texts in {out}\n"
    first = out.read_bytes()
    assert main([*build, "--size", "10"]) == 0 and out.read_bytes() == first
    capsys.readouterr()
    assert main(["memory", "inspect", str(out), "--clusters", "3"]) == 0
    said = capsys.readouterr().out
    assert "10 of 12 texts" in said and "3 clusters of" in said and "0 empty" in said
    assert main(["memory", "noise", str(rows), "--model", "run"]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(gap_variance(model, read_rows(rows)), rel=1e-3)
    ask = ["ask", "run", "--audio", str(rows.parent / "0.wav"), "What?", "--max-new-tokens", "2"]
    assert main([*ask, "--memory", str(out)]) == 0
    assert main([*ask, "--memory", str(out), "--santa", "clusters=99"]) == 2
    assert "santa.clusters is 99 and the memory holds 10 texts" in capsys.readouterr().err
    asked = ["eval", "run", "--benchmark", "scenes", "--memory", str(out), "--santa", "clusters=99", "--out", "found"]
    assert main(asked) == 2 and "santa.clusters is 99 and the memory holds 10 texts" in capsys.readouterr().err
    assert main([*ask, "--santa", "share=1"]) == 2 and "give one as memory" in capsys.readouterr().err
    assert main(["memory", "bulid"]) == 2 and "did you mean 'build'?" in capsys.readouterr().err
    with_memory = alm_jax.load("run", memory=out, santa={"share": 1.0, "clusters": 0})
    assert (with_memory.config.santa.share, with_memory.memory.means.shape) == (1.0, (1, 16))
