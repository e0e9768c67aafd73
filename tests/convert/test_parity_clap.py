"""LAION CLAP and its HTS-AT against `transformers` with random weights, in and out (`tests.convert.parity`)."""

import numpy as np
import pytest

from alm_jax.convert import htsat
from alm_jax.convert.rules import Table
from alm_jax.models.encoders.htsat import Htsat, HtsatConfig
from tests.convert.parity import check_pair, torch

pytestmark = pytest.mark.torch

RNG = np.random.default_rng(0)
AUDIO = HtsatConfig(mels=8, image=32, embed_dim=16, depths=(4, 2), heads=(2, 4), window=4)
FUSED = HtsatConfig(**vars(AUDIO) | {"fusion": True})
LOG_MEL = RNG.standard_normal((3, 4, 100, 8)).astype(np.float32)
LONGER = np.array([True, False, True])
KEY_BIASES = ("*.self.key.bias",)  # under softmax they change nothing


def torch_audio(config):
    from transformers import ClapAudioConfig, ClapAudioModel

    return ClapAudioModel(
        ClapAudioConfig(
            num_mel_bins=config.mels,
            spec_size=config.image,
            patch_embeds_hidden_size=config.embed_dim,
            depths=config.depths,
            num_attention_heads=config.heads,
            window_size=config.window,
            hidden_size=config.dim,
            num_hidden_layers=len(config.depths),
            enable_fusion=config.fusion,
        )
    )


@pytest.mark.parametrize("config", [AUDIO, FUSED], ids=["plain", "fused"])
def test_htsat(record_property, config):
    features = LOG_MEL if config.fusion else LOG_MEL[:, :1]
    check_pair(
        record_property,
        model="HTS-AT with fusion" if config.fusion else "HTS-AT",
        module=Htsat,
        config=config,
        table=Table() + htsat.hf(config).under(theirs="audio_encoder."),
        theirs=torch_audio(config),
        ours_out=lambda model: model.pooled(features, LONGER) if config.fusion else model.pooled(features[:, 0]),
        theirs_out=lambda model: (
            model(input_features=torch.tensor(features), is_longer=torch.tensor(LONGER)).pooler_output
        ),
        flat=KEY_BIASES,
    )
