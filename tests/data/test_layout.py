import json
from dataclasses import replace

import numpy as np
import pytest

from alm_jax.core.sequence import Audio, Layout, Text, collate
from alm_jax.data.layout import lay_out, lay_out_prompt, row_lengths, tokenize
from alm_jax.data.rows import read_rows
from alm_jax.data.templates import ALPACA_SHORT
from alm_jax.data.tokenizer import Tokenizer, load_tokenizer

LTU = Layout(bos="after_audio", max_text_tokens=108, loss_on="all")


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


def spell(row):
    """A row as text: audio as digits of its index, indicators as `[`."""
    pairs = zip(row.tokens, row.audio_index, row.indicator_index)
    return "".join(str(a) if a >= 0 else "[" if i >= 0 else chr(t) for t, a, i in pairs)


def learnt(row):
    """The ids that are targets with weight, as text."""
    return "".join(chr(t) for t, w in zip(row.targets, row.loss_weight) if w)


@pytest.fixture(scope="module")
def recorded(golden_ltu, tmp_path_factory):
    text = json.loads((golden_ltu / "ltu_tiny_c_text.json").read_text())
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(text["rows"]))
    return text, read_rows(path), load_tokenizer(golden_ltu / "ltu_tiny_c_spm.model")


def recorded_cases(text):
    """(cutoff, loss on, row, recorded) of every recorded tokenization."""
    for key, value in text["tokenized"].items():
        cutoff = int(key.removeprefix("cutoff").split("_")[0])
        if "boundary" in key:
            yield cutoff, "all", int(key.split("_row")[1].split("_")[0]), value
            continue
        for i, one in enumerate(value):
            yield cutoff, "answer" if "train_on_inputs_False" in key else "all", i, one


@pytest.mark.golden
def test_published_ids_and_labels(recorded):
    text, rows, tokenizer = recorded
    cases = list(recorded_cases(text))
    assert len(cases) == 7 * 4 + 2
    for cutoff, loss_on, index, one in cases:
        layout = replace(LTU, max_text_tokens=cutoff, loss_on=loss_on)
        parts = ALPACA_SHORT.parts(rows[index])
        tokens = tokenize(parts, layout, tokenizer)
        assert tokens.ids == one["input_ids"]
        assert [i if on else -100 for i, on in zip(tokens.ids, tokens.learn)] == one["labels"]

        row = lay_out(parts, layout, tokenizer, audio_tokens=32)
        assert row.clips == (0,)
        np.testing.assert_array_equal(row.audio_index, [*range(32)] + [-1] * len(one["input_ids"]))
        np.testing.assert_array_equal(row.tokens, [0] * 32 + one["input_ids"])
        # shifted: the last audio position does not learn BOS, each text position learns its successor's label
        labels = np.array([-100] * 32 + one["labels"][1:] + [-100])
        np.testing.assert_array_equal(row.loss_weight, labels != -100)
        np.testing.assert_array_equal(row.targets[row.loss_weight > 0], labels[labels != -100])
        np.testing.assert_array_equal(row.penalty_mask, row.audio_index < 0)
        assert row_lengths([parts], layout, tokenizer, audio_tokens=32) == [len(row)]


@pytest.mark.golden
def test_published_prompts(recorded):
    text, rows, tokenizer = recorded
    for recorded_prompt, row in zip(text["prompts"], rows):
        parts = ALPACA_SHORT.parts(replace(row, input=""))  # official inference leaves `input` out
        prompt = lay_out_prompt(parts, replace(LTU, max_text_tokens=8), tokenizer, audio_tokens=32)
        np.testing.assert_array_equal(prompt.tokens[32:], recorded_prompt["infer_ids"])


def test_where_audio_bos_and_eos_stand():
    parts = [Audio(0), Text("ab"), Text("cd", loss=True)]
    first = lay_out(parts, Layout(), LETTERS, audio_tokens=2)
    after = lay_out(parts, Layout(bos="after_audio"), LETTERS, audio_tokens=2)
    assert (spell(first), spell(after)) == (">01abcd.", "01>abcd.")
    assert learnt(first) == learnt(after) == "cd."
    assert learnt(lay_out(parts, Layout(loss_on="all"), LETTERS, audio_tokens=2)) == "abcd."
    assert spell(lay_out(parts, Layout(eos=False), LETTERS, audio_tokens=2)) == ">01abcd"
    ended = [Text("ab", loss=True), Text(".", loss=True)]
    assert spell(lay_out(ended, Layout(), LETTERS, audio_tokens=2)) == ">ab."
    assert spell(lay_out([Text("ab")], Layout(), LETTERS, audio_tokens=2)) == ">ab"
    assert spell(lay_out([Text("ab"), Text("", loss=True)], Layout(), LETTERS, audio_tokens=2)) == ">ab."


