"""CLAP and its HTS-AT against PyTorch with random weights, in and out (`tests.convert.parity`).

`transformers` has LAION CLAP. MS-CLAP's official weights and outputs are recorded (`tools/golden/msclap.py`); its text
tower is written out here.
"""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.convert import clap, htsat
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.layouts import LAYOUTS, config_of, detect
from alm_jax.convert.load import contents, dead, load
from alm_jax.convert.save import export
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.models.clap import LAION_CLAP_FUSED, Clap, ClapConfig, LaionClapConfig, TextTower, last_token
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.encoders.htsat import Htsat, HtsatConfig
from alm_jax.models.registry import CONFIGS
from alm_jax.models.text.bert import BertConfig
from tests.convert.dict_file import DictFile, same_bits
from tests.convert.parity import check_pair, randomise, state, torch

pytestmark = pytest.mark.torch

RNG = np.random.default_rng(0)
AUDIO = HtsatConfig(mels=8, image=32, embed_dim=16, depths=(4, 2), heads=(2, 4), window=4)
FUSED = HtsatConfig(**vars(AUDIO) | {"fusion": True, "depths": (3, 2)})
TEXT = BertConfig(40, 32, 2, 4, 48, positions=14, position_offset=2, token_types=1)
LOG_MEL = RNG.standard_normal((3, 4, 100, 8)).astype(np.float32)
LONGER = np.array([True, False, True])
MASK = np.array([[1] * 9, [1] * 6 + [0] * 3])
IDS = np.where(MASK, RNG.integers(2, 40, (2, 9)), 1)
KEY_BIASES = ("*.self.key.bias",)  # under softmax they change nothing


def settings(model):
    """What `config.json` of PyTorch's model holds."""
    return json.loads(model.config.to_json_string(use_diff=False))


def torch_audio(config):
    from transformers import ClapAudioConfig, ClapAudioModel

    return ClapAudioModel(ClapAudioConfig(**htsat.to_hf_config(config)))


def test_htsat(record_property):
    theirs = torch_audio(AUDIO)
    assert htsat.from_hf_config(settings(theirs)) == AUDIO
    check_pair(
        record_property,
        model="HTS-AT",
        module=Htsat,
        config=AUDIO,
        table=LAYOUTS["htsat_hf"].table(AUDIO),
        theirs=theirs,
        ours_out=lambda model: model.pooled(LOG_MEL[:, 0]),
        theirs_out=lambda model: model(input_features=torch.tensor(LOG_MEL[:, :1])).pooler_output,
        rebuilt=lambda: torch_audio(AUDIO),
        flat=KEY_BIASES,
    )
    assert detect(state(theirs)) == detect(state(theirs), whole=True) == "htsat_hf"


def torch_clap(config):
    from transformers import ClapConfig as Config
    from transformers import ClapModel

    return ClapModel(Config(**clap.to_hf_config(config)))


