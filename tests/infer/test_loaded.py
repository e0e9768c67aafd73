"""A model asked about several clips: where they stand, batches against single questions, segments, ranking, errors."""

from __future__ import annotations

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio.io import write_audio
from alm_jax.core import tree
from alm_jax.core.errors import AudioError, UsageError
from alm_jax.core.sequence import Audio, Text, collate
from alm_jax.data.layout import lay_out_prompt
from alm_jax.data.templates import ALPACA_SHORT, PLAIN
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.infer.loaded import LoadedModel, Spec
from alm_jax.infer.sampling import Sampling
from alm_jax.infer.tagging import TagScorer
from alm_jax.models.aligners.qformer import QFormerConfig
from alm_jax.models.alm import build
from alm_jax.models.apt import LAYOUT, apt
from alm_jax.models.decoders.gpt2 import Gpt2Config
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.audio_mae import AudioMaeConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig
from alm_jax.models.encoders.whisper import WhisperConfig
from alm_jax.models.ltu import LAYOUT as LTU_LAYOUT
from alm_jax.models.ltu import ltu
from alm_jax.models.ltu_as import ltu_as

WORDS = train_tokenizer(["Which is louder, the dog or the cat? This is a sound of rain."], 300)
LLAMA = LlamaConfig(vocab_size=300, dim=16, depth=2, heads=2, kv_heads=2, mlp_dim=24)
ENCODER = AudioMaeConfig(frames=32, mels=16, patch=16, stride=16, dim=16, heads=2, depth=1, mlp_dim=16)
QFORMER = QFormerConfig(queries=2, hidden=16, depth=2, heads=2, mlp_dim=16, vocab_size=301, positions=128)
RNG = np.random.default_rng(0)
A, B, C = (RNG.normal(size=n).astype(np.float32) / 4 for n in (12000, 9000, 11000))  # windows of 0.33 s at 32 kHz
DRAW = {"max_new_tokens": 8, "sampling": Sampling(temperature=1.0), "seed": 3}
WHICH, WHAT = "Which is louder?", "What is heard in <audio>, if <audio> came first?"


def loaded(config, layout, template, aligner_tokenizer=None) -> LoadedModel:
    like = tree.flatten(tree.abstract(lambda key: build(config, key)))
    rng = np.random.default_rng(1)
    arrays = {path: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for path, leaf in like.items()}
    return LoadedModel(Spec(config, layout, template), arrays, WORDS, aligner_tokenizer=aligner_tokenizer)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """APT, with an aligner that reads the text after each clip."""
    return loaded(apt(LLAMA, ENCODER, QFORMER), LAYOUT, PLAIN, WORDS)


def test_clips_lead_or_stand_where_they_are_marked(model):
    marked = model.generate("<audio><audio>Which is louder?", [A, B], **DRAW)
    assert model.generate(WHICH, [A, B], **DRAW) == marked
    asked = [(WHICH, [A, B]), (WHICH, [B, A]), (WHICH, [A]), ("<audio>Which is louder?<audio>", [A, B])]
    scores = [model.rank(question, ["rain"], clips)["rain"] for question, clips in asked]
    assert len({round(score, 4) for score in scores}) == 4  # order and place count
    row = model.prompt(WHAT, model.encode([A, B]))
    parts = [Text("What is heard in "), Audio(0), Text(", if "), Audio(1), Text(" came first?")]
    expected = lay_out_prompt(parts, LAYOUT, WORDS, audio_tokens=2, aligner_tokenizer=WORDS)
    assert row.tokens.tolist() == expected.tokens.tolist() and row.audio_index.tolist() == expected.audio_index.tolist()
    assert row.aligner_text == expected.aligner_text and row.clips == (0, 1)


def test_batches_of_unequal_rows_answer_as_single_questions(model):
    questions = [WHICH, WHAT, "Why?", "What is heard?"]
    audio = [[A, B, C], [B, A], None, C]
    alone = [model.generate(q, a, **DRAW) for q, a in zip(questions, audio)]
    assert model.generate(questions, audio, **DRAW) == alone
    assert len(set(alone)) == 4
    shared = model.generate(questions[::3], [[A, B]] * 2, **DRAW)
    assert shared == [model.generate(q, [A, B], **DRAW) for q in questions[::3]]
    beams = {"max_new_tokens": 6, "sampling": Sampling(beams=3, repetition_penalty=1.5, length_penalty=2.0)}
    together = model.generate(questions[1:3], audio[1:3], **beams)
    assert together == [model.generate(q, a, **beams) for q, a in zip(questions[1:3], audio[1:3])]


