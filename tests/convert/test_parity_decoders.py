"""Decoders against `transformers` with random weights, in and out (`tests.convert.parity`).

Each config is read from the settings of PyTorch's model, and what `to_hf_config` makes of it builds the one that takes
our export.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.convert import gpt2, llama
from alm_jax.convert.layouts import LAYOUTS
from alm_jax.core.sequence import Row, collate
from alm_jax.infer.generate import steps
from alm_jax.layers.rope import LinearRope, Llama3Rope
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.alm import build as alm
from alm_jax.models.decoders.gpt2 import Gpt2, Lora
from alm_jax.models.decoders.llama import Llama
from tests.convert.parity import SIMPLE, assert_close, build, check_pair, randomise, state, torch

pytestmark = pytest.mark.torch

IDS = np.random.default_rng(0).integers(0, 40, (2, 9))
ONES = jnp.ones((2, 9), jnp.int32)
SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 12}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 0.1, "high_freq_factor": 1.0}


def logits(model):
    """Ours: float32 [2, 9, vocab] of `IDS`."""
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    return model.logits(model(model.embed(IDS), positions, ONES, ONES))


def torch_logits(model):
    return model(input_ids=torch.tensor(IDS)).logits


def settings(model):
    """What `config.json` of PyTorch's model holds."""
    return json.loads(model.config.to_json_string(use_diff=False))


def check(record_property, name, module, convert, theirs, config, **options):
    layout = {llama: "llama_hf", gpt2: "gpt2_hf"}[convert]
    arguments = {"table": LAYOUTS[layout].table(config), "ours_out": logits, "theirs_out": torch_logits} | options
    return check_pair(record_property, model=name, module=module, config=config, theirs=theirs, **arguments)


@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("LLaMA", {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}}, {"rope_theta": 1000.0}),
        ("SmolLM2", {"tie_word_embeddings": True}, {"tie_embeddings": True}),
        (
            "Llama 3.1",
            {"rope_parameters": LLAMA3},
            {"rope_theta": 100.0, "rope_scaling": Llama3Rope(4.0, 0.1, 1.0, 16)},
        ),
        (
            "LLaMA, linear rope, wide heads, biases",
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "head_dim": 12, "attention_bias": True},
            {"rope_scaling": LinearRope(4.0), "head_dim": 12, "bias": "qkvo"},
        ),
    ],
)
def test_llama(record_property, name, options, ours):
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, **options))
    config = llama.from_hf_config(settings(theirs))
    assert {field: getattr(config, field) for field in ours} == ours
    rebuilt = lambda: LlamaForCausalLM(LlamaConfig(**llama.to_hf_config(config)))
    check(record_property, name, Llama, llama, theirs, config, rebuilt=rebuilt)


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2(record_property, tied):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    theirs = Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS, tie_word_embeddings=tied))
    config = llama.from_hf_config(settings(theirs))
    assert (config.bias, config.tie_embeddings) == ("qkv", tied)
    rebuilt = lambda: Qwen2ForCausalLM(Qwen2Config(**llama.to_hf_config(config)))
    check(record_property, "Qwen2", Llama, llama, theirs, config, rebuilt=rebuilt)


def test_llama_with_lora(record_property):
    from transformers import LlamaConfig, LlamaForCausalLM

    peft = pytest.importorskip("peft")
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    lora = Lora(rank=4, alpha=8.0, dropout=0.0, targets=("attn.q", "attn.v", "mlp.down"))
    config = llama.from_hf_config(settings(theirs) | {"unheard_of": 1})
    config = config.__class__(**vars(config) | {"lora": lora})
    options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    check(record_property, "LLaMA with LoRA", Llama, llama, peft.get_peft_model(theirs, options), config)


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2(record_property, tied):
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(**GPT2, n_inner=None if tied else 48, tie_word_embeddings=tied))
    config = gpt2.from_hf_config(settings(theirs))
    assert (config.mlp_dim, config.tie_embeddings) == (128 if tied else 48, tied)
    rebuilt = lambda: GPT2LMHeadModel(GPT2Config(**gpt2.to_hf_config(config)))
    check(record_property, "GPT-2", Gpt2, gpt2, theirs, config, rebuilt=rebuilt)


