"""The check of published checkpoints, on tiny ones that stand in for them."""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

LLAMA = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("verify_published")


@pytest.fixture
def run(tool, tmp_path, capsys):
    """The tool on the models of `tmp_path` by their names; its exit code and what it printed."""
    kinds = {"llama": "llama_hf", "gpt2": "gpt2_hf", "absent": "llama_hf"}

    def call(*args, **changes):
        entries = {name: tool.Published("", kind) for name, kind in kinds.items()} | changes
        paths = [f"--path={name}={tmp_path / name}" for name in entries if (tmp_path / name).exists()]
        capsys.readouterr()
        code = tool.main([*args, *paths], entries)
        return code, capsys.readouterr().out

    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "llama")
    settings = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 12}
    GPT2LMHeadModel(GPT2Config(**settings)).save_pretrained(tmp_path / "gpt2")
    return call


def test_all_that_are_found(run):
    code, out = run()
    assert code == 0, out
    assert "absent: not found: absent was not published on the hub" in out
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in out.splitlines() if line.startswith("| ")}
    assert rows.keys() == {"model", "llama", "gpt2"}
    layout, _, parameters, _, error = (cell.strip() for cell in rows["llama"])
    assert layout == "llama_hf" and int(parameters.replace(",", "")) > 10_000 and float(error) <= 1e-4


def test_what_fails(run, tool, tmp_path):
    assert run("absent")[0] == 1  # asked for by name
    file = tmp_path / "llama" / "model.safetensors"
    tensors = load_file(file)

    def spoilt(message, changes, without=(), **entries):
        kept = {key: value for key, value in (tensors | changes).items() if key not in without}
        save_file(kept, file, {"format": "pt"})
        code, out = run("llama", **entries)
        assert code == 1 and "FAIL" in out and message in out, out

    key = "model.layers.0.mlp.up_proj.weight"
    spoilt("no rule, or more than one key, for more.weight", {"more.weight": np.ones(2, np.float32)})
    spoilt(key, {}, without=[key])
    spoilt("NaN or infinity in blocks.mlp.up.kernel", {key: np.full_like(tensors[key], np.nan)})
    spoilt("its layout is llama_hf, expected gpt2_hf", {}, llama=tool.Published("", "gpt2_hf"))
    spoilt("vocab_size 40 (expected 32000)", {}, llama=tool.Published("", "llama_hf", "vicuna_7b"))
    spoilt("expected gpt2", {}, llama=tool.Published("", "llama_hf", "gpt2"))
    config = tmp_path / "llama" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_parameters": {"rope_type": "yarn"}}))
    spoilt("rope_type is 'yarn'", {})
    shutil.rmtree(tmp_path / "llama")
    assert run()[0] == 0  # the other one is there


def test_the_list(tool, capsys):
    assert tool.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert "ltu: (give --path), over vicuna_ltu, layout ltu" in out
    from alm_jax.convert.layouts import LAYOUTS
    from alm_jax.models.registry import CONFIGS

    for entry in tool.PUBLISHED.values():
        names = entry.config.values() if isinstance(entry.config, dict) else filter(None, [entry.config])
        assert set(names) <= set(CONFIGS) and set(entry.base) <= set(tool.PUBLISHED)
        assert entry.layout in ("", *LAYOUTS)
    with pytest.raises(SystemExit):
        tool.main(["nothing-of-ours"])
