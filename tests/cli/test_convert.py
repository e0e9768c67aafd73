"""`alm convert`: every layout there and back, adapters, shards, what lies beside the weights, and bad input."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from alm_jax.cli.main import main
from alm_jax.convert.checkpoint import shapes_of
from alm_jax.convert.layouts import LAYOUTS
from alm_jax.convert.save import export
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.apt_blip2 import blip
from alm_jax.models.clap import ClapConfig, LaionClapConfig
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.decoders.whisper import WhisperDecoderConfig, WhisperSeq2SeqConfig
from alm_jax.models.encoders.ast import AstConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.beats import BeatsConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.cnn14 import Cnn14Config
from alm_jax.models.encoders.htsat import HtsatConfig
from alm_jax.models.encoders.vit import VitConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.text.bert import BertConfig
from tests.convert.dict_file import same_bits

LLAMA = LlamaConfig(vocab_size=300, dim=16, depth=2, heads=2, kv_heads=1, mlp_dim=24)
WHISPER = WhisperConfig(mels=4, dim=16, heads=2, depth=2, positions=6)
GPT2 = Gpt2Config(vocab_size=20, dim=16, depth=2, heads=2, mlp_dim=64, positions=8)
HTSAT = HtsatConfig(mels=8, image=32, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4)
ROBERTA = BertConfig(20, 16, 2, 2, 24, positions=10, position_offset=2, token_types=1, norm_eps=1e-5)
VIT = VitConfig(size=8, patch=4, dim=16, heads=2, depth=2, mlp_dim=24, bias="qkvo")
EYE = replace(VIT, bias="qvo", norm=False)
ASKED = QFormerConfig(queries=3, hidden=16, depth=2, heads=2, mlp_dim=24, vocab_size=20, positions=8)
MODELS = {
    "cav_mae": CavMaeConfig(frames=32, dim=16, heads=2, depth=2),
    "audio_mae": AudioMaeConfig(frames=64, dim=16, heads=2, depth=2, mlp_dim=24),
    "ast_hf": AstConfig(frames=46, mels=36, dim=16, heads=2, depth=2, mlp_dim=24),
    "beats": BeatsConfig(4, 8, 16, 2, 2, 24, 4, 2, 8),
    "cnn14": Cnn14Config(mels=8, channels=(2, 2, 4, 4, 4, 4)),
    "whisper_openai": WHISPER,
    "whisper_hf": WHISPER,
    "whisper_seq2seq_openai": WhisperSeq2SeqConfig(
        WHISPER, WhisperDecoderConfig(vocab_size=20, dim=16, heads=2, depth=2, positions=6)
    ),
    "llama_hf": LLAMA,
    "gpt2_hf": GPT2,
    "bert_hf": BertConfig(vocab_size=20, dim=16, depth=2, heads=2, mlp_dim=24, positions=8),
    "htsat": HTSAT,
    "htsat_hf": HTSAT,
    "msclap": ClapConfig(audio=HTSAT, text=GPT2, dim=12),
    "clap_hf": LaionClapConfig(audio=HTSAT, text=ROBERTA, dim=12),
    "vit_hf": VIT,
    "vit_eva": EYE,
    "blip_hf": blip(LLAMA, replace(VIT, norm=False), ASKED),
    "blip": blip(LLAMA, EYE, ASKED),
}
# The other names of the same model, which one can be written in.
OTHERS = {"whisper_openai": "whisper_hf", "whisper_hf": "whisper_openai", "ast_hf": "ast_modules"}
OTHERS |= {"whisper_seq2seq_openai": "whisper_seq2seq_hf"}


def tensors_of(layout, config, dtype=ml_dtypes.bfloat16):
    """Random tensors of a model in a layout's names."""
    rng = np.random.default_rng(0)
    shapes = shapes_of(config)
    arrays = {
        path: rng.standard_normal(leaf.shape).astype(dtype if np.dtype(leaf.dtype).kind == "f" else leaf.dtype)
        for path, leaf in shapes.items()
    }
    return dict(export(arrays, LAYOUTS[layout].table(config)))