def test_gpt2_with_lora(record_property):
    from transformers import GPT2Config, GPT2LMHeadModel

    peft = pytest.importorskip("peft")
    theirs = GPT2LMHeadModel(GPT2Config(**GPT2))
    lora = Lora(rank=4, alpha=16.0, dropout=0.0, targets=("attn.qkv", "mlp.down"))
    config = gpt2.from_hf_config(settings(theirs))
    config = config.__class__(**vars(config) | {"lora": lora})
    options = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)
    check(record_property, "GPT-2 with LoRA", Gpt2, gpt2, peft.get_peft_model(theirs, options), config)


def test_gpt2_as_a_text_tower(record_property):
    """Hidden states under a key mask and positions of its own: right-padded (MS-CLAP) and left-padded rows."""
    from transformers import GPT2Config, GPT2Model

    theirs = GPT2Model(GPT2Config(**GPT2))
    config = gpt2.from_hf_config(settings(theirs))
    mask = np.array([[1] * 6 + [0] * 3, [0] * 2 + [1] * 7])
    positions = np.array([[*range(6), 1, 1, 1], [3, 3, *range(7)]])

    def hidden(model):
        # The left-padded row's first queries see nothing, and are not compared.
        return model(model.embed(IDS), jnp.array(positions), ONES, jnp.array(mask)) * mask[..., None]

    def torch_hidden(model):
        seen, places = torch.tensor(mask), torch.tensor(positions)
        out = model(input_ids=torch.tensor(IDS), attention_mask=seen, position_ids=places)
        return out.last_hidden_state * seen[..., None]

    outputs = {"ours_out": hidden, "theirs_out": torch_hidden}
    rebuilt = lambda: GPT2Model(GPT2Config(**gpt2.to_hf_config(config)))
    check(record_property, "GPT-2 text tower", Gpt2, gpt2, theirs, config, rebuilt=rebuilt, **outputs)


def gpt2_to_generate():
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(**GPT2 | {"n_positions": 24}))
    return theirs, Gpt2, gpt2.from_hf_config(settings(theirs)), "gpt2_hf"


def qwen2_to_generate():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    theirs = Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS, rope_parameters=LLAMA3))
    return theirs, Llama, llama.from_hf_config(settings(theirs)), "llama_hf"


@pytest.mark.parametrize("make", [gpt2_to_generate, qwen2_to_generate], ids=["gpt2", "qwen2"])
def test_greedy_generation(make):
    """Prompts of two lengths in one batch, through the key-value cache, as `generate` of transformers."""
    theirs, module, config, layout = make()
    randomise(theirs.eval())
    theirs.generation_config.eos_token_id = None
    model = alm(AlmConfig(KaldiFbank(), None, PooledLinearConfig(dim=8, out_dim=32), config), jax.random.key(0))
    model.decoder = build(module, config, state(theirs), LAYOUTS[layout].table(config))

    lengths, new = (9, 5), 10
    rows = [prompt(IDS[i, -n:]) for i, n in enumerate(lengths)]
    found = list(steps(model, collate(rows, 9, slots=0, pad="left"), max_new_tokens=new))
    mask = np.array([[0] * (9 - n) + [1] * n for n in lengths])
    expected = theirs.generate(
        torch.tensor(IDS * mask),
        attention_mask=torch.tensor(mask),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    np.testing.assert_array_equal(np.stack([ids for ids, _, _ in found], 1), expected.sequences[:, 9:])
    for (_, _, ours), logits in zip(found, expected.logits, strict=True):
        assert_close(ours, logits, SIMPLE)


def prompt(ids):
    """A row of text alone."""
    nothing, none = np.zeros(len(ids)), np.full(len(ids), -1)
    return Row(ids, none, none, nothing, nothing, np.ones(len(ids), bool), ())
