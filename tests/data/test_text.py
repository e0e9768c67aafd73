"""Texts as published code writes them, against its recorded outputs."""

import json

import pytest

from alm_jax.data.text import blip_caption, mats_answer


@pytest.mark.golden
@pytest.mark.parametrize(("name", "ours"), [("lavis_blip_caption", blip_caption), ("mats_post_process", mats_answer)])
def test_recorded_texts(golden, name, ours):
    pairs = json.loads((golden / "apt" / "misc_golden.json").read_text())[name]
    assert pairs and [ours(given) for given, _ in pairs] == [expected for _, expected in pairs]


def test_captions_have_fifty_words_at_most():
    assert blip_caption("Rain. " * 60) == " ".join(["rain"] * 50)
    assert blip_caption("Rain, wind; and a DOG!", max_words=3) == "rain, wind and"