def test_logits_do_not_depend_on_padding(model):
    """Longer rows, more slots and longer texts for the aligner beside a row change nothing: 1e-5, sums in any order."""
    features = [model.encode([A]), model.encode([B, C, A])]
    rows = [model.prompt(q, f) for q, f in zip(["Why?", "What is heard? " * 9], features)]

    def logits(rows, features, length, slots):
        batch = collate(rows, length, slots=slots, pad="left")
        empty = jnp.zeros((1, *model.config.aligner.feature_shape))
        batch.audio = jnp.stack([jnp.concatenate(f + [empty] * (slots - len(f))) for f in features])
        return np.asarray(model._reader.logits(model._reader.hidden(batch))[:, -1])

    alone = logits(rows[:1], features[:1], len(rows[0]), 1)
    beside = logits(rows, features, len(rows[1]) + 40, 5)[:1]
    np.testing.assert_allclose(beside, alone, atol=1e-5)
    assert np.abs(alone).max() > 0.1


def test_examples_stand_before_the_question(model):
    examples = [(A, "This is a dog"), (B, "This is rain")]
    expected = model.generate("<audio>This is a dog<audio>This is rain<audio>This is", [A, B, C], **DRAW)
    assert model.generate("This is", C, examples=examples, **DRAW) == expected
    assert model.generate(["This is", "<audio>This is"], C, examples=examples, **DRAW) == [expected] * 2


def test_long_clips_in_segments(model, tmp_path):
    """Windows of 32 frames of 10 ms: 0.8 s are three, what the second holds is heard, and one token run after it."""
    long = RNG.normal(size=25600).astype(np.float32) / 4
    (features,) = model.encode([long], segments=4)
    assert features.shape == (3, *model.config.aligner.feature_shape)
    frontend = model.config.frontend
    frames = replace(frontend, frames=None).numpy(long)
    windows = np.pad(frames, ((0, 96 - len(frames)), (0, 0))).reshape(3, 32, 16)  # silence, where std is 1 and mean 0
    expected = model._model.encode(jnp.asarray(windows)).values[0]
    np.testing.assert_allclose(features[:, 0], expected, atol=1e-5)
    row = model.prompt("Why?", [features])
    assert row.clips == (0, 0, 0) and (row.audio_index >= 0).sum() == 6 and (row.indicator_index >= 0).sum() == 1
    assert len(row.aligner_text) == 3

    write_audio(tmp_path / "long.wav", long, 32000)
    for clip in (long, tmp_path / "long.wav"):
        with pytest.raises(AudioError, match=r"longer than 2 segments, which are 0\.64 s: cut it, or allow more"):
            model.encode([clip], segments=2)
        assert model.encode([clip], segments=1)[0].shape[0] == 1
    first = model.generate("Why?", [long, A], **DRAW)
    assert model.generate("Why?", [long, A], segments=3, **DRAW) != first
    assert model.generate(["Why?", WHICH], [[long, A], [B]], segments=3, **DRAW) == [
        model.generate("Why?", [long, A], segments=3, **DRAW),
        model.generate(WHICH, [B], **DRAW),
    ]
    whole = loaded(ltu(LLAMA, CavMaeConfig(frames=32, dim=16, heads=2, depth=2)), LTU_LAYOUT, ALPACA_SHORT)
    write_audio(tmp_path / "long16.wav", long, 16000)  # 1.6 s, of which no more than is needed is read
    with pytest.raises(AudioError, match="longer than 3 segments"):
        whole.encode([tmp_path / "long16.wav"], segments=3)
    assert whole.encode([tmp_path / "long16.wav"], segments=5)[0].shape[0] == 5
    whisper = loaded(ltu_as(LLAMA, WhisperConfig(dim=16, heads=2, depth=2, positions=500)), LTU_LAYOUT, ALPACA_SHORT)
    with pytest.raises(UsageError, match="WhisperLogMel hears one window of a clip: leave segments out"):
        whisper.encode([A], segments=2)


@jax.jit
def _log_softmax(reader, batch):
    return jax.nn.log_softmax(reader.logits(reader.hidden(batch)))


def mean_likelihood(model, row, ids) -> float:
    """The mean log-likelihood of ids after a prompt, by one pass over the whole row."""
    grow = lambda values, fill: np.concatenate([values, np.full(len(ids), fill)])
    tokens = np.concatenate([row.tokens, ids])
    longer = replace(
        row,
        tokens=tokens,
        audio_index=grow(row.audio_index, -1),
        indicator_index=grow(row.indicator_index, -1),
        targets=tokens,
        loss_weight=tokens * 0.0,
        penalty_mask=tokens < 0,
    )
    batch = collate([longer], len(row) + 32, slots=2)  # rows of one length are one program
    batch.audio = jnp.concatenate(model.encode([A, B]))[None]
    logs = np.asarray(_log_softmax(model._reader, batch)[0])
    return logs[np.arange(len(row) - 1, len(tokens) - 1), ids].mean()


