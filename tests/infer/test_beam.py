"""Beam search against `transformers`' on random weights, and padded rows against rows alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core import tree
from alm_jax.core.errors import ConfigError
from alm_jax.core.sequence import Row, collate
from alm_jax.infer import beam
from alm_jax.infer.generate import generate
from alm_jax.infer.sampling import APT_SAMPLING, MATS_SAMPLING, Sampling
from alm_jax.models.alm import build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.ltu import ltu

VOCAB, EOS, NEW = 40, 2, 9
LLAMA = LlamaConfig(VOCAB, dim=32, depth=2, heads=4, kv_heads=2, mlp_dim=48)
# With each, whether the repetition penalty sees the prompt.
SAMPLINGS = [
    (Sampling(beams=3), False),
    (Sampling(beams=4, length_penalty=2.0, repetition_penalty=1.3), True),
    (replace(APT_SAMPLING, length_penalty=-1.0), False),
    (MATS_SAMPLING, False),
]


def _prompt(length, seed, penalised):
    tokens = np.random.default_rng(seed).integers(3, VOCAB, length)
    nothing, none = np.zeros(length), np.full(length, -1)
    return Row(tokens, none, none, nothing, nothing, np.full(length, penalised))


def _model(key=0):
    # A fresh model is nearly flat: sharpen its logits, so that answers are far apart, and some end.
    model = build(ltu(LLAMA, CavMaeConfig(frames=64, mels=32, dim=16, heads=2, depth=2)), jax.random.key(key))
    head = model.decoder.head.kernel
    head[...] = 6 * head[...].at[:, EOS].multiply(2.0)
    return model


@pytest.mark.torch
@pytest.mark.parametrize("sampling, penalised", SAMPLINGS, ids=repr)
def test_equals_transformers(sampling, penalised):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from alm_jax.convert import llama
    from alm_jax.convert.save import export

    config = transformers.LlamaConfig(
        **{k: v for k, v in llama.to_hf_config(LLAMA).items() if k not in ("architectures", "torch_dtype")}
    )
    ended = []
    for key in range(6):
        model = _model(key)
        theirs = transformers.LlamaForCausalLM(config).eval()
        exported = export(tree.flatten(model.decoder), llama.hf(LLAMA))
        tensors = {name: torch.tensor(np.asarray(array)) for name, array in exported}
        theirs.load_state_dict(tensors, strict=True)
        row = _prompt(6, key, penalised)
        ids = torch.tensor(row.tokens[None])
        given = {"input_ids": ids} if penalised else {"inputs_embeds": theirs.model.embed_tokens(ids)}
        out = theirs.generate(
            **given,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=sampling.beams,
            max_new_tokens=NEW,
            length_penalty=sampling.length_penalty,
            repetition_penalty=sampling.repetition_penalty,
            no_repeat_ngram_size=sampling.no_repeat_ngram,
            eos_token_id=EOS,
            pad_token_id=0,
        )[0].tolist()
        out = out[6:] if penalised else out
        expected = out[: out.index(EOS)] if EOS in out else out
        ended.append(EOS in out)
        batch = collate([row], len(row), slots=0, pad="left")
        assert beam.search(model, batch, max_new_tokens=NEW, sampling=sampling, eos_ids=(EOS,)) == [expected]
    assert any(ended), "expected answers that end by themselves"


def test_a_row_alone_equals_the_row_in_a_batch():
    model, sampling = _model(), MATS_SAMPLING
    rows = [_prompt(3, 0, False), _prompt(8, 1, False), _prompt(5, 2, False)]
    options = {"max_new_tokens": NEW, "sampling": sampling, "eos_ids": (EOS,)}
    together = generate(model, collate(rows, 8, slots=0, pad="left"), **options)
    assert together == [generate(model, collate([r], len(r), slots=0, pad="left"), **options)[0] for r in rows]


def test_answers_are_streamed_when_they_are_known():
    model, seen = _model(), [[], []]

    def on_token(ids, done):
        for row in range(2):
            seen[row] += [] if done[row] else [int(ids[row])]

    batch = collate([_prompt(4, 0, True), _prompt(4, 1, True)], 4, slots=0, pad="left")
    options = {"max_new_tokens": NEW, "sampling": APT_SAMPLING, "eos_ids": (EOS,), "seeds": np.zeros(2)}
    assert generate(model, batch, on_token=on_token, **options) == seen


def test_ids_that_would_repeat():
    ids = jnp.array([[5, 7, 5, 8, 5, 99, 99], [1, 1, 1, 1, 1, 99, 99]])
    found = lambda size, count: [sorted({int(i) for i in row if i < 99}) for row in beam._repeating(ids, count, size)]
    assert found(2, 5) == [[7, 8], [1]] and found(3, 5) == [[], [1]] and found(1, 2) == [[5, 7], [1]]
    assert found(2, 1) == found(2, 0) == found(3, 2) == [[], []]


@pytest.mark.parametrize(
    "options", [{"beams": 0}, {"beams": 2, "temperature": 0.5}, {"no_repeat_ngram": 2}, {"length_penalty": 2.0}]
)
def test_what_does_not_go_together(options):
    with pytest.raises(ConfigError, match="beam"):
        Sampling(**options)
