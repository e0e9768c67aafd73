"""BLIP-2's image encoder, its Q-Former and InstructBLIP's, and both whole, against `transformers`, in and out
(`tests.convert.parity`)."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.convert import apt_blip2, llama, qformer, vit
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.core.sequence import Row, collate
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.alm import build as build_alm
from alm_jax.models.apt_blip2 import apt_blip2 as system
from alm_jax.models.decoders.llama import Llama
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.vit import Vit, VitConfig
from alm_jax.models.features import AlignerText
from alm_jax.models.registry import CONFIGS
from alm_jax.models.vision import Vision
from tests.convert.dict_file import DictFile
from tests.convert.parity import DEEP, assert_close, build, check_pair, randomise, record, state, torch

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


QUERIES, IMAGE = 3, 39  # tokens an image becomes; the id that stands for each
QFORMER = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-12,
}
QFORMER |= {
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 16,
}
LLAMA = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = np.random.default_rng(1).integers(1, 30, (2, 5))  # the Q-Former's; 0 is its padding, which is never learnt
WORD_MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TEXT = np.random.default_rng(2).integers(3, 38, (2, 6))
IDS = np.concatenate([np.full((2, QUERIES), IMAGE), TEXT], axis=1)

# Adds the same to all scores of a query; the text after the last block is read by nobody.
FLAT = ("qformer.*.key.bias", "qformer.encoder.layer.3.intermediate.*", "qformer.encoder.layer.3.output.*")


def whole_model(family, reads_text):
    from transformers import LlamaConfig, models

    package = getattr(models, {"Blip2": "blip_2", "InstructBlip": "instructblip"}[family])
    asked = QFORMER | ({"use_qformer_text_input": reads_text} if family == "Blip2" else {})
    config = getattr(package, f"{family}Config")(
        vision_config=getattr(package, f"{family}VisionConfig")(**VIT),
        qformer_config=getattr(package, f"{family}QFormerConfig")(**asked),
        text_config=LlamaConfig(**LLAMA),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    config._attn_implementation = "eager"
    return getattr(package, f"{family}ForConditionalGeneration")(config)


def whole_config(theirs):
    """APT-BLIP-2 over the sizes of PyTorch's model, with a tiny ear."""
    told = settings(theirs)
    asked = theirs.config.qformer_config
    return system(
        llama.from_hf_config(told["text_config"]),
        AudioMaeConfig(frames=16, mels=16, patch=8, stride=8, dim=8, heads=2, depth=1, mlp_dim=8),
        QFormerConfig(queries=2, hidden=8, depth=1, heads=2, mlp_dim=8, vocab_size=30, positions=10),
        replace(vit.from_hf_config(told["vision_config"]), norm=False),
        qformer.from_hf_config(
            asked.to_dict(), queries=QUERIES, feature_norm_eps=told["vision_config"]["layer_norm_eps"]
        ),
    )


class Blip(nnx.Module):
    """The part of APT-BLIP-2 that `transformers` has."""

    def __init__(self, config, key):
        self.vision, self.decoder = Vision(config.vision, key), Llama(config.decoder, key)

    def __call__(self, images, text):
        seen = self.vision(images[:, None], text)
        x = jnp.concatenate([seen, self.decoder.embed(TEXT)], axis=1)
        ones, positions = jnp.ones(x.shape[:2], jnp.int32), jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return {"images": seen, "logits": self.decoder.logits(self.decoder(x, positions, ones, ones))}


@pytest.mark.parametrize(("family", "name"), [("Blip2", "BLIP-2"), ("InstructBlip", "InstructBLIP")])
def test_whole_model(record_property, family, name):
    theirs = whole_model(family, reads_text=False)
    config = whole_config(theirs)
    reads_text = family == "InstructBlip"
    assert config.vision.aligner.reads_text == reads_text
    words = {"qformer_input_ids": torch.tensor(WORDS), "qformer_attention_mask": torch.tensor(WORD_MASK)}
    words = words if reads_text else {}
    text = AlignerText(jnp.array(WORDS)[:, None], jnp.array(WORD_MASK == 1)[:, None]) if reads_text else None

    def torch_outputs(model):
        out = model(pixel_values=PIXELS, input_ids=torch.tensor(IDS), **words)
        seen = model.get_image_features(pixel_values=PIXELS, **words).pooler_output
        return {"images": seen, "logits": out.logits}

    check_pair(
        record_property,
        model=name,
        module=Blip,
        config=config,
        table=apt_blip2.hf(config),
        theirs=theirs,
        ours_out=lambda model: model(IMAGES, text),
        theirs_out=torch_outputs,
        flat=FLAT if reads_text else FLAT[:1],
        tolerance=DEEP,  # twelve layers in a row
    )


