"""APT and MATS as they are published: their own checkpoints without what was frozen, over the models that hold it."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import alm_jax
from alm_jax.cli.main import main
from alm_jax.convert import apt_blip2, clap, llama
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.layouts import LAYOUTS, config_of, detect
from alm_jax.convert.save import export
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError, UsageError
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.infer.sampling import APT_SAMPLING, MATS_SAMPLING
from alm_jax.models import apt, mats
from alm_jax.models.aligners.mapper import MapperConfig
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.alm import build
from alm_jax.models.apt_blip2 import blip
from alm_jax.models.clap import Clap, ClapConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.encoders.vit import VitConfig

VOCAB = 300
LLAMA = LlamaConfig(VOCAB, dim=16, depth=2, heads=2, kv_heads=2, mlp_dim=24)
HTSAT = HtsatConfig(embed_dim=8, depths=(1, 2), heads=(1, 2), classes=3)
CLAP = ClapConfig(audio=HTSAT, text=Gpt2Config(60, dim=16, depth=1, heads=2, mlp_dim=64, positions=80), dim=12)
SYSTEMS = {
    "apt": apt.apt(
        LLAMA,
        AudioMaeConfig(frames=32, dim=16, heads=2, depth=2, mlp_dim=24, classes=3),
        QFormerConfig(queries=3, hidden=16, heads=2, depth=2, mlp_dim=24, vocab_size=40, positions=140),
    ),
    "mats": mats.mats(
        replace(LLAMA, lora=replace(mats.LORA, rank=2, alpha=8.0)),
        ClapEncoderConfig(CLAP),
        MapperConfig(clip_tokens=2, tokens=3, width=16, depth=2, heads=8),
    ),
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz?"]
NOISE = np.random.default_rng(0).normal(size=12000).astype(np.float32) / 4


def randomised(make, key=0):
    like = tree.abstract(make)
    leaves = tree.flatten(like)
    rng = np.random.default_rng(key)
    draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    return {path: np.abs(draw(leaf)) + 0.5 if "var" in path else draw(leaf) for path, leaf in leaves.items()}


def write(folder, tensors, settings=None, words=()):
    folder.mkdir()
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "model.safetensors")
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    if words:
        (folder / "vocab.txt").write_text("\n".join(words))
    return folder


@pytest.fixture(scope="module", params=SYSTEMS)
def published(request, tmp_path_factory):
    """(name, its folder, folders of its bases, all of its parameters)."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    config = SYSTEMS[name]
    arrays = randomised(lambda key: build(config, key))
    layout = LAYOUTS[name]
    tensors = dict(export(arrays, layout.table(config), layout.style))
    kept = lambda key: "lora" in key or not key.startswith(("llm_model.", "llama_model."))
    if name == "apt":
        frozen = {"audio_encoder.model.pos_embed"}
        # Another encoder, but for the positions: what the system's own checkpoint holds is taken from there.
        encoder = {k.removeprefix("audio_encoder.model."): v for k, v in tensors.items() if "audio_encoder." in k}
        encoder = {key: value if key == "pos_embed" else value + 1 for key, value in encoder.items()}
        settings = {"num_heads": 2, "num_attention_heads": 2, "qformer_num_heads": 2}
    else:
        frozen = {key for key in tensors if key.startswith("audio_encoder.") and ".running_" not in key}
        whole = randomised(lambda key: Clap(CLAP, key), 1)
        whole |= {p.removeprefix("encoder."): leaf for p, leaf in arrays.items() if p.startswith("encoder.")}
        encoder = dict(export(whole, clap.official(CLAP)))
        settings = {"n_head": 2}
    own = write(folder / "own", {k: v for k, v in tensors.items() if kept(k) and k not in frozen}, settings, WORDS)
    decoder = {p.removeprefix("decoder."): leaf for p, leaf in arrays.items() if p.startswith("decoder.")}
    decoder = {path: leaf for path, leaf in decoder.items() if "lora" not in path}
    plain = replace(config.decoder, lora=None)
    vicuna = write(folder / "vicuna", dict(export(decoder, llama.hf(plain))), llama.to_hf_config(plain))
    train_tokenizer(["What is heard? It is a dog, and a cat."], VOCAB).save(vicuna)
    return name, own, [vicuna, write(folder / "encoder", encoder, settings)], arrays


