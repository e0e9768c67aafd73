"""APT-BLIP-2: where images, clips and text stand in its published variants, and what the decoder reads there.

Its image side is compared with `transformers` in `tests/convert/test_parity_vision.py`, its audio side is APT's.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.core.sequence import Audio, Image, Text, collate
from alm_jax.data.layout import lay_out, lay_out_prompt, row_lengths
from alm_jax.data.tokenizer import Tokenizer
from alm_jax.infer.generate import generate
from alm_jax.infer.rank import rank
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.alm import build
from alm_jax.models.apt_blip2 import BOS_BEFORE_TEXT, LAYOUT, apt_blip2, parts
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.vit import VitConfig
from alm_jax.models.features import AlignerText, Features
from tests.modules import randomised

ALIGNER = QFormerConfig(queries=2, hidden=8, depth=2, heads=2, mlp_dim=8, vocab_size=128, positions=128)
CONFIG = apt_blip2(
    LlamaConfig(vocab_size=128, dim=16, depth=2, heads=2, kv_heads=2, mlp_dim=16),
    AudioMaeConfig(frames=32, mels=16, patch=8, stride=8, dim=8, heads=2, depth=2, mlp_dim=8),
    ALIGNER,
    VitConfig(size=8, patch=4, dim=12, heads=2, depth=2, mlp_dim=8, norm=False),
    replace(ALIGNER, queries=3),
)


class Letters(Tokenizer):
    """A letter is its code; `>` opens, `.` ends."""

    bos_id, eos_id, pad_id, vocab_size, fingerprint = ord(">"), ord("."), 0, 128, "letters"

    def encode_batch(self, texts):
        return [list(map(ord, t)) for t in texts]

    def decode(self, ids, skip_special=True):
        return "".join(map(chr, ids))

    def save(self, folder):
        raise AssertionError


LETTERS = Letters()
TOKENS = {"audio_tokens": CONFIG.audio_tokens, "image_tokens": CONFIG.image_tokens}
OPTIONS = TOKENS | {"aligner_tokenizer": LETTERS}


def spell(row):
    """A row as text: images as capitals of their index, audio as digits, the indicator as `[`."""
    images = row.image_index if row.images else np.full(len(row), -1)
    cells = zip(row.tokens, images, row.audio_index, row.indicator_index)
    return "".join(
        chr(ord("A") + i) if i >= 0 else str(a) if a >= 0 else "[" if v >= 0 else chr(t) for t, i, a, v in cells
    )


def read(texts):
    return ["".join(map(chr, ids)) for ids in texts]


@pytest.fixture(scope="module")
def model():
    """Weights large enough that every part shows."""
    return randomised(lambda key: build(CONFIG, key), 0.2)


@pytest.fixture(scope="module")
def seen_and_heard():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 2, 8, 8, 3)).astype(np.float32), rng.normal(size=(2, 1, 32, 16)).astype(np.float32)


def test_published_orders():
    asked = parts("why", frames=2)
    new = lay_out_prompt(asked, LAYOUT, LETTERS, **OPTIONS)
    assert spell(new) == "ABCDEF.[01why"  # X_image <BOS> <AUDIO> X_audio X_text
    assert new.images == (0, 1) and read(new.image_text) == [">why."] * 2 and read(new.aligner_text) == [">why."]
    old = lay_out_prompt(asked, BOS_BEFORE_TEXT, LETTERS, **OPTIONS)
    assert spell(old) == "ABCDEF[01.why"
    apart = lay_out_prompt(parts("why", image_prompt="see"), LAYOUT, LETTERS, **OPTIONS)
    assert (
        spell(apart) == "ABC.[01why" and read(apart.image_text) == [">see."] and read(apart.aligner_text) == [">why."]
    )
    assert spell(lay_out_prompt(parts("why", clips=0), LAYOUT, LETTERS, **OPTIONS)) == "ABC.why"
    assert spell(lay_out_prompt(parts("why", frames=0), LAYOUT, LETTERS, **OPTIONS)) == ".[01why"


def test_images_anywhere():
    """An image that is seen again takes no further slot; answers are learnt as they are elsewhere."""
    mixed = [Text("a"), Image(1), Text("b"), Image(0), Image(1), Audio(0), Text("cd", loss=True)]
    row = lay_out(mixed, replace(LAYOUT, bos="first"), LETTERS, **OPTIONS)
    assert spell(row) == ".aABCbDEFABC[01cd." and row.images == (1, 0) and read(row.image_text) == [">b.", ">."]
    assert "".join(chr(t) for t, w in zip(row.targets, row.loss_weight) if w) == "cd."
    assert row_lengths([mixed], replace(LAYOUT, bos="first"), LETTERS, **TOKENS) == [len(row)]


def _batch(rows, length, images, audio, pad="right"):
    batch = collate(rows, length, slots=1, images=images.shape[1], pad=pad)
    batch.image, batch.audio = images, audio
    return batch


def _read(text):
    ids = jnp.array([list(map(ord, text))])
    return AlignerText(ids, jnp.ones(ids.shape, bool))


def test_the_decoder_reads_a_sequence_put_together_by_hand(model, seen_and_heard):
    """Each frame by itself through encoder and Q-Former, one after the other; float32 sums in other shapes."""
    images, audio = seen_and_heard
    rows = [
        lay_out_prompt(parts("why", frames=2, image_prompt="see it"), LAYOUT, LETTERS, **OPTIONS),
        lay_out_prompt(parts("who", clips=0), LAYOUT, LETTERS, **OPTIONS),
    ]
    batch = _batch(rows, 20, images, audio)
    found, hidden = jax.jit(lambda model, batch: (model.embed(batch), model.hidden(batch)))(model, batch)
    look = jax.jit(lambda vision, image, text: vision.aligner(vision.encoder(image), text)[0][0])
    hear = jax.jit(lambda model, x, text: model.aligner(Features(model.encoder(x).values), text)[0][0])

    def frame(row, image, text):
        return look(model.vision, images[row, image][None], _read(text))

    words = lambda text: model.decoder.embed(jnp.array(list(map(ord, text))))
    clip = hear(model, audio[0], _read(">why."))
    first = [frame(0, 0, ">see it."), frame(0, 1, ">see it."), words("."), model.indicators[...], clip, words("why")]
    second = [frame(1, 0, ">who."), words(".who")]
    for row, pieces in enumerate((first, second)):
        expected = jnp.concatenate(pieces)
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-5)
        positions, ones = jnp.arange(len(expected))[None], jnp.ones((1, len(expected)), jnp.int32)
        alone = jax.jit(model.decoder.__call__)(expected[None], positions, ones, ones)
        np.testing.assert_allclose(hidden[row, : len(expected)], alone[0], atol=1e-4)


def test_every_sense_matters_and_padding_does_not(model, seen_and_heard):
    images, audio = seen_and_heard
    row = lay_out_prompt(parts("why", frames=2), LAYOUT, LETTERS, **OPTIONS)
    hidden = jax.jit(lambda batch: model.prefill(batch, 64)[0][0, -1])
    batch = lambda images, audio, length: _batch([row], length, images, audio, pad="left")
    here = hidden(batch(images[:1], audio[:1], len(row)))
    np.testing.assert_allclose(here, hidden(batch(images[:1], audio[:1], 32)), atol=1e-4)  # float32, other shapes
    more = np.concatenate([images[:1], images[1:, :1]], axis=1)
    np.testing.assert_allclose(here, hidden(batch(more, audio[:1], len(row))), atol=1e-4)  # an empty slot
    assert np.abs(here - hidden(batch(images[:1, ::-1], audio[:1], len(row)))).max() > 1e-3
    assert np.abs(here - hidden(batch(images[:1], audio[1:], len(row)))).max() > 1e-3


def test_four_way_choice(model, seen_and_heard):
    """The option that greedy generation would say is the likeliest; all rows in one batch."""
    images, audio = seen_and_heard
    rows = [lay_out_prompt(parts(text), LAYOUT, LETTERS, **OPTIONS) for text in ("why", "whose")]
    batch = _batch(rows, 16, images[:, :1], audio, pad="left")
    said = generate(model, batch, max_new_tokens=3)
    options = [[[70, 71], ids, [72], [73, 74, 75]] for ids in said]
    assert rank(model, batch, options).best().tolist() == [1, 1]


def test_sizes_that_do_not_fit():
    for changes, message in (
        ({"encoder": replace(CONFIG.vision.encoder, size=16)}, "encoder.size 16 differs"),
        ({"aligner": replace(CONFIG.vision.aligner, dim=9)}, "aligner.dim 9 differs"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(CONFIG.vision, **changes)
    wrong = replace(CONFIG.vision, aligner=replace(CONFIG.vision.aligner, out_dim=9))
    with pytest.raises(ConfigError, match=r"vision.aligner.out_dim 9 differs from decoder.dim 16"):
        replace(CONFIG, vision=wrong)


def test_published_sizes():
    assert apt_blip2().vision.aligner.feature_shape == (1, 257, 1408)
    assert (apt_blip2().image_tokens, apt_blip2().audio_tokens) == (32, 32)