def write_model(folder, layout, config, **changes):
    """A checkpoint's folder, as it would be published: weights and the settings that they do not tell."""
    folder.mkdir(parents=True)
    tensors = tensors_of(layout, config) | changes
    save_file({key: np.array(value, order="C") for key, value in tensors.items()}, folder / "model.safetensors")
    settings = LAYOUTS[layout].settings
    heads = dict.fromkeys((LAYOUTS[layout].heads, "n_head", "qformer_num_heads"), 2)
    (folder / "config.json").write_text(json.dumps(settings(config) if settings else heads))
    return tensors


def convert(*args):
    assert main(["convert", *map(str, args)]) == 0


def read(folder, name="model.safetensors"):
    return load_file(folder / name)


@pytest.fixture
def llama(tmp_path):
    write_model(tmp_path / "llama", "llama_hf", LLAMA)
    return tmp_path / "llama"


# --- there and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", MODELS)
def test_there_and_back_bit_for_bit(layout, tmp_path, capsys):
    """As it is, through our own names, and through the other names that the model has."""
    given = write_model(tmp_path / "given", layout, MODELS[layout])
    convert(tmp_path / "given", tmp_path / "same")
    assert same_bits(read(tmp_path / "same"), given)
    convert(tmp_path / "given", tmp_path / "own", "--to", "alm")
    assert set(read(tmp_path / "own")) == set(shapes_of(MODELS[layout]))
    middle = [tmp_path / "own"]
    if layout in OTHERS:
        convert(tmp_path / "given", tmp_path / "other", "--to", OTHERS[layout])
        assert read(tmp_path / "other").keys() != given.keys()
        middle.append(tmp_path / "other")
    for number, folder in enumerate(middle):
        convert(folder, tmp_path / f"back{number}", "--to", layout)
        assert same_bits(read(tmp_path / f"back{number}"), given)
    assert capsys.readouterr().err == ""


def test_hf_and_official_are_found_for_each_model(llama, tmp_path):
    write_model(tmp_path / "whisper", "whisper_openai", WHISPER)
    convert(tmp_path / "whisper", tmp_path / "hf", "--to", "hf")
    assert "model.encoder.conv1.weight" in read(tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "whisper"
    convert(tmp_path / "hf", tmp_path / "official", "--to", "official")
    assert same_bits(read(tmp_path / "official"), read(tmp_path / "whisper"))
    convert(llama, tmp_path / "llama_official", "--to", "official")  # transformers' names are the published ones
    assert same_bits(read(tmp_path / "llama_official"), read(llama))
    write_model(tmp_path / "cnn14", "cnn14", MODELS["cnn14"])
    assert main(["convert", str(tmp_path / "cnn14"), str(tmp_path / "x"), "--to", "hf"]) == 2


def test_heads_that_nothing_tells(tmp_path, capsys):
    """Of an unusual width, and no config.json: written without one, and not at all in our own layout."""
    write_model(tmp_path / "given", "gpt2_hf", GPT2)
    (tmp_path / "given" / "config.json").unlink()
    told = f"how many heads the Gpt2 of width 16 has (put a config.json with n_head into {tmp_path / 'given'})"
    assert main(["convert", str(tmp_path / "given"), str(tmp_path / "out"), "--to", "alm"]) == 1
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
    convert(tmp_path / "given", tmp_path / "bare", "--dtype", "f32")
    assert "without a config.json: " in (said := capsys.readouterr().err) and told in said
    assert not (tmp_path / "bare" / "config.json").exists()
    (tmp_path / "given" / "config.json").write_text('{"n_head": 2}')
    convert(tmp_path / "given", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_head"] == 2


def test_a_layout_without_place(tmp_path, capsys):
    """`eva_vit_g.pth` has no bias of keys, and no norm."""
    write_model(tmp_path / "given", "vit_hf", VIT)
    assert main(["convert", str(tmp_path / "given"), str(tmp_path / "out"), "--to", "official"]) == 2
    assert "no place for blocks.attn.k.bias, norm.bias, norm.scale" in capsys.readouterr().err


def test_a_system_there_and_back(trained, tmp_path):
    convert(trained, tmp_path / "official")
    convert(tmp_path / "official", tmp_path / "own", "--to", "alm")
    convert(tmp_path / "own", tmp_path / "back", "--to", "official")
    assert same_bits(read(tmp_path / "back"), read(tmp_path / "official"))
    convert(trained, tmp_path / "direct", "--to", "alm")
    assert same_bits(read(tmp_path / "direct"), read(tmp_path / "own"))
    for part in ("encoder", "aligner"):
        convert(tmp_path / "official", tmp_path / part, "--part", part)
        assert read(tmp_path / part)


def test_tensors_that_no_parameter_takes_stay(tmp_path):
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(2)}
    given = write_model(tmp_path / "given", "llama_hf", LLAMA, **extra)
    convert(tmp_path / "given", tmp_path / "own", "--to", "alm")
    assert read(tmp_path / "own", "dead.safetensors").keys() == extra.keys()
    convert(tmp_path / "own", tmp_path / "back", "--to", "hf")
    assert same_bits(read(tmp_path / "back"), given)


def test_dtypes(llama, tmp_path, capsys):
    convert(llama, tmp_path / "f32", "--dtype", "f32")
    wide = read(tmp_path / "f32")
    assert {value.dtype.name for value in wide.values()} == {"float32"}
    assert json.loads((tmp_path / "f32" / "config.json").read_text())["dtype"] == "float32"
    convert(tmp_path / "f32", tmp_path / "back", "--dtype", "bf16")  # what came from bfloat16 goes back to the same
    assert same_bits(read(tmp_path / "back"), read(llama))
    wide["model.norm.weight"][0] = 1e6
    save_file(wide, tmp_path / "f32" / "model.safetensors")
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "f32"), str(tmp_path / "f16"), "--dtype", "f16"]) == 1
    assert "beyond the range of float16 in model.norm.weight" in capsys.readouterr().err
    assert not (tmp_path / "f16").exists()


