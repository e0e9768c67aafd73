"""BLIP-2's image encoder and Q-Former against `transformers`, in and out (`tests.convert.parity`)."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.convert import vit
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.models.encoders.vit import Vit, VitConfig
from alm_jax.models.registry import CONFIGS
from tests.convert.parity import build, check_pair, randomise, state, torch

pytestmark = pytest.mark.torch

IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
PIXELS = torch.tensor(np.moveaxis(IMAGES, -1, 1))
VIT = {"image_size": 12, "patch_size": 4, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
VIT |= {"intermediate_size": 24, "attn_implementation": "eager"}


def settings(model):
    """What `config.json` of PyTorch's model holds."""
    return json.loads(model.config.to_json_string(use_diff=False))


def image_model(family, **told):
    from transformers import models

    package = getattr(models, {"Blip2": "blip_2", "InstructBlip": "instructblip"}[family])
    config = getattr(package, f"{family}VisionConfig")(**VIT | told)
    return getattr(package, f"{family}VisionModel")(config)


@pytest.mark.parametrize(("family", "bias"), [("Blip2", True), ("InstructBlip", True), ("Blip2", False)])
def test_image_encoder(record_property, family, bias):
    theirs = image_model(family, qkv_bias=bias)
    config = vit.from_hf_config(settings(theirs))
    assert vit.from_hf_config(vit.to_hf_config(config)) == config
    check_pair(
        record_property,
        model="BLIP-2 image encoder",
        module=Vit,
        config=config,
        table=vit.hf(config),
        theirs=theirs,
        ours_out=lambda model: model(IMAGES).values[0],
        theirs_out=lambda model: model(PIXELS).last_hidden_state,
    )


def official_names(tensors, depth):
    """A state dict of `transformers` under the names of LAVIS (the inverse of its conversion script's renaming)."""
    renamed = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers": "blocks",
        "layer_norm": "norm",
        "self_attn.projection": "attn.proj",
        "self_attn": "attn",
    }
    found = {}
    for key, value in tensors.items():
        for theirs, official in renamed.items():
            key = key.replace(theirs, official)
        if key.endswith("qkv.bias"):
            found[key.replace("qkv.bias", "q_bias")], _, found[key.replace("qkv.bias", "v_bias")] = np.split(value, 3)
        elif not key.startswith("post_"):
            found[key] = value
    return found | {f"blocks.{depth}.norm1.weight": np.ones(3, np.float32), "norm.weight": np.ones(3, np.float32)}


def test_official_names():
    """The same weights from either file; the key's bias, which official files lack, is zero in published ones."""
    theirs = randomise(image_model("Blip2"))
    tensors = state(theirs)
    for key in tensors:
        if key.endswith("qkv.bias"):
            tensors[key][16:32] = 0
    config = replace(vit.from_hf_config(settings(theirs)), bias="qvo", norm=False)
    ours, again = (
        tree.flatten(build(Vit, config, found, table))
        for found, table in (
            (tensors, vit.hf(config)),
            (official_names(tensors, config.depth), vit.official(config)),
        )
    )
    assert ours.keys() == again.keys()
    assert all(np.array_equal(ours[path], again[path]) for path in ours)


def test_published_image_encoder():
    """What `transformers` has by default, and as many parameters."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    config = replace(CONFIGS["eva_vit_g"], bias="qkvo")
    assert vit.from_hf_config(Blip2VisionConfig().to_dict()) == config
    with torch.device("meta"):
        expected = Blip2VisionModel(Blip2VisionConfig()).num_parameters()
    assert tree.size(tree.flatten(tree.abstract(lambda key: Vit(config, key)))) == expected


def test_unsupported_settings():
    with pytest.raises(CheckpointError, match=r"patch_size is 0.*hidden_act is 'silu'"):
        vit.from_hf_config(vit.to_hf_config(VitConfig()) | {"patch_size": 0, "hidden_act": "silu"})


def test_dtype_follows_the_image():
    model = Vit(VitConfig(size=8, patch=4, dim=8, heads=2, depth=2, mlp_dim=8), jax.random.key(0))
    assert model(jnp.zeros((1, 8, 8, 3), jnp.bfloat16)).values.shape == (1, 1, 5, 8)
    assert model(jnp.zeros((1, 8, 8, 3), jnp.bfloat16)).values.dtype == jnp.bfloat16
