"""Preparation: the same bytes however it is run, what is wrong is named and left out, and everything is read back."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from alm_jax.audio.io import audio_info, load_audio
from alm_jax.audio.records import record_audio, record_place
from alm_jax.cli.main import main
from alm_jax.core.errors import AudioError, ConfigError, DataError
from alm_jax.data.features import audio_sha256
from alm_jax.data.rows import read_rows
from alm_jax.data.sets import prepare as prepare_module
from alm_jax.data.sets.builder import builder_class
from alm_jax.data.sets.prepare import prepare
from alm_jax.data.sets.registry import SETS
from alm_jax.data.sets.shards import write_shard
from alm_jax.data.tasks.clips import read_clips
from alm_jax.data.tasks.source import Tasks
from tests.data.sets.miniatures import MINIATURES, sound, table, write

ESC50 = SETS["esc50"]
HEADER = ("filename", "fold", "target", "category", "esc10", "src_file", "take")


def esc50(root: Path, clips: int = 12) -> dict[str, np.ndarray]:
    """A set of some clips in two folds; their samples."""
    rows = [(f"{i % 2 + 1}-{i}-A.wav", i % 2 + 1, 0, ("dog", "rain")[i % 2], "", i, "A") for i in range(clips)]
    table(root / "meta/esc50.csv", [HEADER, *rows])
    return {row[0].removesuffix(".wav"): sound(root / "audio" / row[0], rate=8000 + 50 * row[1]) for row in rows}


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(source, samples by id, folder of prepared sets, outcome), with two or three shards a fold."""
    root = tmp_path_factory.mktemp("esc50")
    samples = esc50(root / "src")
    return root / "src", samples, root / "data", prepare(ESC50, root / "src", root / "data", shard_clips=2)


def test_what_is_written(prepared):
    _, samples, data, done = prepared
    assert done.clips == {"fold1": 6, "fold2": 6} and done.folder == data / "esc50/1.0.0"
    assert (done.new_shards, done.shards, done.bad_share) == (6, 6, 0.0)
    assert sorted(path.name for path in done.folder.glob("*.array_record-*"))[0] == (
        "esc50-fold1.array_record-00000-of-00003"
    )
    clips = read_clips(data / "esc50")
    assert {clip.path.name: clip.labels for clip in clips} == {
        name: (("dog",), ("rain",))[int(name[0]) - 1] for name in samples
    }
    for clip in clips:
        heard, rate = load_audio(clip.path)
        assert rate == 8000 + 50 * int(clip.path.name[0]) and clip.seconds == pytest.approx(len(heard) / rate, abs=1e-4)
        np.testing.assert_array_equal(heard * 32768, samples[clip.path.name])  # 16 bits are kept exactly


def test_cuts_of_clips_in_shards(prepared):
    source, _, data, _ = prepared
    clip = read_clips(data / "esc50", split="fold2")[0].path
    file = source / "audio" / f"{clip.name}.wav"
    for cut in ({"offset_seconds": 0.01}, {"max_seconds": 0.02, "sample_rate": 4000}, {"channel": None}):
        np.testing.assert_array_equal(load_audio(clip, **cut)[0], load_audio(file, **cut)[0])
    assert audio_info(clip).seconds == audio_info(file).seconds
    with pytest.raises(AudioError, match="channel 1 asked for"):
        load_audio(clip, channel=1)
    with pytest.raises(AudioError, match="no sound from 9 s on"):
        load_audio(clip, offset_seconds=9)
    samples, rate = record_audio(*record_place(clip))
    assert audio_sha256(clip) == hashlib.sha256(b"%d" % rate + samples.tobytes()).hexdigest()
    with pytest.raises(AudioError, match="is not other: the set was prepared anew"):
        load_audio(clip.with_name("other"))
    gone = clip.parent.with_name(clip.parent.name.replace("#", "0#")) / clip.name
    with pytest.raises(AudioError, match="cannot read record"):
        load_audio(gone)