def test_ranking_of_choices(model):
    choices = ["rain", "a sound of the dog", "cat", "Which?", "louder"]
    ranked = model.rank(WHICH, choices, [A, B])
    assert sorted(ranked) == sorted(choices) and list(ranked.values()) == sorted(ranked.values(), reverse=True)
    row = model.prompt(WHICH, model.encode([A, B]))
    for choice, score in ranked.items():  # sums over a cache and over whole rows: 1e-4
        assert score == pytest.approx(mean_likelihood(model, row, WORDS.encode(choice)), abs=1e-4)
    several = model.rank([WHICH, WHAT, "Why?"], choices, [[A, B], [B, A], None])
    for found, expected in zip(several, [ranked, model.rank(WHAT, choices, [B, A]), model.rank("Why?", choices)]):
        assert list(found) == list(expected) and found == pytest.approx(expected, abs=1e-5)
    whole = loaded(ltu(LLAMA, CavMaeConfig(frames=32, dim=16, heads=2, depth=2)), LTU_LAYOUT, ALPACA_SHORT)
    ranked = whole.rank(WHICH, choices, A)
    assert sorted(ranked) == sorted(choices) and len(set(ranked.values())) == 5


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.generate(WHAT, [A]), "holds 2 <audio> marks, and 1 clip is given: give one clip a mark"),
        (lambda m: m.generate("What is <audio>?"), "holds 1 <audio> mark, and no clips are given"),
        (lambda m: m.generate("What is <audio>?", [A, B, C]), "holds 1 <audio> mark, and 3 clips are given"),
        (lambda m: m.generate("Why?", A, input="<audio> or <audio>?"), "holds 2 <audio> marks, and 1 clip"),
        (lambda m: m.generate("This <audio>", [A, B], examples=[(A, "is")]), "1 <audio> mark, and 2 clips"),
        (lambda m: m.generate("This", A, examples=[(A, " ")]), "an example's text is ' ': expected what is to be said"),
        (lambda m: m.generate("This", A, examples=[(A, "<audio>")]), "without marks"),
        (lambda m: m.generate("Why?", []), None),
        (lambda m: m.encode([]), "no clips: give one at least"),
        (lambda m: m.encode([A], segments=0), "segments is 0: expected 1 or more"),
        (lambda m: m.generate(["Why?", "How?"], [A, B, C]), "2 questions but 3 clips"),
        (lambda m: m.rank("Why?", []), "a question has no choices"),
        (lambda m: m.rank("Why?", ["rain", " "]), "or an empty one: give each some text"),
    ],
)
def test_what_cannot_be_asked(model, ask, message):
    if message is None:
        assert ask(model) == model.generate("Why?")
        return
    with pytest.raises(UsageError, match=message.replace("?", r"\?")) as error:
        ask(model)
    assert "\n" not in str(error.value)


def test_rows_longer_than_the_model_reads(caplog):
    decoder = Gpt2Config(300, dim=16, depth=1, heads=2, mlp_dim=16, positions=40)
    model = loaded(apt(decoder, ENCODER, QFORMER), LAYOUT, PLAIN, WORDS)
    length = len(model.prompt("Why?", model.encode([A, B])))
    with caplog.at_level(logging.ERROR):
        model.generate("Why?", [A, B], max_new_tokens=41 - length)
    said = f"takes {length} positions and the answer {42 - length}, the model reads 40: ask for a shorter answer"
    with pytest.raises(UsageError, match=said):
        model.generate("Why?", [A, B], max_new_tokens=42 - length)
    with pytest.raises(UsageError, match="the model reads 40"):
        model.generate("Why?", [A] * 16, max_new_tokens=1)
    with pytest.raises(UsageError, match="the model reads 40"):
        model.rank("Why?", ["rain", "a" * 40], A)


def test_an_aligner_without_a_decoder_scores_tags():
    model = loaded(apt(None, ENCODER, QFORMER), LAYOUT, PLAIN, WORDS)
    with pytest.raises(UsageError, match="is an aligner without a decoder, and cannot answer: train the stage after"):
        model.generate("Why?", A)
    scores = TagScorer(model.aligner, model.aligner_tokenizer, ["dog", "rain"])(["the dog", "", "rain"])
    assert scores.shape == (3, 2) and (scores[1] == 0).all() and (scores[[0, 2]] > 0).all()