def test_system_without_audio(record_property):
    """APT-BLIP-2 with a batch of images and text is InstructBLIP; what it hears with stays random."""
    theirs = randomise(whole_model("InstructBlip", True).eval())
    config = whole_config(theirs)
    like = tree.abstract(lambda key: build_alm(config, key))
    ears = ("encoder.*", "aligner.*", "indicators")
    read = load(tree.flatten(like), [(DictFile(state(theirs)), apt_blip2.hf(config))], init=ears)
    ours = tree.unflatten(like, tree.flatten(build_alm(config, jax.random.key(0))) | read)

    nothing = np.zeros(IDS.shape[1])
    place = np.array([*range(QUERIES), *[-1] * TEXT.shape[1]])
    rows = [
        Row(np.where(place >= 0, 0, ids), nothing - 1, nothing - 1, nothing, nothing, nothing,
            image_index=place, images=(0,), image_text=(tuple(words[: mask.sum()]),))
        for ids, words, mask in zip(IDS, WORDS, WORD_MASK)
    ]  # fmt: skip
    batch = collate(rows, 12, slots=0, images=1)
    batch.image = IMAGES[:, None]
    with torch.no_grad():
        expected = theirs(
            pixel_values=PIXELS,
            input_ids=torch.tensor(IDS),
            qformer_input_ids=torch.tensor(WORDS),
            qformer_attention_mask=torch.tensor(WORD_MASK),
        ).logits
    found = assert_close(ours.logits(ours.hidden(batch))[:, : IDS.shape[1]], expected, DEEP)
    source = "transformers.InstructBlipForConditionalGeneration"
    record(record_property, model="APT-BLIP-2", source=source, errors={"logits": found}, directions=["in"])


def test_official_names_of_the_whole():
    """A state dict of `transformers` under the names of LAVIS (the inverse of its conversion script's renaming)."""
    theirs = randomise(whole_model("InstructBlip", True))
    tensors = state(theirs)
    config = whole_config(theirs)
    config = replace(config, vision=replace(config.vision, encoder=replace(config.vision.encoder, bias="qvo")))
    for key in tensors:
        if key.endswith("qkv.bias"):
            tensors[key][16:32] = 0
    inside = {k.removeprefix("vision_model."): v for k, v in tensors.items() if k.startswith("vision_model.")}
    official = {f"visual_encoder.{key}": value for key, value in official_names(inside, 3).items()}
    for key, value in tensors.items():
        key = key.replace("vision_model.post_layernorm", "ln_vision").replace("language_projection", "llm_proj")
        key = key.replace("language_model.", "llm_model.").replace("attention.attention", "attention.self")
        key = key.replace("crossattention.attention", "crossattention.self").replace(
            "embeddings.layernorm", "embeddings.LayerNorm"
        )
        if not key.startswith("vision_model."):
            official[key.replace("qformer.", "Qformer.bert.")] = value
    ours, again = (
        tree.flatten(build(Blip, config, found, table))
        for found, table in ((tensors, apt_blip2.hf(config)), (official, apt_blip2.official(config)))
    )
    assert ours.keys() == again.keys()
    assert all(np.array_equal(ours[path], again[path]) for path in ours)


def test_published_qformers():
    """What `transformers` has by default, but for `[DEC]`."""
    from transformers import Blip2QFormerConfig, InstructBlipQFormerConfig

    for name, theirs in (
        ("instructblip_qformer", InstructBlipQFormerConfig()),
        ("blip2_qformer", Blip2QFormerConfig()),
    ):
        found = qformer.from_hf_config(theirs.to_dict(), steps=CONFIGS["eva_vit_g"].steps)
        assert found == replace(CONFIGS[name], vocab_size=30522)
