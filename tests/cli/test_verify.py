"""`alm verify` against `transformers`, whose models write the checkpoints here themselves."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alm_jax.cli.main import main

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
WHISPER = {"d_model": 32, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 40, "pad_token_id": 0}
WHISPER |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
WHISPER |= {"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 10}
AST = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
AST |= {"max_length": 46, "num_mel_bins": 36, "time_stride": 10, "frequency_stride": 8}


def made(name, **settings):
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


MODELS = {
    "LlamaForCausalLM": {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2},
    "Qwen2ForCausalLM": {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "GPT2LMHeadModel": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 12},
    "BertModel": {**SIZES, "num_attention_heads": 4, "max_position_embeddings": 12},
    "RobertaModel": {**SIZES, "num_attention_heads": 4, "max_position_embeddings": 14},
    "WhisperForConditionalGeneration": WHISPER,
    "ASTForAudioClassification": AST,
}


@pytest.fixture
def llama(tmp_path):
    made("LlamaForCausalLM", **MODELS["LlamaForCausalLM"]).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("name", MODELS)
def test_models_that_transformers_wrote(name, tmp_path, capsys):
    made(name, **MODELS[name]).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "model")]) == 0
    out, err = capsys.readouterr()
    assert err == "" and re.search(r"largest error \d.\d\de-\d\d at .*; none above 0.0001", out)
    lines = 2 if name.startswith("AST") else 5 if name.startswith("Whisper") else 3
    assert out.count("e-0") == lines + 1


def test_a_damaged_layer_is_named(llama, tmp_path, capsys):
    assert main(["verify", str(llama), "--record", str(tmp_path / "whole.npz")]) == 0
    tensors = load_file(llama / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {key: tensors[key][::-1].copy()}, llama / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(["verify", str(llama), "--recording", str(tmp_path / "whole.npz")]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "of 2" in line]
    assert "MISS" not in lines[0] and "MISS" in lines[1]
    assert main(["verify", str(llama)]) == 0  # the damage is in the weights, which both sides read
    tensors[key][0, 0] = np.nan
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    assert main(["verify", str(llama)]) == 1


def test_other_layouts_and_dtypes(llama, tmp_path, capsys):
    assert main(["verify", str(llama), "--record", str(tmp_path / "whole.npz")]) == 0
    assert main(["convert", str(llama), str(tmp_path / "own"), "--to", "alm"]) == 0
    assert main(["verify", str(tmp_path / "own"), "--recording", str(tmp_path / "whole.npz")]) == 0
    assert main(["convert", str(llama), str(tmp_path / "half"), "--dtype", "bf16"]) == 0
    assert main(["verify", str(tmp_path / "half")]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "half"), "--recording", str(tmp_path / "whole.npz")]) == 1  # rounded weights
    assert main(["verify", str(tmp_path / "half"), "--recording", str(tmp_path / "whole.npz"), "--tolerance", "1"]) == 0


def test_a_run_with_adapters(trained, capsys):
    assert main(["verify", str(trained)]) == 0
    out = capsys.readouterr().out
    assert "not compared: encoder (CavMae)" in out and "not compared: aligner (PooledLinear)" in out
    assert "decoder" in out and "none above" in out


def test_without_pytorch(llama, tmp_path, monkeypatch, capsys):
    assert main(["verify", str(llama), "--record", str(tmp_path / "whole.npz")]) == 0
    monkeypatch.setitem(sys.modules, "torch", None)
    capsys.readouterr()
    assert main(["verify", str(llama)]) == 1
    err = capsys.readouterr().err
    assert "pip install 'alm_jax[torch]'" in err and "--recording" in err and err.count("\n") == 1
    assert main(["verify", str(llama), "--recording", str(tmp_path / "whole.npz")]) == 0


def test_mistakes(llama, trained, tmp_path, capsys):
    def fails(code, message, *args):
        assert main(["verify", *map(str, args)]) == code
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1

    made("ASTForAudioClassification", **AST).save_pretrained(tmp_path / "ast")
    assert main(["verify", str(tmp_path / "ast"), "--record", str(tmp_path / "ast.npz")]) == 0
    assert main(["convert", str(trained), str(tmp_path / "adapter"), "--to", "peft"]) == 0
    capsys.readouterr()
    ast = (llama, "--recording", tmp_path / "ast.npz")
    fails(2, "leave one out", llama, "--record", "a", "--recording", "b")
    fails(1, "not found", tmp_path / "nothing")
    fails(1, "expected an .npz", llama, "--recording", llama / "model.safetensors")
    fails(1, "of another model than this LlamaConfig: it has the inputs frames, and pooled, logits", *ast)
    fails(1, "holds adapters alone", tmp_path / "adapter")
    fails(1, "cannot be written", llama, "--record", tmp_path)
