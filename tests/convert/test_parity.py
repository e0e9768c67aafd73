"""Our models from PyTorch weights: outputs and gradients of `transformers` models with random weights.

Tolerances: both sides compute in float32 with sums in another order. Errors are max|a-b| / max(1, max|b|), 1e-5 for
outputs of these few layers; gradients add up over all positions, 1e-4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.convert.layouts import LAYOUTS
from alm_jax.convert.load import load
from alm_jax.convert.save import export
from alm_jax.core import tree
from alm_jax.models.decoders.llama import Llama, LlamaConfig, Lora
from alm_jax.models.encoders.whisper import Whisper, WhisperConfig
from tests.convert.dict_file import DictFile

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def states(module, take=lambda parameter: parameter):
    return {
        key: take(value).detach().numpy().copy()
        for key, value in module.named_parameters(remove_duplicate=False)
        if take(value) is not None
    }


def build(module, config, tensors, table):
    """Our model with the weights of `tensors`."""
    like = tree.abstract(lambda key: module(config, key))
    return tree.unflatten(like, load(tree.flatten(like), [(DictFile(tensors), table)]))


def assert_close(ours, theirs, tolerance):
    theirs = np.asarray(theirs)
    error = np.abs(np.asarray(ours) - theirs).max() / max(1.0, np.abs(theirs).max())
    assert error <= tolerance, error


def gradients(loss, model):
    """`{path: gradient}` of the floating-point parameters."""
    arrays = tree.flatten(model)
    return jax.grad(lambda arrays: loss(tree.unflatten(model, arrays)))(arrays)


def randomise(model, std=0.2):
    """Weights large enough that every part of the model shows in the output; norms away from one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("tied, lora", [(False, False), (True, False), (False, True)])
def test_llama(tied, lora):
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
    theirs.requires_grad_(True)
    randomise(theirs)
    config = LlamaConfig(40, 32, 3, 4, 2, 48, rope_theta=1000.0, norm_eps=1e-5, tie_embeddings=tied, lora=adapter)
    table = LAYOUTS["llama_hf"].table(config)
    ours = build(Llama, config, states(theirs), table)

    rng = np.random.default_rng(0)
    ids, weight = rng.integers(0, 40, (2, 9)), rng.standard_normal((2, 9, 40)).astype(np.float32)
    expected = theirs(input_ids=torch.tensor(ids)).logits
    (expected * torch.tensor(weight)).sum().backward()

    def logits(model):
        positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
        ones = jnp.ones((2, 9), jnp.int32)
        return model.logits(model(model.embed(ids), positions, ones, ones))

    assert_close(logits(ours), expected.detach(), 1e-5)
    grads = gradients(lambda model: (logits(model) * weight).sum(), ours)
    # gradients travel back under PyTorch's names, which also checks the export
    style = {"tied": tied} if not lora else {"peft": "", "adapter": "default", "base_layer": True, "tied": tied}
    compare(grads, table, states(theirs, lambda parameter: parameter.grad), style)


def compare(grads, table, theirs, style):
    from alm_jax.convert.names import Style

    back = dict(export(grads, table, Style(**style)))
    assert set(back) == set(theirs)
    for key, gradient in theirs.items():
        assert_close(back[key], gradient, 1e-4)
        assert np.abs(gradient).max() > 1e-3, key


def test_whisper_encoder():
    from transformers import WhisperConfig as Config
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    theirs = WhisperEncoder(Config(**sizes, num_mel_bins=8, max_source_positions=12, pad_token_id=0)).eval()
    theirs.requires_grad_(True)
    randomise(theirs)
    config = WhisperConfig(mels=8, dim=32, heads=4, depth=3, positions=12)
    table = LAYOUTS["whisper_hf"].table(config)
    ours = build(Whisper, config, states(theirs), table)

    rng = np.random.default_rng(0)
    mel, weight = (
        rng.standard_normal((2, 24, 8)).astype(np.float32),
        rng.standard_normal((2, 12, 32)).astype(np.float32),
    )
    expected = theirs(torch.tensor(mel).transpose(1, 2), output_hidden_states=True)
    (expected.last_hidden_state * torch.tensor(weight)).sum().backward()

    assert_close(ours(mel).values[0], expected.last_hidden_state.detach(), 1e-5)
    taps = ours(mel, taps=(0, 1, 2)).values
    for tap in range(3):
        assert_close(taps[tap], expected.hidden_states[tap].detach(), 1e-5)
    grads = gradients(lambda model: (model(mel).values[0] * weight).sum(), ours)
    compare(grads, table, states(theirs, lambda parameter: parameter.grad), {"bare": "model.encoder."})


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


def test_whisper_encoder_in_openai_names():
    theirs = OpenAIEncoder(8, 32, 4, 3, 12)
    randomise(theirs)
    config = WhisperConfig(mels=8, dim=32, heads=4, depth=3, positions=12)
    tensors = {"encoder." + key: value for key, value in states(theirs).items()}
    ours = build(Whisper, config, tensors, LAYOUTS["whisper_openai"].table(config))
    mel = np.random.default_rng(0).standard_normal((2, 24, 8)).astype(np.float32)
    with torch.no_grad():
        assert_close(ours(mel).values[0], theirs(torch.tensor(mel).transpose(1, 2)), 1e-5)