# --- adapters ----------------------------------------------------------------------------------------------------


def test_adapters_in_and_out(trained, tmp_path):
    convert(trained, tmp_path / "adapter", "--to", "peft")
    convert(tmp_path / "adapter", tmp_path / "again")
    name = "adapter_model.safetensors"
    assert same_bits(read(tmp_path / "again", name), read(tmp_path / "adapter", name))
    told = [json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("adapter", "again")]
    assert told[0] == told[1]
    # the style of adapters inside a model
    renamed = {key.replace(".weight", ".default.weight"): x for key, x in read(tmp_path / "adapter", name).items()}
    (tmp_path / "inside").mkdir()
    save_file(renamed, tmp_path / "inside" / name)
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", tmp_path / "inside")
    convert(tmp_path / "inside", tmp_path / "outside", "--to", "peft")
    assert same_bits(read(tmp_path / "outside", name), read(tmp_path / "adapter", name))


def test_merge_and_unmerge(trained, tmp_path):
    """kernel + alpha/rank * b @ a in float32, written out; unmerged to the last bits."""
    convert(trained, tmp_path / "adapter", "--to", "peft")
    convert(trained, tmp_path / "merged", "--part", "decoder", "--merge", "--to", "hf")
    convert(trained, tmp_path / "decoder", "--part", "decoder")
    merged, parts = read(tmp_path / "merged"), read(tmp_path / "decoder")
    assert merged.keys() == {key for key in parts if "lora" not in key}
    at = "model.layers.1.self_attn.q_proj"
    a, b = (parts[f"{at}.lora_{side}.weight"] for side in "AB")
    np.testing.assert_allclose(merged[f"{at}.weight"], parts[f"{at}.weight"] + 16 / 8 * b @ a, atol=1e-6)
    assert "were added to the kernels" in (tmp_path / "merged" / "README.md").read_text()
    convert(tmp_path / "merged", tmp_path / "base", "--unmerge", tmp_path / "adapter")
    base = read(tmp_path / "base")
    assert base.keys() == merged.keys()
    for key in base:
        np.testing.assert_allclose(base[key], parts[key], atol=1e-6)
    # an adapter and its base make the whole
    convert(tmp_path / "adapter", tmp_path / "whole", "--base", tmp_path / "base", "--merge", "--to", "hf")
    for key, value in read(tmp_path / "whole").items():
        np.testing.assert_allclose(value, merged[key], atol=2e-6)


