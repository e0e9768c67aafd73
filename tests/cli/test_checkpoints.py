"""`alm inspect` and `alm convert` on a run and on the layouts that other libraries write."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alm_jax.cli.main import main
from alm_jax.train.run import load_run


def table(text):
    """Cells of each line of a printed table, by the first."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {line[0]: line[1:] for line in lines}


def llama_tensors(dtype=np.float32):
    """A LLaMA of two layers under `transformers`' names; 4 heads of width 2."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (12, 8), "model.norm.weight": (8,), "lm_head.weight": (12, 8)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (6, 8) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (8, 6), f"{at}.self_attn.rotary_emb.inv_freq": (1,)}
        shapes |= {f"{at}.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture
def llama(tmp_path):
    """A checkpoint folder of `llama_tensors`."""
    save_file(llama_tensors(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_inspect_a_run(trained, monkeypatch, capsys, caplog):
    monkeypatch.chdir(trained.parent)
    assert main(["inspect", trained.name]) == 0
    out, err = capsys.readouterr()
    assert err == "" and not caplog.records
    rows = table(out)
    assert rows["decoder.blocks.attn.q.kernel"] == ["2 x 16 x 16", "float32", "layers, embed, heads", "yes", "512"]
    assert rows["encoder.pos_embed"][2:] == ["position, embed", "", "256"]
    arrays = load_run(trained).arrays
    assert set(arrays) == set(rows) - {"parameter"}
    decoder = sum(leaf.size for path, leaf in arrays.items() if path.startswith("decoder."))
    total = sum(leaf.size for leaf in arrays.values())
    assert f"decoder: {decoder:,} values, {4 * decoder / 1e6:.1f} MB, {decoder:,} train (100.00%)" in out
    assert f"total: {total:,} values, 0.1 MB, {decoder:,} train ({decoder / total:.2%})" in out
    assert "stage 0 only: checkpoints at steps" in out and "validation loss" in out
    assert main(["inspect", str(trained), "--stage", "1"]) == 2
    assert "--stage 1: the run has stages 0 to 0" in capsys.readouterr().err


def test_inspect_a_checkpoint_of_a_known_layout(llama, capsys):
    assert main(["inspect", str(llama)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{llama}: layout llama_hf\n")
    rows = table(out)
    assert rows["model.layers.{0..1}.self_attn.q_proj.weight"] == ["8 x 8", "float32", "blocks.attn.q.kernel", "128"]
    assert rows["lm_head.weight"][2] == "head.kernel"
    assert rows["model.layers.{0..1}.self_attn.rotary_emb.inv_freq"][2] == "dead"
    sizes = {key: value.size for key, value in llama_tensors().items()}
    assert f"total: {sum(sizes.values()):,} values" in out
    assert f"dead: {sum(size for key, size in sizes.items() if 'inv_freq' in key)} values" in out
    assert main(["inspect", str(llama), "--all"]) == 0
    assert set(sizes) <= set(table(capsys.readouterr().out))


def test_inspect_shows_what_no_rule_knows(tmp_path, capsys):
    save_file(
        llama_tensors() | {"model.layers.0.self_attn.q_norm.weight": np.ones(2, np.float32)}, tmp_path / "a.safetensors"
    )
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    out = capsys.readouterr().out
    assert table(out)["model.layers.0.self_attn.q_norm.weight"][2] == "unmapped"
    assert "unmapped: 2 values" in out


def test_inspect_an_unknown_layout(tmp_path, capsys):
    save_file({"a.0.weight": np.ones((2, 3), ml_dtypes.bfloat16)}, tmp_path / "a.safetensors")
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "unknown checkpoint layout" in out
    assert table(out)["a.0.weight"] == ["2 x 3", "bfloat16", "", "6"]


def test_inspect_what_cannot_be_read(tmp_path, capsys):
    (tmp_path / "half.safetensors").write_bytes((10**6).to_bytes(8, "little") + b'{"a"')
    for path, message in ((tmp_path / "half.safetensors", "half.safetensors"), (tmp_path / "no", "not found")):
        assert main(["inspect", str(path)]) == 1
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


@pytest.mark.golden
def test_packed_tensors_name_all_their_parameters(golden_ltu, capsys):
    assert main(["inspect", str(golden_ltu / "ltu_tiny.safetensors")]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["base_model.model.model.audio_encoder.blocks_a.{0..10}.attn.qkv.weight"][2] == (
        "encoder.blocks.attn.{q,k,v}.kernel"
    )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_convert_keeps_every_bit(tmp_path, dtype, capsys):
    save_file(llama_tensors(dtype), tmp_path / "model.safetensors")
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'model.safetensors'}\n"
    written = load_file(tmp_path / "out" / "model.safetensors")
    given = llama_tensors(dtype)
    assert written.keys() == given.keys()
    assert all(written[key].dtype == dtype and np.array_equal(written[key], given[key]) for key in given)


@pytest.mark.golden
def test_convert_the_published_style_keeps_every_bit(golden_ltu, tmp_path):
    source = golden_ltu / "ltu_tiny.safetensors"
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    given, written = load_file(source), load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == given.keys()
    assert all(written[key].tobytes() == given[key].tobytes() for key in given)


def test_convert_between_layouts_of_whisper(tmp_path):
    """OpenAI's names to `transformers`': the pairs are those of transformers' conversion script."""
    rng = np.random.default_rng(0)
    pairs = {
        "encoder.conv1.weight": ("model.encoder.conv1.weight", (8, 4, 3)),
        "encoder.conv1.bias": ("model.encoder.conv1.bias", (8,)),
        "encoder.conv2.weight": ("model.encoder.conv2.weight", (8, 8, 3)),
        "encoder.conv2.bias": ("model.encoder.conv2.bias", (8,)),
        "encoder.positional_embedding": ("model.encoder.embed_positions.weight", (5, 8)),
        "encoder.ln_post.weight": ("model.encoder.layer_norm.weight", (8,)),
        "encoder.ln_post.bias": ("model.encoder.layer_norm.bias", (8,)),
    }
    block = {
        "attn.query.weight": ("self_attn.q_proj.weight", (8, 8)),
        "attn.query.bias": ("self_attn.q_proj.bias", (8,)),
        "attn.key.weight": ("self_attn.k_proj.weight", (8, 8)),
        "attn.value.weight": ("self_attn.v_proj.weight", (8, 8)),
        "attn.value.bias": ("self_attn.v_proj.bias", (8,)),
        "attn.out.weight": ("self_attn.out_proj.weight", (8, 8)),
        "attn.out.bias": ("self_attn.out_proj.bias", (8,)),
        "attn_ln.weight": ("self_attn_layer_norm.weight", (8,)),
        "attn_ln.bias": ("self_attn_layer_norm.bias", (8,)),
        "mlp.0.weight": ("fc1.weight", (32, 8)),
        "mlp.0.bias": ("fc1.bias", (32,)),
        "mlp.2.weight": ("fc2.weight", (8, 32)),
        "mlp.2.bias": ("fc2.bias", (8,)),
        "mlp_ln.weight": ("final_layer_norm.weight", (8,)),
        "mlp_ln.bias": ("final_layer_norm.bias", (8,)),
    }
    for layer in range(3):
        names = {f"encoder.blocks.{layer}.{a}": (f"model.encoder.layers.{layer}.{b}", s) for a, (b, s) in block.items()}
        pairs |= names
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, (_, shape) in pairs.items()}
    save_file(given | {"decoder.ln.weight": np.ones(3, np.float32)}, tmp_path / "whisper.safetensors")
    assert main(["convert", str(tmp_path / "whisper.safetensors"), str(tmp_path / "hf"), "--to", "whisper_hf"]) == 0
    written = load_file(tmp_path / "hf" / "model.safetensors")
    assert written.keys() == {theirs for theirs, _ in pairs.values()}
    assert all(np.array_equal(written[theirs], given[ours]) for ours, (theirs, _) in pairs.items())