def test_interleaved_rows_with_slots_and_indicators():
    parts = [Audio(1), Text("a"), Audio(0), Text("b"), Audio(1), Text("cd", loss=True)]
    layout = Layout(indicators=1, penalize_prompt=False)
    row = lay_out(parts, layout, LETTERS, audio_tokens=2, slots=[2, 1])
    assert spell(row) == ">[01a[2345b[01cd."
    assert row.clips == (1, 0, 0)
    assert learnt(row) == "cd."  # the last audio position learns the answer's first token
    assert not row.penalty_mask.any()
    batch = collate([row], 20, slots=3)
    np.testing.assert_array_equal(batch.audio_clip, [[1, 0, 0]])
    assert row_lengths([parts], layout, LETTERS, audio_tokens=2) == len(lay_out(parts, layout, LETTERS, audio_tokens=2))


def test_cutting_counts_bos_and_drops_what_follows():
    parts = [Audio(0), Text("abc"), Audio(1), Text("de", loss=True)]
    cuts = {3: "01>ab", 4: "01>abc23", 5: "01>abc23d", 6: "01>abc23de", 7: "01>abc23de."}
    for cutoff, expected in cuts.items():
        layout = Layout(bos="after_audio", max_text_tokens=cutoff)
        assert spell(lay_out(parts, layout, LETTERS, audio_tokens=2)) == expected
        assert row_lengths([parts] * 2, layout, LETTERS, audio_tokens=2).tolist() == [len(expected)] * 2


def test_turns_alternate_in_one_text():
    parts = [Text("ab"), Text("c", loss=True), Text("de"), Text("f", loss=True)]
    tokens = tokenize(parts, Layout(), LETTERS)
    assert "".join(chr(i) for i, on in zip(tokens.ids, tokens.learn) if on) == "cf."
    assert spell(lay_out_prompt(parts, Layout(), LETTERS, audio_tokens=2)) == ">abcde"


def test_tokenizers_without_bos():
    class NoBos(Letters):
        bos_id = None

    row = lay_out([Audio(0), Text("a"), Text("b", loss=True)], LTU, NoBos(), audio_tokens=1)
    assert spell(row) == "0ab." and learnt(row) == "ab."
    assert len(lay_out([], LTU, NoBos(), audio_tokens=1)) == 0


APART = Layout(
    indicators=1, opens_with="eos", apart=True, max_prompt_tokens=3, max_answer_tokens=4, aligner_text_tokens=5
)


def test_parts_that_are_tokenized_apart_are_cut_each_by_itself():
    """APT's and MATS's: a prompt keeps its end, an answer its beginning with EOS if there is room."""
    parts = [Audio(0), Text("abcd"), Audio(1), Text("ef"), Text("xyz", loss=True)]
    row = lay_out(parts, APART, LETTERS, audio_tokens=2)
    assert spell(row) == ".[01bcd[23efxyz." and learnt(row) == "xyz."
    assert learnt(lay_out([Text("ef"), Text("vwxyz", loss=True)], APART, LETTERS, audio_tokens=2)) == "vwxy"
    assert spell(lay_out_prompt(parts, APART, LETTERS, audio_tokens=2)) == ".[01bcd[23ef"
    assert row_lengths([parts], APART, LETTERS, audio_tokens=2) == [len(row)]


def test_an_aligner_reads_the_text_that_follows_its_clip():
    parts = [Audio(1), Audio(0), Text("abcd"), Audio(2), Text("e"), Text("xyz", loss=True)]
    options = {"audio_tokens": 2, "slots": [1, 2, 1]}
    row = lay_out(parts, APART, LETTERS, **options, aligner_tokenizer=LETTERS)
    texts = ["".join(map(chr, text)) for text in row.aligner_text]
    assert row.clips == (1, 1, 0, 2) and texts == [">bcd."] * 3 + [">e."]
    batch = collate([row, lay_out([Text("a")], APART, LETTERS, audio_tokens=2)], 20, slots=4)
    assert batch.aligner_tokens.shape == batch.aligner_mask.shape == (2, 4, 32)
    assert batch.aligner_mask.sum(-1).tolist() == [[5, 5, 5, 3], [0] * 4]
    assert bytes(batch.aligner_tokens[0, 0, :5].tolist()) == b">bcd."
    answers = replace(APART, aligner_reads="answer")  # cut at its end
    pair = lay_out(
        [Audio(0), Text("abc"), Text("defgh", loss=True)], answers, LETTERS, **options, aligner_tokenizer=LETTERS
    )
    assert ["".join(map(chr, text)) for text in pair.aligner_text] == [">def."] * options["slots"][0]
    for without in (lay_out(parts, APART, LETTERS, **options), lay_out(parts, LTU, LETTERS, **options)):
        assert collate([without], 20, slots=4).aligner_tokens is None
