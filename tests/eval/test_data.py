"""What benchmarks read: prepared sets, manifests, rows; and that each asks about the set and split that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alm_jax.core.errors import DataError
from alm_jax.data.sets.base import Report
from alm_jax.data.sets.files import Files
from alm_jax.data.sets.prepare import prepare
from alm_jax.data.sets.registry import SETS
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.eval.benchmarks import BENCHMARKS
from alm_jax.eval.data import read_collection, within
from alm_jax.eval.protocols.base import Asking
from alm_jax.eval.protocols.composed import Order, Pitch, Twice
from alm_jax.eval.protocols.questions import Episodes
from tests.data.sets.miniatures import MINIATURES

ASKED = [
    name
    for name, each in BENCHMARKS.items()
    # Those leave out what needs more clips than a miniature has.
    if each.dataset in MINIATURES and not isinstance(each.task, Order | Twice | Pitch | Episodes)
]


@pytest.mark.parametrize("name", [name for name, each in BENCHMARKS.items() if each.dataset not in ("", "any")])
def test_names_of_sets_and_splits(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.split == "all" or set(benchmark.split.split("+")) <= set(SETS[benchmark.dataset].splits)


@pytest.mark.parametrize("name", ASKED)
def test_rows_of_each_set(name, tmp_path):
    """The set's own parser feeds the benchmark; none lacks what it asks for."""
    benchmark, report = BENCHMARKS[name], Report()
    MINIATURES[benchmark.dataset](tmp_path)
    clips, about = [], {}
    for item in SETS[benchmark.dataset].read(Files(tmp_path, report), report):
        if benchmark.split in ("all", item.split):
            path = Path(f"/{item.id}")
            known = {name: getattr(item, name) for name in ("labels", "captions", "events", "questions", "split")}
            clips.append(LabelledClip(path, **known, seconds=10.0))
            about[path] = item.meta
    # Beside those of the one clip that a miniature has in this split: one class is no benchmark.
    classes = tuple(sorted({label for clip in clips for label in clip.labels} | {"another"}))
    asking = Asking(next(iter(benchmark.prompts.values())), classes, tmp_path, about)
    assert list(benchmark.task.rows(clips, asking))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name in ("esc50", "clotho_aqa"):
        MINIATURES[name](folder / "raw" / name)
        prepare(SETS[name], folder / "raw" / name, folder / "data")
    return folder / "data"


def test_prepared_sets(data):
    found = read_collection(data, "esc50", "all")
    assert len(found.clips) == 2 and found.classes == ("dog", "vacuum cleaner")
    assert [clip.split for clip in read_collection(data / "esc50", "esc50", "fold5").clips] == ["fold5"]
    assert read_collection(data, "esc50", "fold5").classes == found.classes  # of all splits
    answers = read_collection(data, "clotho_aqa", "test+val+train")
    assert answers.about[answers.clips[0].path]["answers"]
    with pytest.raises(DataError, match="no clip is of split eval; it has fold1, fold5"):
        read_collection(data, "esc50", "eval")
    assert within(data, "esc50") == data / "esc50" and within(data, "clotho") is None


def test_manifests_and_rows(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"x")
    manifest = tmp_path / "gtzan.csv"
    manifest.write_text("file,label\na.wav,jazz\nb.wav,rock\n")
    found = read_collection(tmp_path, "gtzan", "test")  # no splits: all
    assert found.classes == ("jazz", "rock") and len(found.clips) == 2 and found.rows is None
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "Why?", "audio_id": "a.wav", "output": ""}) + "\n")
    assert read_collection(rows, "", "all").rows[0].instruction == "Why?"
    with pytest.raises(DataError, match="nowhere"):
        read_collection(tmp_path / "nowhere", "gtzan", "test")
