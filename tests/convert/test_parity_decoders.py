"""Decoders against `transformers` with random weights, in and out (`tests.convert.parity`)."""

import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.convert.layouts import LAYOUTS
from alm_jax.models.decoders.llama import Llama, LlamaConfig, Lora
from tests.convert.parity import check_pair, torch

pytestmark = pytest.mark.torch

IDS = np.random.default_rng(0).integers(0, 40, (2, 9))


def logits(model):
    """Ours: float32 [2, 9, vocab] of `IDS`."""
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    ones = jnp.ones((2, 9), jnp.int32)
    return model.logits(model(model.embed(IDS), positions, ones, ones))


def torch_logits(model):
    return model(input_ids=torch.tensor(IDS)).logits


@pytest.mark.parametrize("tied, lora", [(False, False), (True, False), (False, True)])
def test_llama(record_property, tied, lora):
    from transformers import LlamaConfig as Config
    from transformers import LlamaForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"rope_theta": 1000.0, "rope_type": "default"}
    options = {"rope_parameters": rope, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied}
    theirs = LlamaForCausalLM(Config(**sizes, **heads, **options))
    adapter = None
    if lora:
        peft = pytest.importorskip("peft")
        targets = ["q_proj", "v_proj", "down_proj"]
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        adapter = Lora(rank=4, alpha=8.0, dropout=0.0, targets=("attn.q", "attn.v", "mlp.down"))
    config = LlamaConfig(40, 32, 3, 4, 2, 48, rope_theta=1000.0, norm_eps=1e-5, tie_embeddings=tied, lora=adapter)
    check_pair(
        record_property,
        model="LLaMA with LoRA" if lora else "LLaMA",
        module=Llama,
        config=config,
        table=LAYOUTS["llama_hf"].table(config),
        theirs=theirs,
        ours_out=logits,
        theirs_out=torch_logits,
    )
