"""Caption scores against those worked by hand; what is done without Java; SPICE's program stood in for."""

import math
import shutil
import stat
import sys

import pytest

from alm_jax.core.errors import AlmError, UsageError
from alm_jax.eval.metrics import captions
from alm_jax.eval.metrics.captions import score_captions

pytest.importorskip("pycocoevalcap", reason="captions are scored by it: pip install 'alm_jax[eval]'")

SAID = ["A dog barks, twice.", "rain falls"]
TRUE = [["a dog barks twice", "the dog barks"], ["Rain falls on a roof"]]


@pytest.fixture
def without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_without_java(without_java):
    found = score_captions(SAID, TRUE)
    assert found.notes == (captions.NO_JAVA, captions.NO_SPICE)
    assert list(found.corpus) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    # 6 words are said, all of them true; references nearest in length have 4 and 5 words.
    assert found.corpus["bleu_1"] == pytest.approx(math.exp(1 - 9 / 6))
    # Of 4 pairs of words said all are true (`dog barks`, `a dog`, `barks twice`, `rain falls`).
    assert found.corpus["bleu_2"] == pytest.approx(math.exp(1 - 9 / 6))
    # The first is a reference itself; the second has precision 1 and recall 2 / 5, and beta is 1.2.
    rouge = (1 + 1.44) * 1 * 0.4 / (0.4 + 1.44 * 1)
    assert found.each["rouge_l"] == pytest.approx([1, rouge]) and found.corpus["rouge_l"] == pytest.approx(
        (1 + rouge) / 2
    )


def test_cider_d_by_hand(without_java):
    """Two clips of one reference each: every n-gram is in one document of two, idf = log 2; a caption that is its
    reference scores 10 for each n that it has, one without a word in common 0."""
    found = score_captions(["a b c d", "x"], [["a b c d"], ["e f g h"]])
    assert found.each["cider_d"] == pytest.approx([10, 0]) and found.corpus["cider_d"] == pytest.approx(5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR and the tokenizer need Java")
def test_with_java():
    found = score_captions(SAID, TRUE)
    assert found.notes == (captions.NO_SPICE,)
    # What was tokenized plainly above is tokenized alike by Penn Treebank's rules.
    assert found.corpus["bleu_1"] == pytest.approx(math.exp(1 - 9 / 6))
    # METEOR of a caption that is its reference: F = 1, and the penalty of one chunk of m = 4 matches is
    # gamma (chunks / m) ** beta with gamma 0.6 and beta 0.2, as METEOR 1.5 sets them for English, unless all matches.
    assert found.each["meteor"][0] == pytest.approx(1.0)
    assert 0 < found.each["meteor"][1] < 0.7


def test_spice_stood_in_for(tmp_path, monkeypatch):
    java = tmp_path / "java"
    java.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "assert sys.argv[1:3] == ['-jar', '-Xmx8G'] and sys.argv[3].endswith('spice-1.0.jar')\n"
        "asked = json.load(open(sys.argv[4]))\n"
        "scores = [{'image_id': a['image_id'], 'scores': {'All': {'f': len(a['refs']) / 4}}} for a in asked]\n"
        "json.dump(scores, open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda name: str(java))
    monkeypatch.setattr(captions, "_penn_treebank", captions._plain)
    true_scorer = captions._scorer
    monkeypatch.setattr(
        captions,
        "_scorer",
        lambda m, name: (lambda t, s: (0.0, [0.0] * len(s))) if name == "Meteor" else true_scorer(m, name),
    )
    with pytest.raises(UsageError, match=r"holds no spice-1\.0\.jar"):
        score_captions(SAID, TRUE, tmp_path)
    (tmp_path / "spice-1.0.jar").touch()
    (tmp_path / "lib").mkdir()
    found = score_captions(SAID, TRUE, tmp_path)
    assert found.each["spice"] == pytest.approx([0.5, 0.25]) and found.corpus["spice"] == pytest.approx(0.375)
    assert found.each["spider"] == pytest.approx((found.each["cider_d"] + found.each["spice"]) / 2)
    java.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no CoreNLP')\n")
    with pytest.raises(AlmError, match=r"SPICE failed .*no CoreNLP"):
        score_captions(SAID, TRUE, tmp_path)


def test_what_is_refused():
    with pytest.raises(UsageError, match="give each clip one or more"):
        score_captions(["a"], [[]])
