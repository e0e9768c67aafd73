"""Whisper's encoder with random weights, in and out: `transformers`, and the official module written out.

Errors are those of `tests.convert.parity`.
"""

import numpy as np
import pytest

from alm_jax.convert.layouts import LAYOUTS
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig
from tests.convert.parity import assert_close, check_pair, torch

pytestmark = pytest.mark.torch

CONFIG = WhisperConfig(mels=8, dim=32, heads=4, depth=3, positions=12)
MEL = np.random.default_rng(0).standard_normal((2, 24, 8)).astype(np.float32)


def torch_mel():
    return torch.tensor(MEL).transpose(1, 2)


def test_whisper_encoder(record_property):
    from transformers import WhisperConfig as Config
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    theirs = WhisperEncoder(Config(**sizes, num_mel_bins=8, max_source_positions=12, pad_token_id=0))
    ours = check_pair(
        record_property,
        model="Whisper encoder",
        module=Whisper,
        config=CONFIG,
        table=LAYOUTS["whisper_hf"].table(CONFIG),
        theirs=theirs,
        ours_out=lambda model: model(MEL).values[0],
        theirs_out=lambda model: model(torch_mel()).last_hidden_state,
    )
    with torch.no_grad():
        streams = theirs(torch_mel(), output_hidden_states=True).hidden_states
    taps = ours(MEL, taps=(0, 1, 2)).values
    for tap in range(3):
        assert_close(taps[tap], streams[tap], 1e-5)


class OpenAIBlock(torch.nn.Module):
    """`ResidualAttentionBlock` of the official whisper/model.py, encoder form; LTU-AS's TLTR is made of it too."""

    def __init__(self, dim, heads):
        super().__init__()
        linear, norm = torch.nn.Linear, torch.nn.LayerNorm
        self.attn = torch.nn.ModuleDict(
            {name: linear(dim, dim, name != "key") for name in ("query", "key", "value", "out")}
        )
        self.attn_ln, self.mlp_ln = norm(dim), norm(dim)
        self.mlp = torch.nn.Sequential(linear(dim, 4 * dim), torch.nn.GELU(), linear(4 * dim, dim))
        self.heads = heads

    def forward(self, x):
        y = self.attn_ln(x)
        q, k, v = (
            self.attn[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("query", "key", "value")
        )
        scale = q.shape[-1] ** -0.25
        weights = ((q * scale) @ (k * scale).transpose(-1, -2)).softmax(-1)
        x = x + self.attn["out"]((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_ln(x))


class OpenAIEncoder(torch.nn.Module):
    """`AudioEncoder` of the official whisper/model.py."""

    def __init__(self, mels, dim, heads, depth, positions):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(mels, dim, 3, padding=1)
        self.conv2 = torch.nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.positional_embedding = torch.nn.Parameter(torch.randn(positions, dim))
        self.blocks = torch.nn.ModuleList(OpenAIBlock(dim, heads) for _ in range(depth))
        self.ln_post = torch.nn.LayerNorm(dim)

    def forward(self, x):
        gelu = torch.nn.functional.gelu
        x = gelu(self.conv2(gelu(self.conv1(x)))).transpose(1, 2) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)


def test_whisper_encoder_in_openai_names(record_property):
    check_pair(
        record_property,
        model="Whisper encoder, OpenAI's names",
        module=Whisper,
        config=CONFIG,
        table=LAYOUTS["whisper_openai"].table(CONFIG),
        theirs=OpenAIEncoder(8, 32, 4, 3, 12),
        prefix="encoder.",
        ours_out=lambda model: model(MEL).values[0],
        theirs_out=lambda model: model(torch_mel()),
    )
