"""What a benchmark is run with: the words of its questions, its classes, and what is read back of its answers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from alm_jax.audio.io import write_audio
from alm_jax.core.errors import DataError, UsageError
from alm_jax.data.rows import AudioRow
from alm_jax.eval import run
from alm_jax.eval.benchmarks import BENCHMARKS
from alm_jax.eval.data import Collection
from alm_jax.eval.protocols.base import Scores


def prompt_of(name: str, wanted: str) -> str:
    return run._asking(name, BENCHMARKS[name], Collection(), Path(), run.Settings(prompt=wanted)).prompt


def test_prompts_of_systems():
    """Where a system has no words of its own the usual ones are asked, never its name."""
    assert prompt_of("esc50", "mats") == BENCHMARKS["esc50"].prompts["mats"]
    assert prompt_of("clotho_aqa", "mats") == "{QUESTION}" == prompt_of("clotho_aqa", "")
    assert prompt_of("audioset_strong", "mats") == BENCHMARKS["audioset_strong"].prompts["apt"]
    assert prompt_of("esc50", "What is it?") == "What is it?"
    assert prompt_of("clotho_aqa", "Listen. {QUESTION}") == "Listen. {QUESTION}"
    with pytest.raises(UsageError, match=r"clotho_aqa asks questions of the data: write \{QUESTION\}"):
        prompt_of("clotho_aqa", "What is it?")


def test_one_class_is_no_benchmark(tmp_path):
    """The folder of ESC-50 as it is published has its clips in `audio`."""
    audio = tmp_path / "raw" / "audio"
    audio.mkdir(parents=True)
    write_audio(audio / "1-100032-A-0.wav", np.ones(2000) / 8, 16000)
    with pytest.raises(DataError, match="all have the label 'audio'"):
        run.evaluate(None, "esc50", BENCHMARKS["esc50"], tmp_path / "raw", tmp_path / "out", run.Settings(how="embed"))


def test_a_clip_that_could_not_be_embedded(tmp_path):
    row = AudioRow("What?", audio_id="a.wav", output="dog")
    lines = [{"error": "broken"}, {"prediction": [0.6, 0.8]}]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(asdict(row) | line) + "\n" for line in lines))
    bad, good = run._answers(path, "embed")
    assert bad.failed and bad.vector is None and bad.row == row
    np.testing.assert_array_equal(good.vector, np.float32([0.6, 0.8]))


def test_trials():
    trials = [Scores({"exact": value, "pearson": math.nan}, []) for value in (0.25, 0.5)]
    found, spread = run._over_trials(trials)
    assert found.metrics["exact"] == 0.375 and spread["exact"] == pytest.approx(0.125 * 2**0.5)
    assert math.isnan(found.metrics["pearson"]) and math.isnan(spread["pearson"])