def test_the_same_bytes_however_it_is_run(prepared, tmp_path, monkeypatch):
    source, _, _, done = prepared
    whole = digests(done.folder)
    assert {name.split("/")[0] for name in whole if "/" in name} == {"clips", "fingerprints", ".prepare"}
    two = prepare(ESC50, source, tmp_path / "two", shard_clips=2, workers=2)
    assert digests(two.folder) == whole and two.clips == done.clips

    written = []

    def stopping(shard):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(shard)
        return write_shard(shard)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_shard", stopping)
        with pytest.raises(KeyboardInterrupt):
            prepare(ESC50, source, tmp_path / "cut", shard_clips=2)
    folder = tmp_path / "cut/esc50/1.0.0"
    assert 0 < len(digests(folder)) < len(whole)
    # A kill may also leave half a shard, under its own name only if the disk lost what was written.
    (folder / f".{written[0].path.name}.123").write_bytes(b"half")
    written[1].path.write_bytes(written[1].path.read_bytes()[:100])
    written[2].state.write_text('{"key": "')
    again = prepare(ESC50, source, tmp_path / "cut", shard_clips=2)
    assert digests(folder) == whole and again.new_shards == 5
    assert prepare(ESC50, source, tmp_path / "cut", shard_clips=2).new_shards == 0


def test_a_second_run_does_what_is_left(tmp_path):
    samples = esc50(tmp_path / "src")
    lost = tmp_path / "src/audio/1-0-A.wav"
    kept = lost.read_bytes()
    lost.unlink()
    first = prepare(ESC50, tmp_path / "src", tmp_path / "data", shard_clips=2)
    assert first.report.problems == [("missing audio", "1-0-A", "audio/1-0-A.wav")] and first.shards == 6
    assert first.bad_share == pytest.approx(1 / 12)
    lost.write_bytes(kept)
    second = prepare(ESC50, tmp_path / "src", tmp_path / "data", shard_clips=2)
    assert second.new_shards == 1 and sum(second.clips.values()) == len(samples) and not len(second.report)
    # Larger shards take the place of the smaller ones.
    third = prepare(ESC50, tmp_path / "src", tmp_path / "data", shard_clips=4)
    assert third.shards == 4 and len(list(third.folder.glob("*.array_record-*"))) == 4
    assert len(read_clips(tmp_path / "data/esc50")) == len(samples)
    # So do shorter clips.
    assert prepare(ESC50, tmp_path / "src", tmp_path / "data", shard_clips=4, max_seconds=0.01).new_shards == 4
    assert max(clip.seconds for clip in read_clips(tmp_path / "data/esc50")) == 0.01