@pytest.mark.parametrize("audio", [AUDIO, FUSED], ids=["unfused", "fused"])
def test_laion_clap(record_property, audio, tmp_path):
    base = LAION_CLAP_FUSED if audio.fusion else LaionClapConfig()
    config = replace(base, audio=audio, text=TEXT, dim=24)
    theirs = torch_clap(config)
    assert clap.from_hf_config(settings(theirs)) == config
    features = LOG_MEL if audio.fusion else LOG_MEL[:, :1]

    def ours_out(model):
        if audio.fusion:
            heard = model.encode_audio(features, LONGER, normalise=True)
        else:
            heard = model.encode_audio(features[:, 0], normalise=True)
        read = model.encode_text(IDS, jnp.array(MASK), normalise=True)
        per_audio, per_text = model.logits(heard, read)
        return {"audio": heard, "text": read, "clips to texts": per_audio, "texts to clips": per_text}

    def theirs_out(model):
        out = model(
            input_ids=torch.tensor(IDS),
            attention_mask=torch.tensor(MASK),
            input_features=torch.tensor(features),
            is_longer=torch.tensor(LONGER),
        )
        embeds = {"audio": out.audio_embeds, "text": out.text_embeds}
        return embeds | {"clips to texts": out.logits_per_audio, "texts to clips": out.logits_per_text}

    check_pair(
        record_property,
        model="LAION CLAP with fusion" if audio.fusion else "LAION CLAP",
        module=Clap,
        config=config,
        table=LAYOUTS["clap_hf"].table(config),
        theirs=theirs,
        ours_out=ours_out,
        theirs_out=theirs_out,
        rebuilt=lambda: torch_clap(config),
        flat=KEY_BIASES,
    )
    tensors = state(theirs)
    assert detect(tensors) == "htsat_hf" and detect(tensors, whole=True) == "clap_hf"
    theirs.save_pretrained(tmp_path)
    file = open_tensors(tmp_path)
    assert config_of(file, "clap_hf") == config and config_of(file, "htsat_hf") == audio
    like = tree.abstract(lambda key: Htsat(audio, key))
    encoder = load(tree.flatten(like), [(file, LAYOUTS["htsat_hf"].table(audio))])
    np.testing.assert_array_equal(
        encoder["stages.0.pairs.shifted.attn.q.bias"][0],
        tensors["audio_model.audio_encoder.layers.0.blocks.1.attention.self.query.bias"],
    )


class Projection(torch.nn.Module):
    """`Projection` of msclap/models/clap.py in evaluation."""

    def __init__(self, features, dim):
        super().__init__()
        self.linear1 = torch.nn.Linear(features, dim, bias=False)
        self.linear2 = torch.nn.Linear(dim, dim, bias=False)
        self.layer_norm = torch.nn.LayerNorm(dim)

    def forward(self, x):
        x = self.linear1(x)
        return self.layer_norm(x + self.linear2(torch.nn.functional.gelu(x)))


class TextEncoder(torch.nn.Module):
    """`TextEncoder` of msclap/models/clap.py over GPT-2."""

    def __init__(self):
        from transformers import GPT2Config, GPT2Model

        super().__init__()
        self.base = GPT2Model(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=12))
        self.projection = Projection(32, 24)

    def forward(self, ids, mask):
        hidden = self.base(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.projection(hidden[torch.arange(len(ids)), torch.ne(ids, 0).sum(-1) - 1])


def test_ms_clap_text_tower(record_property):
    """The second text holds a "!" (0), which moves the place where it is read."""
    ids = np.where(MASK, IDS, 0)
    ids[1, 2] = 0
    assert last_token(ids).tolist() == [8, 4]
    config = ClapConfig(text=Gpt2Config(40, 32, 2, 4, 128, positions=12), dim=24)
    check_pair(
        record_property,
        model="MS-CLAP text tower",
        module=TextTower,
        config=config,
        table=clap.text_tower(config),
        theirs=TextEncoder(),
        ours_out=lambda model: model(jnp.array(ids), jnp.array(MASK)),
        theirs_out=lambda model: model(torch.tensor(ids), torch.tensor(MASK)),
    )


@pytest.mark.golden
def test_official_ms_clap_in_and_out(golden, tmp_path):
    """The recorded official weights as published: a `.pth` with the state dict under `model`."""
    file = open_tensors(golden / "mats/msclap.safetensors")
    tensors = {key: file.read(key) for key in file.keys()}
    constants = {f"audio_encoder.base.htsat.spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag")}
    tensors |= {key: np.ones((513, 1, 1024), np.float32) for key in constants}
    tensors |= {"caption_encoder.base.h.0.attn.masked_bias": np.float32(-1e4)}  # of old versions of transformers
    path = tmp_path / "CLAP_weights_2023.pth"
    torch.save({"model": {key: torch.tensor(value) for key, value in tensors.items()}, "epoch": 3}, path)
    file = open_tensors(path)
    assert detect(file.keys()) == "htsat" and detect(file.keys(), whole=True) == "msclap"
    config = config_of(file, "msclap")
    recorded = json.loads((golden / "mats/msclap_config.json").read_text())
    assert (config.dim, config.audio.image, config.text.dim) == (recorded["d_proj"], 256, recorded["gpt2"]["hidden"])
    table = LAYOUTS["msclap"].table(config)
    like = tree.abstract(lambda key: Clap(config, key))
    ours = load(tree.flatten(like), [(file, table)])
    back = dict(export(ours, table, contents(file.keys(), table).style, dead(file, table)))
    assert same_bits(back, tensors)

    headless = HtsatConfig(**vars(config.audio) | {"classes": None})
    for audio in (config.audio, headless):
        like = tree.abstract(lambda key, audio=audio: Htsat(audio, key))
        encoder = load(tree.flatten(like), [(file, LAYOUTS["htsat"].table(audio))])
        assert same_bits(encoder, {path: ours[f"audio.encoder.{path}"] for path in encoder})


