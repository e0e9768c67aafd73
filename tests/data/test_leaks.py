"""The leak guard: what evaluation sets hold is found by file, source and sound, and left out of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alm_jax.audio.io import write_audio
from alm_jax.cli.main import main
from alm_jax.core.errors import DataError
from alm_jax.data import leaks as module
from alm_jax.data import prints as prints_module
from alm_jax.data.leaks import Clips, Guard, beside, counts, leave_out
from alm_jax.data.rows import read_rows
from alm_jax.data.sets.names import recordings, youtube
from alm_jax.data.sets.prepare import prepare
from alm_jax.data.sets.registry import SETS
from tests.audio.test_fingerprint import RATES, softer, sound
from tests.data.sets.miniatures import table


def vggsound(root: Path, rows: list[tuple[str, int, str, int]]) -> Path:
    """A prepared VGGSound of (video, start, split, seed of its sound)."""
    table(root / "src/vggsound.csv", [(video, start, "dog", split) for video, start, split, _ in rows])
    for video, start, _, seed in rows:
        write_audio(_made(root / "src" / f"{video}_{start:06d}.wav"), sound(seed, 3.0), RATES)
    return prepare(SETS["vggsound"], root / "src", root / "data", shard_clips=2).folder.parent


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """(VGGSound, ESC-50), prepared side by side. Two videos are both trained and tested on, one sound is in two videos,
    and a fold of ESC-50 has a softer copy of a clip in another."""
    root = tmp_path_factory.mktemp("sets")
    videos = [("A" * 10 + str(i), 30, "train", i) for i in range(4)]
    tested = [("A" * 10 + "0", 60, "test", 10), ("A" * 10 + "1", 35, "test", 11), ("B" * 11, 0, "test", 2)]
    videos = vggsound(root / "videos", [*videos, *tested])
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    rows = [(f"{fold}-{i}-A-0.wav", fold, 0, "dog", "", 100 + i, "A") for i, fold in enumerate((1, 1, 2))]
    table(root / "esc/src/meta/esc50.csv", [header, *rows])
    for row, samples in zip(rows, (sound(20), sound(21), softer(sound(20), RATES)[0])):
        write_audio(_made(root / "esc/src/audio" / row[0]), samples, RATES)
    prepare(SETS["esc50"], root / "esc/src", root / "videos/data")
    return videos, videos.parent / "esc50"


def found(clips, held):
    return {(Path(leak.clip).name, Path(leak.held).name, leak.by): leak for leak in Guard(held).find(clips).leaks}


def test_by_source_and_by_sound(sets):
    videos, _ = sets
    leaks = found(Clips(str(videos), "train").paths(), [Clips(str(videos), "test")])
    a, b = "A" * 10, "B" * 11
    assert set(leaks) == {
        (f"{a}0_000030", f"{a}0_000060", "source"),
        (f"{a}1_000030", f"{a}1_000035", "source"),
        (f"{a}2_000030", f"{b}_000000", "sound"),
    }
    assert leaks[f"{a}0_000030", f"{a}0_000060", "source"].why == f"youtube:{a}0, other seconds"
    assert leaks[f"{a}1_000030", f"{a}1_000035", "source"].why == f"youtube:{a}1, 5 s in common"
    assert "+0.00 s" in leaks[f"{a}2_000030", f"{b}_000000", "sound"].why


def test_by_file(sets):
    videos, esc50 = sets
    clips, held = Clips(str(esc50)).paths(), [Clips(str(esc50), "fold1"), Clips(str(videos))]
    guard = Guard(held)
    leaks = guard.find(clips).leaks
    assert len(guard) == 9 and counts(leaks, held) == {
        f"{esc50}:fold1": {"file": 2, "source": 0, "sound": 1},
        f"{videos}": {"file": 0, "source": 0, "sound": 0},
    }


def test_files_are_known_by_their_names_and_sounds(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    videos, esc50 = sets
    a = "A" * 10
    for name, samples in ((f"Y{a}1_10_20", sound(40)), ("copy", sound(21)[5000:]), ("own", sound(41))):
        write_audio(_made(tmp_path / f"dog/{name}.flac"), samples, RATES)
    (tmp_path / "dog/broken.wav").write_text("no sound")
    clips = Clips(str(tmp_path)).paths()
    guard = Guard([Clips(str(videos), "test"), Clips(str(esc50))])
    result = guard.find(clips)
    assert {
        (Path(leak.clip).stem, leak.by, leak.why.partition(",")[0]) for leak in result.leaks if leak.by == "source"
    } == {(f"Y{a}1_10_20", "source", f"youtube:{a}1")}
    assert [Path(leak.clip).stem for leak in result.leaks if leak.by == "sound"] == ["copy"] and result.faint == 1

    # What was heard is kept.
    heard = []
    monkeypatch.setattr(prints_module, "_heard", heard.append)
    assert guard.find(clips) == result and not heard


def test_a_set_at_a_url(sets, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("ALM_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(str(sets[0] / "1.0.0"), "/bucket/vggsound/1.0.0", recursive=True)
    try:
        leaks = found(Clips(str(sets[0]), "train").paths(), [Clips("memory://bucket/vggsound", "test")])
        assert sorted(by for _, _, by in leaks) == ["sound", "source", "source"]
        assert not list(tmp_path.rglob("*.array_record-*"))  # no clip is heard for it
    finally:
        memory.store.clear()


def test_names_that_look_alike_say_nothing(tmp_path, monkeypatch):
    """`gunshot_001` could be a video's name, and is two of a collection's own."""
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    for number, part in enumerate(("train", "test")):
        write_audio(_made(tmp_path / f"{part}/gunshot/gunshot_001.wav"), sound(number), RATES)
    assert not found(Clips(str(tmp_path / "train")).paths(), [Clips(str(tmp_path / "test"))])


@pytest.mark.parametrize("video", ["--4gqARaEJE", "Yabcdefgh_1", "a_123456789"])
def test_every_name_of_a_cut_tells_its_video(video):
    for name in youtube(video, 30):
        assert f"youtube:{video}" in recordings(name), name
    assert recordings("dog bark") == () and recordings("1234") == ()
    assert (
        recordings("1234", "audio/FSD50K.dev_audio") == recordings("1234", "['freesound_10s']") == ("freesound:1234",)
    )


def test_what_is_tested_on_beside_what_is_trained_on(sets, tmp_path):
    videos, esc50 = sets
    train = Clips(str(videos), "train").paths()
    assert beside(train) == [Clips(str(esc50)), Clips(str(videos), "test")]
    # Trained on all of it, VGGSound's test is held out all the same; of ESC-50's folds the other ones are.
    assert beside(Clips(str(videos)).paths()) == beside(train)
    assert beside(Clips(str(esc50), "fold1").paths()) == [Clips(str(esc50), "fold2"), Clips(str(videos), "test")]
    assert beside([tmp_path / "a.wav"]) == []


def test_benchmarks_ask_about_splits_to_test_on():
    from alm_jax.eval.benchmarks import BENCHMARKS

    for name, benchmark in BENCHMARKS.items():
        if benchmark.dataset in SETS:
            dataset = SETS[benchmark.dataset]
            asked = dataset.splits if benchmark.split == "all" else benchmark.split.split("+")
            assert set(asked) <= set(dataset.tests), name
    assert all(set(dataset.tests) <= set(dataset.splits) for dataset in SETS.values())


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("data/clotho", Clips("data/clotho")),
        ("data/clotho:val+test", Clips("data/clotho", "val+test")),
        ("gs://bucket/clotho", Clips("gs://bucket/clotho")),
        ("gs://bucket/clotho:test", Clips("gs://bucket/clotho", "test")),
    ],
)
def test_collections_by_their_text(text, want):
    assert Clips.of(text) == want and str(want) == text


@pytest.fixture
def rows(sets, tmp_path):
    """A file of rows: each clip of VGGSound's train alone, two of them together, and a row without any."""
    clips = [str(path) for path in Clips(str(sets[0]), "train").paths()]
    clips.sort(key=lambda clip: clip.rpartition("/")[2])
    told = [*clips, clips[2:], ""]
    rows = [{"instruction": f"Q{i}?", "audio_id": clip, "output": "A."} for i, clip in enumerate(told)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return read_rows(tmp_path / "rows.json")


def test_rows_about_them_are_left_out(sets, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    held = [Clips(str(sets[0]), "test")]
    kept, leaks, _ = leave_out(rows, held)
    assert [row.instruction for row in kept.rows] == ["Q3?", "Q5?"] and len(leaks) == 3
    assert kept.name(0) == f"{tmp_path / 'rows.json'}[3]" and kept.root == rows.root
    assert kept.stamp[:3] == rows.stamp[:3] and kept.stamp != rows.stamp  # lengths of rows are kept by it
    assert kept.stamp != rows.choose([0, 5]).stamp
    # They are not compared again, unless something is held out that was not.
    monkeypatch.setattr(module, "Guard", None)
    again, same, _ = leave_out(rows, held)
    assert same == leaks and [row.instruction for row in again.rows] == ["Q3?", "Q5?"]
    with pytest.raises(TypeError, match="not callable"):
        leave_out(rows, [*held, Clips(str(sets[1]))])
    monkeypatch.undo()
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="all 5 rows are about clips of"):
        leave_out(rows.choose(range(5)), [Clips(str(sets[0]))])


def test_the_command(sets, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    videos, esc50 = sets
    out = tmp_path / "leaks.jsonl"
    assert main(["data", "check", f"{videos}:train", "--out", str(out)]) == 1
    told, errors = capsys.readouterr()
    assert f"3 of 4 clips of {videos}:train are held by 6 clips to test on\n" in told
    assert f"  {esc50}: 0 by file, 0 by source, 0 by sound\n" in told
    assert f"  {videos}:test: 0 by file, 2 by source, 1 by sound\n" in told and "5 s in common" in errors
    assert [json.loads(line)["by"] for line in out.read_text().splitlines()].count("source") == 2
    assert main(["data", "check", str(tmp_path / "rows.json"), "--against", str(esc50)]) == 0
    assert capsys.readouterr().out.startswith(f"0 of 4 clips of {tmp_path / 'rows.json'} are held")
    for args, message in (
        ([str(tmp_path / "rows.json") + ":train"], "a file of rows has no splits"),
        ([str(videos), "--against", f"{videos}:eval"], "no split eval; it has test, train, and all"),
        ([str(videos), "--workers", "0"], "--workers 0: expected at least 1"),
    ):
        assert main(["data", "check", *args]) in (1, 2)
        assert message in capsys.readouterr().err
