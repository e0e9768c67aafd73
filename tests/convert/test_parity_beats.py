"""BEATs against its PyTorch code, written out here after the official `backbone.py` and `BEATs.py`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alm_jax.convert.formats import open_tensors
from alm_jax.convert.layouts import LAYOUTS, config_of, detect
from alm_jax.convert.load import contents
from alm_jax.core.errors import CheckpointError
from alm_jax.models.encoders.beats import Beats, BeatsConfig, relative_buckets
from tests.convert.parity import check_pair, torch

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")]

FRAMES = np.random.default_rng(0).standard_normal((2, 22, 9)).astype(np.float32)  # ragged ends along both axes
SMALL = BeatsConfig(
    patch=4,
    embed_dim=12,
    dim=16,
    heads=2,
    depth=3,
    mlp_dim=24,
    conv_width=6,
    conv_groups=4,
    buckets=8,
    max_distance=12,
    classes=5,
)
CFG = {  # of a file; what is no plain value is left alone
    "max_distance": 12,
    "deep_norm": True,
    "layer_norm_first": False,
    "activation_fn": "gelu",
    "labels": ["a"],
}


def buckets_of(offsets, count, max_distance):
    """`_relative_positions_bucket` of both directions."""
    count //= 2
    after = (offsets > 0).long() * count
    offsets, exact = offsets.abs(), count // 2
    grown = torch.log(offsets.float() / exact) / math.log(max_distance / exact) * (count - exact)
    far = torch.clamp(exact + grown.clamp(-1e6, 1e6).long(), max=count - 1)
    return after + torch.where(offsets < exact, offsets, far)


class SelfAttention(torch.nn.Module):
    """`MultiheadAttention` with `gru_rel_pos`; its stabilising shift of the scores changes nothing and is left out."""

    def __init__(self, dim, heads, bias):
        super().__init__()
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, torch.nn.Linear(dim, dim))
        self.relative_attention_bias = bias
        self.grep_linear = torch.nn.Linear(dim // heads, 8)
        self.grep_a = torch.nn.Parameter(torch.ones(1, heads, 1, 1))
        self.heads = heads

    def forward(self, x, max_distance):
        batch, length, dim = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        offsets = torch.arange(length)[None] - torch.arange(length)[:, None]
        buckets = buckets_of(offsets, self.relative_attention_bias.num_embeddings, max_distance)
        bias = self.relative_attention_bias(buckets).permute(2, 0, 1)
        gates = torch.sigmoid(self.grep_linear(q).view(batch, self.heads, length, 2, 4).sum(-1))
        gate_a, gate_b = gates.chunk(2, dim=-1)
        bias = (gate_a * (gate_b * self.grep_a - 1.0) + 2.0) * bias
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(batch, length, dim))


class Layer(torch.nn.Module):
    """`TransformerSentenceEncoderLayer` with `deep_norm`."""

    def __init__(self, config, bias):
        super().__init__()
        self.self_attn = SelfAttention(config.dim, config.heads, bias)
        self.self_attn_layer_norm = torch.nn.LayerNorm(config.dim)
        self.fc1 = torch.nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = torch.nn.Linear(config.mlp_dim, config.dim)
        self.final_layer_norm = torch.nn.LayerNorm(config.dim)
        self.alpha = math.pow(2 * config.depth, 1 / 4)

    def forward(self, x, max_distance):
        x = self.self_attn_layer_norm(x * self.alpha + self.self_attn(x, max_distance))
        return self.final_layer_norm(x * self.alpha + self.fc2(torch.nn.functional.gelu(self.fc1(x))))


class TorchBeats(torch.nn.Module):
    """`BEATs` from its filterbank on, without padding."""

    def __init__(self, config):
        super().__init__()
        c, nn = config, torch.nn
        self.patch_embedding = nn.Conv2d(1, c.embed_dim, c.patch, c.patch, bias=False)
        self.layer_norm = nn.LayerNorm(c.embed_dim)
        self.post_extract_proj = nn.Linear(c.embed_dim, c.dim)
        conv = nn.Conv1d(c.dim, c.dim, c.conv_width, padding=c.conv_width // 2, groups=c.conv_groups)
        bias = nn.Embedding(c.buckets, c.heads)  # one for all layers, named in each
        encoder = {
            "pos_conv": nn.Sequential(nn.utils.weight_norm(conv, name="weight", dim=2)),
            "layers": nn.ModuleList(Layer(c, bias) for _ in range(c.depth)),
            "layer_norm": nn.LayerNorm(c.dim),
        }
        self.encoder = nn.ModuleDict(encoder)
        if c.classes:
            self.predictor = nn.Linear(c.dim, c.classes)
        self.config = config

    def forward(self, x):
        x = self.patch_embedding(x[:, None])
        x = self.post_extract_proj(self.layer_norm(x.flatten(2).transpose(1, 2)))
        conv = self.encoder["pos_conv"](x.transpose(1, 2))[:, :, :-1]  # `SamePad` of an even width
        x = self.encoder["layer_norm"](x + torch.nn.functional.gelu(conv).transpose(1, 2))
        streams = [x]
        for layer in self.encoder["layers"]:
            streams.append(layer(streams[-1], self.config.max_distance))
        outputs = {"features": streams[-1], "tap 0": streams[0], "tap 2": streams[2]}
        return outputs | ({"logits": self.predictor(streams[-1]).mean(1)} if self.config.classes else {})


def ours_out(model):
    taps = model(FRAMES, taps=(0, 2)).values
    outputs = {"features": model(FRAMES).values[0], "tap 0": taps[0], "tap 2": taps[1]}
    return outputs | ({"logits": model.classify(FRAMES)} if model.config.classes else {})


def test_beats(record_property, tmp_path):
    theirs = TorchBeats(SMALL)
    table = LAYOUTS["beats"].table(SMALL)
    check_pair(
        record_property,
        model="BEATs, fine-tuned",
        module=Beats,
        config=SMALL,
        table=table,
        theirs=theirs,
        ours_out=ours_out,
        theirs_out=lambda model: model(torch.tensor(FRAMES)),
        rebuilt=lambda: TorchBeats(SMALL),
        flat=("*.k_proj.bias",),
    )
    published = {"cfg": CFG, "model": theirs.state_dict()}
    torch.save(published, tmp_path / "beats.pt")
    file = open_tensors(tmp_path / "beats.pt")
    assert detect(file.keys()) == "beats" and config_of(file, "beats") == SMALL
    found = contents(file.keys(), table)
    assert not found.unmapped and len(found.tied) == 2
    torch.save(published | {"cfg": CFG | {"deep_norm": False}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: its cfg .*: deep_norm is False \(expected True\)$"):
        config_of(open_tensors(tmp_path / "other.pt"), "beats")


def test_buckets_are_the_official_ones():
    offsets = torch.arange(900)[None] - torch.arange(900)[:, None]
    np.testing.assert_array_equal(relative_buckets(900, 320, 800), buckets_of(offsets, 320, 800))