def test_convert_a_run_and_its_parts(trained, tmp_path, capsys):
    arrays = load_run(trained).arrays
    assert main(["convert", str(trained), str(tmp_path / "whole")]) == 0
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    kernel = np.asarray(arrays["decoder.blocks.attn.q.kernel"])
    at = "base_model.model."  # as the published files, which PEFT wrapped
    assert np.array_equal(whole[f"{at}model.layers.1.self_attn.q_proj.weight"], kernel[1].T)
    assert np.array_equal(whole[f"{at}model.audio_proj.1.weight"], np.asarray(arrays["aligner.proj.kernel"]).T)
    assert sum(value.size for value in whole.values()) == sum(leaf.size for leaf in arrays.values())

    assert main(["convert", str(trained), str(tmp_path / "decoder"), "--part", "decoder"]) == 0
    decoder = load_file(tmp_path / "decoder" / "model.safetensors")
    assert decoder.keys() == {
        re.sub(r"(lora_[AB])\.default", r"\1", key.removeprefix(at)) for key in whole if "audio_" not in key
    }
    assert capsys.readouterr().err == ""


def test_convert_the_adapter_of_a_run(trained, tmp_path):
    assert main(["convert", str(trained), str(tmp_path / "out"), "--to", "peft"]) == 0
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    at = "base_model.model.model.layers"
    assert adapter.keys() == {
        f"{at}.{layer}.self_attn.{name}_proj.lora_{side}.weight" for layer in (0, 1) for name in "qv" for side in "AB"
    }
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (8, 16.0, ["q_proj", "v_proj"])


def test_convert_mistakes(llama, trained, tmp_path, capsys):
    def fails(code, message, *args):
        assert main(["convert", *map(str, args)]) == code
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1

    fails(2, "takes a part of a system", llama, tmp_path / "a", "--part", "decoder")
    fails(2, "--to whisper_hf: ", llama, tmp_path / "a", "--to", "whisper_hf")
    fails(2, "has no LoRA adapters", llama, tmp_path / "a", "--to", "peft")
    fails(2, "did you mean 'whisper_hf'", llama, tmp_path / "a", "--to", "whisper")
    fails(2, "--merge: ", llama, tmp_path / "a", "--merge")
    fails(2, "--max-shard-size many: expected a size", llama, tmp_path / "a", "--max-shard-size", "many")
    fails(2, "is a run, which has its own base", trained, tmp_path / "a", "--base", llama)
    fails(1, "holds model.safetensors already", llama, llama.parent)
    fails(1, "not found", tmp_path / "nothing", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    broken = llama_tensors()
    del broken["model.layers.1.mlp.up_proj.weight"]
    save_file(broken, tmp_path / "broken.safetensors")
    fails(1, "keys missing from", tmp_path / "broken.safetensors", tmp_path / "a")
    save_file(llama_tensors() | {"extra.weight": np.ones(2, np.float32)}, tmp_path / "more.safetensors")
    fails(1, "extra.weight", tmp_path / "more.safetensors", tmp_path / "a")