def test_published_sizes():
    """By the configs on the hub and msclap's config_2023.yml."""
    from transformers import ClapConfig as Config

    unfused, fused, official = (CONFIGS[name] for name in ("clap_htsat_unfused", "clap_htsat_fused", "msclap_2023"))
    usual = json.loads(Config().to_json_string(use_diff=False))
    assert clap.from_hf_config(usual) == unfused == clap.from_hf_config({})
    assert clap.from_hf_config({"audio_config": {"enable_fusion": True}}) == fused
    assert fused.frontend.mel_scale == "htk" and unfused.frontend.mel_scale == "slaney"

    def parameters(module, config):
        return sum(leaf.size for leaf in tree.flatten(tree.abstract(lambda key: module(config, key))).values())

    # ../shared/reference counts 33,162,199 of MS-CLAP's audio tower: with the projection and constants that have no
    # place here (Fourier and mel matrices, a classifier that is never used), but without running statistics.
    constants = 2 * 513 * 1024 + 513 * 64 + 527 * 527 + 527
    projection = 768 * 1024 + 1024 * 1024 + 2 * 1024
    assert parameters(Htsat, official.audio) - 2 * 64 + projection + constants == 33_162_199


WRONG = {
    "projection_hidden_act": "tanh",
    "audio_config": {"depths": "2", "mlp_ratio": 0},
    "text_config": {"num_attention_heads": 0},
}
UNEVEN = {"num_attention_heads": [5, 8, 16, 7]}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            WRONG,
            ("_act is 'tanh'", "audio_config: ", "depths is '2'", "mlp_ratio is 0", "text_config: ", "_heads is 0"),
        ),
        ({"audio_config": {"hidden_size": 100, "qkv_bias": False}}, ("hidden_size is 100 (expected 768)", "qkv_bias")),
        ({"audio_config": UNEVEN}, ("5 heads do not divide",)),
        ({"audio_config": {"enable_fusion": True, "fusion_type": "channel_map"}}, ("channel_map",)),
        ({"model_type": "clip"}, ("model_type is 'clip'",)),
    ],
)
def test_settings_without_a_counterpart(change, parts):
    with pytest.raises(CheckpointError) as error:
        clap.from_hf_config(change)
    assert all(part in str(error.value) for part in parts), error.value


def test_wrong_tensors_are_all_listed():
    theirs = randomise(torch_audio(AUDIO))
    tensors = state(theirs)
    tensors["audio_encoder.norm.weight"] = np.zeros(31, np.float32)
    tensors["audio_encoder.layers.1.blocks.0.output.dense.bias"] = np.zeros((2, 2), np.float32)
    del tensors["audio_encoder.patch_embed.proj.bias"]
    tensors["audio_encoder.surprise"] = np.zeros(1, np.float32)
    like = tree.flatten(tree.abstract(lambda key: Htsat(AUDIO, key)))
    with pytest.raises(CheckpointError) as error:
        load(like, [(DictFile(tensors), LAYOUTS["htsat_hf"].table(AUDIO))])
    for part in ("norm.weight", "output.dense.bias", "patch_embed.bias", "surprise"):
        assert part in str(error.value)
    tensors["audio_encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"] = np.zeros((49, 5))
    with pytest.raises(CheckpointError, match="memory: HTSAT: stage 0: 5 heads do not divide"):
        config_of(DictFile(tensors), "htsat_hf")