def test_a_published_system_over_its_bases(published, tmp_path, capsys):
    name, own, bases, arrays = published
    file = open_tensors(own / "model.safetensors")
    assert detect(file.keys()) == name
    model = alm_jax.load(own, base=bases)
    assert model.config == SYSTEMS[name]
    assert model.spec.sampling == (APT_SAMPLING if name == "apt" else MATS_SAMPLING)
    for path, leaf in model.arrays.items():
        np.testing.assert_array_equal(leaf, arrays[path], err_msg=path)
    # Written whole, it needs nothing more, and answers as before.
    options = {"max_new_tokens": 5}
    answer = model.generate("what is it?", (NOISE, 32000), **options)
    assert main(["convert", str(own), str(tmp_path / "out"), *(f"--base={base}" for base in bases)]) == 0
    again = alm_jax.load(tmp_path / "out")
    assert again.generate("what is it?", (NOISE, 32000), **options) == answer
    # And back, bit for bit.
    tensors = dict(export(model.arrays, LAYOUTS[name].table(model.config), LAYOUTS[name].style))
    for key, value in load_file(own / "model.safetensors").items():
        np.testing.assert_array_equal(tensors[key], value, err_msg=key)
    capsys.readouterr()
    assert main(["inspect", str(own)]) == 0 and name in capsys.readouterr().out


def test_the_aligner_listens_to_the_question(published):
    name, own, bases, _ = published
    model = alm_jax.load(own, base=bases)
    heard = model.encode([(NOISE, 32000)])
    rows = [model.prompt(question, heard) for question in ("what is it?", "a dog?")]
    assert [bool(row.aligner_text) for row in rows] == [name == "apt"] * 2
    if name == "mats":
        tokens = rows[0].tokens[rows[0].audio_index < 0]
        assert model.tokenizer.decode(tokens) == "USER: <Speech></Speech> what is it?\nASSISTANT:"


def test_what_is_missing_is_said(published):
    name, own, bases, _ = published
    with pytest.raises(CheckpointError, match="it lacks its LLaMA"):
        alm_jax.load(own, base=bases[1:])
    if name == "apt":
        with pytest.raises(CheckpointError, match="it lacks its encoder"):
            alm_jax.load(own, base=bases[:1])


def test_apt_over_instructblip(published, tmp_path, capsys):
    """APT-BLIP-2: InstructBLIP is its base in the place of Vicuna, and brings eyes; no other system takes it."""
    name, own, (vicuna, encoder), arrays = published
    asked = replace(SYSTEMS["apt"].aligner, dim=16, vocab_size=40, feature_norm_eps=1e-6)
    eye = VitConfig(size=8, patch=4, dim=16, heads=2, depth=1, mlp_dim=24, bias="qkvo", norm=False)
    config = blip(LLAMA, eye, asked)
    seeing = randomised(lambda key: build(config, key), 2)
    base = write(tmp_path / "blip", dict(export(seeing, apt_blip2.hf(config))), apt_blip2.to_hf_config(config))
    train_tokenizer(["What is heard? It is a dog, and a cat."], VOCAB).save(base)
    if name != "apt":
        with pytest.raises(UsageError, match=r"sees, and .* is no system that does: leave it out"):
            alm_jax.load(own, base=[base, vicuna, encoder])
        return
    model = alm_jax.load(own, base=[base, encoder])
    assert model.config == replace(SYSTEMS["apt"], decoder=LLAMA, vision=config.vision)
    expected = arrays | seeing
    for path, leaf in model.arrays.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    scores = model.rank("what is it?", ["a dog", "a cat"], (NOISE, 32000), images=[pixels])
    assert main(["convert", str(own), str(tmp_path / "out"), f"--base={base}", f"--base={encoder}", "--to", "alm"]) == 0
    again = alm_jax.load(tmp_path / "out").rank("what is it?", ["a dog", "a cat"], (NOISE, 32000), images=[pixels])
    assert again == pytest.approx(scores, abs=1e-6)


def test_sizes_of_the_published_keys(published):
    name, own, _, _ = published
    told = config_of(open_tensors(own / "model.safetensors"), name)
    steps = {"steps": told.aligner.steps} if name == "apt" else {}  # of the encoder, whose positions are elsewhere
    assert told.aligner == replace(SYSTEMS[name].aligner, **steps)
    assert jax.tree.leaves(told.decoder.lora) == jax.tree.leaves(SYSTEMS[name].decoder.lora)
