"""Sizes read off checkpoints: the recorded key lists of LTU, the shapes of named models, settings beside a file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alm_jax.convert.layouts import LAYOUTS, config_of, kind_of
from alm_jax.convert.names import PUBLISHED
from alm_jax.convert.peft import adapter_of
from alm_jax.convert.save import export
from alm_jax.convert.sizes import settings_of
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.layers.dense import Lora
from alm_jax.models.alm import build
from alm_jax.models.decoders.llama import Llama, LlamaConfig
from alm_jax.models.encoders.beats import Beats, BeatsConfig
from alm_jax.models.encoders.cav_mae import CavMae, CavMaeConfig
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig
from alm_jax.models.ltu import LORA, ltu
from alm_jax.models.ltu_as import ltu_as
from alm_jax.models.registry import CONFIGS
from tests.convert.dict_file import DictFile, ShapeFile

LLAMA = LlamaConfig(vocab_size=50, dim=256, depth=3, heads=2, kv_heads=1, mlp_dim=24, norm_eps=1e-5)
WHISPER = WhisperConfig(mels=8, dim=128, heads=2, depth=3, positions=20)
CAV_MAE = CavMaeConfig(frames=32, dim=128, heads=2, depth=4, joint_depth=2, mlp_ratio=0.5)
BEATS = BeatsConfig(4, 8, 16, 2, 3, 24, 6, 4, 8, classes=5)
MODULES = {LlamaConfig: Llama, WhisperConfig: Whisper, CavMaeConfig: CavMae, BeatsConfig: Beats}


def written(config, layout, module=None, **options):
    """A file of zeros in a layout."""
    leaves = tree.flatten(tree.abstract(lambda key: (module or MODULES[type(config)])(config, key)))
    table = LAYOUTS[layout].table(config)
    known = {rule.path for rule in table.rules}
    arrays = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in leaves.items() if path in known}
    return DictFile(dict(export(arrays, table, **options)))


@pytest.mark.golden
def test_the_published_ltu(golden_ltu):
    keys = json.loads((golden_ltu / "ltu_7b_keys.json").read_text())
    for name in keys.keys() - {"note"}:
        if any("audio_proj" in key for key in keys[name]):
            assert config_of(ShapeFile(keys[name]), "ltu") == ltu(), name


@pytest.mark.parametrize("layout", ["whisper_hf", "whisper_openai", "whisper_ctranslate2", "cav_mae", "beats"])
def test_encoders(layout):
    config = {"cav_mae": CAV_MAE, "beats": BEATS}.get(layout, WHISPER)
    assert config_of(written(config, layout), layout) == config


@pytest.mark.parametrize("lora", [None, LORA, Lora(4, 16.0, targets=("attn.o", "mlp.up"))])
def test_llama(tmp_path, lora):
    config = LlamaConfig(**vars(LLAMA) | {"lora": lora})
    file = written(config, "llama_hf")
    (tmp_path / "config.json").write_text(json.dumps({"rms_norm_eps": 1e-5, "hidden_size": 1}))
    file.path = tmp_path / "model.safetensors"
    assert config_of(file, "llama_hf") == config
    tied = LlamaConfig(**vars(config) | {"tie_embeddings": True, "norm_eps": 1e-6})
    assert config_of(written(tied, "llama_hf"), "llama_hf") == tied
    if lora:
        keys = [key for key in file.keys() if "lora" in key]
        alone = DictFile({key: file.tensors[key] for key in keys})
        found = config_of(alone, "llama_lora")
        assert (found.lora, found.depth) == (lora, 3)
        assert found.dim == (256 if "attn.q" in lora.targets else LlamaConfig().dim)


def test_gguf_says_its_own_heads():
    config = CONFIGS["smollm2_135m"]
    shapes = tree.flatten(tree.abstract(lambda key: Llama(config, key)))
    rules = LAYOUTS["llama_gguf"].table(config).rules
    tensors = {}
    for rule in rules:
        shape = shapes[rule.path].shape[1:] if rule.stacked else shapes[rule.path].shape
        tensors |= {key: shape[::-1] if rule.path.endswith("kernel") else shape for key in rule.names}
    file = ShapeFile(tensors)
    file.metadata = {
        "llama.context_length": 8192,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "llama.rope.freq_base": 100000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    assert config_of(file, "llama_gguf") == config


@pytest.mark.parametrize("name", ["ltu", "ltu_as"])
def test_systems(name, tmp_path):
    decoder = LlamaConfig(**vars(LLAMA) | {"lora": LORA, "kv_heads": 2, "norm_eps": 1e-6})
    whisper = CONFIGS["whisper_tiny"]
    config = ltu(decoder, CAV_MAE) if name == "ltu" else ltu_as(decoder, whisper)
    file = written(config, name, build, style=PUBLISHED)
    assert config_of(file, name) == config
    assert kind_of(name) is type(config)


def test_heads_that_nothing_tells(tmp_path):
    config = LlamaConfig(vocab_size=50, dim=48, depth=1, heads=3, kv_heads=1, mlp_dim=24)
    file = written(config, "llama_hf")
    file.path = tmp_path / "model.safetensors"
    assert config_of(file, "llama_hf").heads == 0
    (tmp_path / "config.json").write_text('{"num_attention_heads": 3, "rope_parameters": {"rope_theta": 500.0}}')
    assert config_of(file, "llama_hf") == LlamaConfig(**vars(config) | {"rope_theta": 500.0})
    assert settings_of(file)["num_attention_heads"] == 3 and adapter_of(file) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json: cannot be read as JSON"),
        ("[1]", r"config\.json: holds a JSON list, expected an object"),
        ('{"num_attention_heads": "3"}', "num_attention_heads is '3'; expected a number above 0"),
        ('{"num_attention_heads": 2.5}', r"num_attention_heads is 2\.5"),
        ('{"rms_norm_eps": 0}', "rms_norm_eps is 0"),
        ('{"rope_theta": true}', "rope_theta is True"),
    ],
)
def test_bad_settings(tmp_path, text, message):
    file = written(LLAMA, "llama_hf")
    file.path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        config_of(file, "llama_hf")