def test_bad_input_is_named_counted_and_left_out(tmp_path):
    root = tmp_path / "src"
    good = [(f"1-{i}-A.wav", 1, 0, "dog", "", i, "A") for i in range(2)]
    bad = [
        ("1-0-A.wav", 2, 0, "dog", "", 0, "A"),  # a duplicate
        ("1-7-A.wav", 9, 0, "dog", "", 7, "A"),  # no such fold
        ("../../secret.wav", 1, 0, "dog", "", 8, "A"),
        ("1-2-A.wav", 1, 0, "dog", "", 2, "A"),  # zero bytes
        ("1-3-A.wav", 1, 0, "dog", "", 3, "A"),  # a header alone
        ("1-4-A.wav", 1, 0, "dog", "", 4, "A"),  # damaged
        ("1-5-A.wav", 1, 0, "", "", 5, "A"),  # no label
        ("1-6-A.wav", 1, 0, "dog", "", 6, "A", "more"),
    ]
    text = "\n".join(",".join(map(str, row)) for row in (HEADER, *good, *bad))
    write(root / "meta/esc50.csv", text, encoding="utf-8-sig")  # a byte-order mark
    for row in good:
        sound(root / "audio" / row[0])
    sound(tmp_path / "secret.wav")
    write(root / "audio/1-2-A.wav", "")
    sound(root / "audio/1-3-A.wav", seconds=0)
    write(root / "audio/1-4-A.wav", "not a sound")
    sound(root / "audio/unlisted.wav")
    write(root / "more.zip", "no archive")
    done = prepare(ESC50, root, tmp_path / "data")
    assert done.clips == {"fold1": 2} and done.report.counts() == {
        "broken row": 2,
        "zero-length audio": 2,
        "unreadable archive": 1,
        "duplicate id": 1,
        "unknown split": 1,
        "path leaves the folder": 1,
        "in no split": 1,
        "unreadable audio": 1,
    }
    lines = [json.loads(line) for line in (done.folder / "report.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and {"problem": "in no split", "where": "audio/unlisted.wav"}.items() <= lines[-3].items()
    where = {line["where"] for line in lines}
    assert {"meta/esc50.csv:10", "meta/esc50.csv:11", "more.zip", "1-0-A", "../../secret"} <= where
    assert done.bad_share == pytest.approx(10 / 12)


def test_tables_of_other_encodings_and_without_columns(tmp_path):
    MINIATURES["clotho"](tmp_path / "src")
    path = tmp_path / "src/clotho_metadata_development.csv"
    path.write_bytes(path.read_text().encode("latin-1"))
    validation = tmp_path / "src/clotho_captions_validation.csv"
    validation.write_text(validation.read_text().replace("caption_5", "remark"))
    evaluation = tmp_path / "src/clotho_captions_evaluation.csv"
    evaluation.write_text(evaluation.read_text(), encoding="utf-16")
    done = prepare(SETS["clotho"], tmp_path / "src", tmp_path / "data")
    assert done.clips == {"train": 1, "test": 1}
    found = {kind: where for kind, where, _ in done.report.problems}
    assert found == {
        "encoding": "clotho_metadata_development.csv",
        "missing column": "clotho_captions_validation.csv",
        "in no split": "validation/a!b.wav",
    }
    assert "no caption_5; it has file_name, caption_1" in str(done.report.problems)


def test_labels_outside_the_ontology(tmp_path):
    MINIATURES["fsd50k"](tmp_path / "src")
    dev = tmp_path / "src/FSD50K.ground_truth/dev.csv"
    dev.write_text(dev.read_text().replace('"Bark,Dog"', '"Bark,Cow"').replace("16399,Dog", "16399,Cow"))
    done = prepare(SETS["fsd50k"], tmp_path / "src", tmp_path / "data")
    assert done.clips == {"train": 1, "test": 1}
    assert done.report.counts() == {"label outside the ontology": 2, "in no split": 1}
    assert read_clips(tmp_path / "data/fsd50k", split="train")[0].labels == ("Bark",)


def test_broken_json(tmp_path):
    MINIATURES["mmau"](tmp_path / "src")
    (tmp_path / "src/mmau-test.json").write_text("[{")
    mini = tmp_path / "src/mmau-test-mini.json"
    rows = json.loads(mini.read_text())
    mini.write_text(
        json.dumps([*rows, 7, rows[0] | {"id": "x", "question": None}, rows[0] | {"id": "y", "choices": []}])
    )
    done = prepare(SETS["mmau"], tmp_path / "src", tmp_path / "data")
    assert done.clips == {"test_mini": 1} and done.report.counts() == {"broken row": 3, "broken table": 1}


def test_archives(tmp_path):
    """The same clips from a zip; a member that leaves the folder and a damaged one are reported."""
    esc50(tmp_path / "src", clips=4)
    (tmp_path / "packed/meta").mkdir(parents=True)
    (tmp_path / "src/meta/esc50.csv").rename(tmp_path / "packed/meta/esc50.csv")
    with zipfile.ZipFile(tmp_path / "packed/esc50.zip", "w") as archive:
        for path in sorted((tmp_path / "src/audio").iterdir()):
            archive.write(path, f"ESC-50-master/audio/{path.name}")
        archive.writestr("../x.wav", b"")
    data = bytearray((tmp_path / "packed/esc50.zip").read_bytes())
    at = data.index(b"data", data.index(b"2-3-A.wav")) + 20
    data[at : at + 4] = b"\0\0\0\0"  # of the last clip's sound
    (tmp_path / "packed/esc50.zip").write_bytes(data)
    done = prepare(ESC50, tmp_path / "packed", tmp_path / "data")
    assert done.clips == {"fold1": 2, "fold2": 1}
    assert done.report.counts() == {"path leaves the folder": 1, "unreadable audio": 1}
    assert "Bad CRC-32" in done.report.problems[1][2]
    with pytest.raises(
        DataError, match=r"esc50 lacks meta/esc50.csv \(the table of clips\); extract a.tar.gz first; it is"
    ):
        write(tmp_path / "tar/a.tar.gz", "")
        sound(tmp_path / "tar/audio/a.wav")
        prepare(ESC50, tmp_path / "tar", tmp_path / "data")


def test_nothing_of_use(tmp_path):
    write(tmp_path / "src/meta/esc50.csv", "filename,fold\n")
    sound(tmp_path / "src/audio/a.wav")
    with pytest.raises(DataError, match="no clip of esc50 could be read"):
        prepare(ESC50, tmp_path / "src", tmp_path / "data")
    assert "missing column" in (tmp_path / "data/esc50/1.0.0/report.jsonl").read_text()
    with pytest.raises(DataError, match="no such folder"):
        prepare(ESC50, tmp_path / "none", tmp_path / "data")
    with pytest.raises(ConfigError, match="workers is 0"):
        prepare(ESC50, tmp_path / "src", tmp_path / "data", workers=0)
    for seconds in (0.0, -1.0, float("nan")):  # which would put a set without clips in the place of one that is there
        with pytest.raises(ConfigError, match=f"max_seconds is {seconds}"):
            prepare(ESC50, tmp_path / "src", tmp_path / "data", max_seconds=seconds)


def test_tfds_reads_it(prepared):
    tfds = pytest.importorskip("tensorflow_datasets")
    _, samples, _, done = prepared
    builder = tfds.builder_from_directory(done.folder)
    assert builder.info.splits["fold1"].num_examples == 6 and builder.info.splits["fold2"].num_shards == 3
    source = builder.as_data_source("fold1")
    found = {example["id"].decode(): example for example in source}
    assert set(found) == {name for name in samples if name[0] == "1"}
    for name, example in found.items():
        assert example["audio"].dtype == np.int16 and example["rate"] == 8050
        np.testing.assert_array_equal(example["audio"], samples[name])
        assert list(example["labels"]) == [b"dog"] and len(example["captions"]) == 0
        assert example["source"].decode() == f"freesound:{name.split('-')[1]}" and json.loads(example["meta"]) == {}


def test_the_builder_makes_the_same_examples(prepared, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    source, _, _, done = prepared
    builder = builder_class(ESC50)(data_dir=tmp_path, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=source, verify_ssl=False)
    builder.download_and_prepare(download_config=config)
    ours, theirs = (
        sorted(each.as_data_source("fold2"), key=lambda example: example["id"])
        for each in (tfds.builder_from_directory(done.folder), builder)
    )
    assert len(ours) == len(theirs) == 6
    for mine, other in zip(ours, theirs):
        assert mine.keys() == other.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], other[name])


def test_rows_of_tasks_about_a_prepared_set(prepared, tmp_path, capsys):
    _, _, data, _ = prepared
    rows = read_rows(Tasks(str(data / "esc50"), ("tagging",), split="fold1").write(tmp_path / "cache"))
    assert len(rows) == 6 and {row.output for row in rows} == {"dog"} and rows[0].dataset == "esc50"
    assert len(load_audio(rows.clip_path(rows[0].audio_id))[0]) == 402
    args = [
        "tasks",
        str(data / "esc50"),
        "--task",
        "tagging",
        "--split",
        "fold1+fold2",
        "--out",
        str(tmp_path / "r.jsonl"),
    ]
    assert main(args) == 0 and "12 rows (12 tagging) about 12 clips" in capsys.readouterr().out
    with pytest.raises(DataError, match="no split test; it has fold1, fold2, and all"):
        read_clips(data / "esc50", split="test")
    assert read_clips(data / "esc50/1.0.0") == read_clips(data / "esc50")


def test_a_set_at_a_url(prepared, tmp_path, monkeypatch):
    """Indexes are fetched at once, a clip when it is heard."""
    import fsspec

    _, samples, _, done = prepared
    monkeypatch.setenv("ALM_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(str(done.folder), "/bucket/esc50/1.0.0", recursive=True)
    try:
        clips = read_clips("memory://bucket/esc50", split="fold2")
        assert len(clips) == 6 and not list(tmp_path.rglob("*.array_record-*"))
        assert [clip.labels for clip in clips] == [("rain",)] * 6
        np.testing.assert_array_equal(load_audio(clips[0].path)[0] * 32768, samples[clips[0].path.name])
        assert len(list(tmp_path.rglob("*.array_record-?????-of-?????"))) == 1
        memory.rm("/bucket", recursive=True)
        np.testing.assert_array_equal(load_audio(clips[0].path)[0] * 32768, samples[clips[0].path.name])
        with pytest.raises(AudioError, match="cannot be fetched"):
            load_audio(clips[-1].path)
    finally:
        memory.store.clear()


def test_the_command(prepared, tmp_path, capsys):
    source = prepared[0]
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in SETS)
    assert main(["data", "info", "esc50", "--src", str(source)]) == 0
    told = capsys.readouterr().out
    assert "meta/esc50.csv  the table of clips" in told and "CC BY-NC 3.0" in told and f"{source} has them" in told
    prepare_args = ["data", "prepare", "esc50", "--src", str(source), "--out", str(tmp_path)]
    assert main(prepare_args) == 0
    assert capsys.readouterr().out.startswith("12 clips (6 fold1, 6 fold2) in ")
    clip = source / "audio/1-0-A.wav"
    kept = clip.read_bytes()
    clip.unlink()
    try:
        assert main(prepare_args) == 1
        out, err = capsys.readouterr()
        assert "11 clips (5 fold1, 6 fold2)" in out and "; 1 of 2 shards new" in out
        assert "  1 missing audio: 1-0-A (audio/1-0-A.wav)\n" in err
        assert "alm: error: 1 problems are 8.3%, more than 1.0% (--max-bad-share); all stand in " in err
        assert main([*prepare_args, "--max-bad-share", "0.1"]) == 0
    finally:
        clip.write_bytes(kept)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show"], "alm data show: expected list, info, prepare or check"),
        (["info"], "which set? `alm data list` lists them"),
        (["info", "esc"], "no data set 'esc'"),
        (["prepare", "esc50"], "needs --src DIR (its files) and --out DIR"),
        (
            ["prepare", "esc50", "--src", "a", "--out", "b", "--max-bad-share", "2"],
            "--max-bad-share 2.0: expected 0 to 1",
        ),
    ],
)
def test_mistakes_on_the_command_line(args, message, capsys):
    assert main(["data", *args]) == 2
    assert message in capsys.readouterr().err


def test_under_beam(prepared, tmp_path, capsys):
    source, _, _, done = prepared
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        with pytest.raises(
            ConfigError, match=r"--beam-runner DirectRunner needs Apache Beam: pip install 'alm_jax\[beam\]'"
        ):
            prepare(ESC50, source, tmp_path, beam_runner="DirectRunner")
        pytest.skip("apache-beam is not installed (extra `beam`); its absence is told")
    beamed = prepare(ESC50, source, tmp_path, shard_clips=2, beam_runner="DirectRunner")
    assert digests(beamed.folder) == digests(done.folder) and beamed.new_shards == 6
