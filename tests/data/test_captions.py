"""Texts in the place of clips: their ids as MS-CLAP's package makes them, and in batches."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.core.sequence import Layout
from alm_jax.data.captions import NO_TOKEN, Captions
from alm_jax.data.pipeline import make_pipeline
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.templates import MATS
from alm_jax.data.tokenizer import JsonTokenizer, train_tokenizer

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def gpt2():
    """A byte-level tokenizer as GPT-2's: "!" is id 0, nothing opens a text, and one token ends it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)} | {END: len(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return JsonTokenizer(tokenizer.to_str(), eos=END)


def test_a_text_ends_as_ms_clap_ends_it(gpt2):
    assert gpt2.encode("!") == [0] and gpt2.bos_id is None
    ids = Captions(gpt2, 77, " ").numpy("Stop! it rings")
    ended = gpt2.encode(f"Stop! it rings {END}")  # what the package tokenizes
    assert ids.dtype == np.int32 and ids.shape == (77,)
    np.testing.assert_array_equal(ids[: len(ended)], ended)
    assert (ids[len(ended) :] == NO_TOKEN).all()  # so that "!" is told from filling


def test_a_text_of_more_tokens_loses_its_end(gpt2):
    long = "a dog barks " * 20
    ids = Captions(gpt2, 77, " ").numpy(long)
    np.testing.assert_array_equal(ids, [*gpt2.encode(long)[:76], gpt2.eos_id])


def test_texts_of_sentence_encoders_are_opened_and_ended():
    words = train_tokenizer(["A dog barks."], 270)
    np.testing.assert_array_equal(
        Captions(words, 40).numpy("A dog")[:3], [words.bos_id, *words.encode("A dog"), words.eos_id][:3]
    )
    ids = Captions(words, 5).numpy("A dog barks. " * 9)
    assert (ids[0], ids[-1]) == (words.bos_id, words.eos_id)


def test_an_empty_text_is_refused(gpt2):
    with pytest.raises(DataError, match="a caption is empty"):
        Captions(gpt2, 77).numpy("  ")


def test_batches_hold_texts_in_the_place_of_clips(tmp_path, gpt2):
    rows = [{"instruction": "What?", "caption": f"A dog, {n}.", "output": f"{n} dogs"} for n in range(5)]
    rows.append({"instruction": "What?", "audio_id": "dog.wav", "output": "A dog"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    captions = Captions(gpt2, 20, " ")
    spec = DataSpec((Source(str(tmp_path / "rows.json")),), 6, (80,), shuffle=False, max_bad_share=0.5)
    options = dict(template=MATS, layout=Layout(), tokenizer=gpt2, audio=captions, audio_tokens=2)
    loaded = make_pipeline(spec, hears="text", **options).load(0)
    assert loaded.batch.audio.dtype == np.int32 and loaded.batch.audio.shape == (6, 1, 20)
    for row, windows in zip(rows[:5], loaded.batch.audio):
        np.testing.assert_array_equal(windows[0], captions.numpy(row["caption"]))
    assert (loaded.batch.audio_index >= 0).sum(1).tolist() == [2] * 5 + [0]
    assert len(loaded.bad) == 1 and "no caption" in loaded.bad[0] and not loaded.batch.loss_weight[5].any()
    with pytest.raises(ConfigError, match="texts cannot be augmented"):
        make_pipeline(spec, hears="text", augment=lambda window, rng: window, **options)