def test_bad_adapters(llama, tmp_path, capsys):
    def fails(code, *parts, args=()):
        assert main(["convert", str(llama), str(tmp_path / "x"), *map(str, args)]) == code
        err = capsys.readouterr().err
        assert all(part in err for part in parts) and err.count("\n") == 1, err
        assert not (tmp_path / "x").exists()

    fails(2, "expected a PEFT adapter", args=("--unmerge", llama))
    folder = tmp_path / "adapter"
    folder.mkdir()
    at = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    halves = {at.format(layer, "A"): np.ones((2, 16), np.float32) for layer in range(2)}
    save_file(halves, folder / "adapter_model.safetensors")
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_dora": True, "bias": "all"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    fails(1, "use_dora=True", "bias='all'", args=("--unmerge", folder))
    (folder / "adapter_config.json").write_text(json.dumps({k: settings[k] for k in list(settings)[:3]}))
    fails(1, "blocks.attn.q.lora_b", args=("--unmerge", folder))


# --- what lies beside the weights --------------------------------------------------------------------------------


def test_shards_index_config_tokenizer_and_card(llama, tmp_path):
    train_tokenizer(["a dog barks"], 300).save(llama)
    (llama / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    convert(llama, tmp_path / "out", "--max-shard-size", "5KB")
    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2 and shards == sorted(path.name for path in out.glob("*.safetensors"))
    whole = {key: value for shard in shards for key, value in read(out, shard).items()}
    assert same_bits(whole, read(llama))
    assert {key: shard for shard in shards for key in read(out, shard)} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    assert (out / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "alm_jax"
    import hashlib

    assert hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest() in card.text
    convert(out, tmp_path / "again")  # from shards to one file
    assert same_bits(read(tmp_path / "again"), whole)


def test_the_card_of_a_run_says_how_it_was_trained(trained, tmp_path):
    convert(trained, tmp_path / "out", "--to", "alm")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Experiment `sums`" in text and "| only | 3 steps |" in text and "rows.json" in text
    assert "trained from random numbers" in text


@pytest.mark.torch
def test_transformers_reads_what_is_written(llama, tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    convert(llama, tmp_path / "own", "--to", "alm")
    convert(tmp_path / "own", tmp_path / "hf", "--to", "hf", "--max-shard-size", "5KB")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype.itemsize == 2
    state = {key: value.view(dtype=__import__("torch").int16).numpy() for key, value in model.state_dict().items()}
    assert same_bits({key: value.view(ml_dtypes.bfloat16) for key, value in state.items()}, read(llama))


# --- names on the hub --------------------------------------------------------------------------------------------


def test_a_name_stands_wherever_a_path_does(llama, tmp_path, monkeypatch, capsys):
    """The Hugging Face cache, filled by hand, stands in for the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "hf" / "models--alm-test--llama"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    shutil.copytree(llama, root / "snapshots" / commit)
    convert("alm-test/llama", tmp_path / "out", "--to", "alm")
    assert commit in (tmp_path / "out" / "README.md").read_text()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == ["alm-test/llama"]
    assert main(["inspect", "alm-test/llama"]) == 0
    assert "layout llama_hf" in capsys.readouterr().out
    assert main(["convert", "alm-test/lama", str(tmp_path / "x")]) == 1
    assert "model 'alm-test/lama' not found" in capsys.readouterr().err


# --- bad input: one line with all offenders, and nothing at the destination ----------------------------------------


def safetensors_bytes(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def bad_shards(folder, tensors):
    """An index over a truncated shard, one that is absent, one outside the folder, and a key that comes twice."""
    keys = list(tensors)
    for number, held in ((1, keys[:3]), (2, [keys[0], *keys[3:5]]), (3, keys[5:7])):
        save_file({key: np.ascontiguousarray(tensors[key]) for key in held}, folder / f"{number}.safetensors")
    third = folder / "3.safetensors"
    third.write_bytes(third.read_bytes()[:-4])
    names = {key: "1.safetensors" for key in keys[:3]} | {key: "2.safetensors" for key in keys[3:5]}
    names |= {key: "3.safetensors" for key in keys[5:7]} | {keys[7]: "4.safetensors", keys[8]: "../5.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "model.safetensors").unlink()
    return [
        f"'{keys[0]}' is in more than one shard",
        "(truncated?)",
        "4.safetensors: no such file",
        "'../5.safetensors'",
    ]


def bad_keys(folder, tensors):
    """Keys that are unknown or missing, and wrong shapes and dtypes, in one file."""
    wrong = dict(tensors)
    del wrong["model.layers.1.mlp.up_proj.weight"]
    wrong["model.layers.0.self_attn.k_proj.weight"] = np.ones((16, 16), np.float32)
    wrong["model.layers.1.self_attn.o_proj.weight"] = np.ones((16, 16), np.int32)
    wrong["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    save_file({key: np.ascontiguousarray(value) for key, value in wrong.items()}, folder / "model.safetensors")
    return [
        "unknown keys in",
        "q_norm.weight",
        "keys missing from",
        "model.layers.1.mlp.up_proj.weight",
        "k_proj.weight of shape (16, 16)",
        "o_proj.weight holds int32",
    ]


def bad_offsets(folder, tensors):
    """Tensors that overlap, lie beyond the end, or have another size than their shape."""
    entry = lambda shape, *offsets: {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    header = {"a": entry([4], 0, 16), "b": entry([4], 8, 24), "c": entry([9], 24, 60), "d": entry([3], 0, 4)}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, bytes(24)))
    return ["'b' overlaps 'a'", "'c' ends at byte", "'d' has a bad entry"]


def long_header(folder, tensors):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b'{"a":')
    return ["header of 1099511627776 bytes in a file of"]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def hostile_pickle(folder, tensors):
    pytest.importorskip("torch")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Hostile()}, protocol=2))
    return ["refused: the pickle calls for 'posix.mkdir'"]


def gguf_info(name, size, kind, offset):
    return struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, size, kind, offset)


def bad_gguf(folder, tensors):
    """Types that are not read, of which one is not known at all."""
    infos = gguf_info(b"blk.0.a", 256, 17, 0) + gguf_info(b"blk.0.b", 4, 999, 0)
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + infos + bytes(512))
    return ["'blk.0.a' has type 17 (IQ2_XS), expected", "'blk.0.b' has type 999 (unknown)"]


def absurd_gguf(folder, tensors):
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))
    return ["1152921504606846976 tensors cannot be in a file of 24 bytes"]


def other_tokenizer(folder, tensors):
    train_tokenizer([f"{n} words of their own" for n in range(999)], 400).save(folder)
    return ["400", "300"]


@pytest.mark.parametrize(
    "spoil",
    [
        *(bad_shards, bad_keys, bad_offsets, long_header, hostile_pickle, bad_gguf, absurd_gguf, other_tokenizer),
    ],
)
def test_bad_input(spoil, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tensors = write_model(tmp_path / "given", "llama_hf", LLAMA)
    offenders = spoil(tmp_path / "given", tensors)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["convert", "given", "out"]) == 1
    err = capsys.readouterr().err
    assert [part for part in offenders if part not in err] == [] and err.count("\n") == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing(llama, tmp_path, capsys):
    """The limit on file sizes stands in for the disk's; the second shard hits it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        assert main(["convert", str(llama), str(tmp_path / "out"), "--dtype", "f32", "--max-shard-size", "8KB"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert "cannot" in err and "too large" in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "llama"] or not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


KILLED = """
    import sys, time
    from alm_jax.cli.main import main
    from alm_jax.convert import save
    write = save.write_safetensors
    def slow(path, tensors, metadata):
        write(path, tensors, metadata)
        print("written", flush=True)
        time.sleep(60)
    save.write_safetensors = slow
    main(["convert", *sys.argv[1:], "--max-shard-size", "5KB"])
"""


def test_a_killed_conversion_leaves_no_folder(llama, tmp_path, repo):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(llama), str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    convert(llama, tmp_path / "out")  # and what it left beside does not stand in the way
    assert same_bits(read(tmp_path / "out"), read(llama))


def test_an_occupied_destination_stays_as_it_is(llama, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(["convert", str(llama), str(tmp_path / "out")]) == 1
    assert "holds notes.txt already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    assert main(["convert", str(llama), str(llama / "config.json")]) == 1
    assert "is a file" in capsys.readouterr().err
