"""The report of a benchmark."""

from __future__ import annotations

import json

from alm_jax.eval.protocols.base import Scores
from alm_jax.eval.report import write_report
from alm_jax.eval.run import PREDICTIONS, SCORES, Evaluated


def test_facts_and_answers(tmp_path):
    """Numbers that are 1 are told, too; text is UTF-8 whatever the machine's own encoding."""
    told = {"audio_id": "/a/b.wav", "instruction": "Was?", "output": "Glöckchen", "prediction": "läuten"}
    (tmp_path / PREDICTIONS).write_text(json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / SCORES).write_text(json.dumps({"read": "läuten"}, ensure_ascii=False) + "\n", encoding="utf-8")
    facts = {"dataset": "esc50", "split": "", "corrupt": None, "seed": 1, "trials": 1, "shots": 1}
    found = Evaluated("few_shot", tmp_path, facts, 1, 0, Scores({"accuracy": 0.5}, [{}]), {})
    write_report(tmp_path / "report.html", "A", [found])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "dataset esc50, seed 1, shots 1; 1 rows" in page and "trials" not in page
    assert "<td>b.wav</td><td>Was?</td><td>Glöckchen</td><td>läuten</td><td>read läuten</td>" in page
