"""Collections of labelled clips, the split into seen and unseen ones, and the clips that are shipped."""

import csv
from pathlib import Path

import pytest
import soundfile

from alm_jax.core.errors import DataError
from alm_jax.data.manifest import Clip, choose_clips, phrase_of, read_manifest, shipped_sounds, split_clips

LICENCES = {"MIT", "CC0-1.0", "CC-BY-3.0"}


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "clips.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_folder_names_are_labels(tmp_path):
    dog = touch(tmp_path / "Dog_Bark" / "deep" / "b.WAV")
    siren = touch(tmp_path / "siren" / "a.flac")
    for ignored in ("siren/notes.txt", "siren/._a.flac", ".cache/x.wav", "loose.wav"):
        touch(tmp_path / ignored)
    assert read_manifest(tmp_path) == [
        Clip(path=dog, label="Dog_Bark", phrase="dog bark"),
        Clip(path=siren, label="siren", phrase="siren"),
    ]


def test_csv_columns(tmp_path):
    for name in ("x.wav", "sub/y.wav", "z.wav"):
        touch(tmp_path / name)
    path = write_csv(
        tmp_path,
        "label,file,phrase,package,seconds,split,other\n"
        "dog,x.wav,a big dog,p1,1.5,train,1\n"
        "cat,sub/y.wav,,,,unseen,2\n"
        'car,z.wav,"revving, vroom",p2,2,train,3\n',
    )
    assert read_manifest(path) == [
        Clip(path=tmp_path / "z.wav", label="car", phrase="revving, vroom", group="p2", seconds=2.0, split="train"),
        Clip(path=tmp_path / "sub/y.wav", label="cat", phrase="cat", split="unseen"),
        Clip(path=tmp_path / "x.wav", label="dog", phrase="a big dog", group="p1", seconds=1.5, split="train"),
    ]
    path.rename(tmp_path / "manifest.csv")
    assert len(read_manifest(tmp_path)) == 3


@pytest.mark.parametrize(
    "label, phrase",
    [("dog_bark", "dog bark"), ("Church-Bell", "church bell"), (" a__b ", "a b"), ("siren", "siren")],
)
def test_phrase_of(label, phrase):
    assert phrase_of(label) == phrase


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no column file or label"),
        ("path,label\nx.wav,dog\n", "no column file; expected at least file,label, found path,label"),
        ("file,label\n", "no rows"),
        ("file,label\nx.wav,dog\ngone.wav,cat\n", "line 3: .*gone.wav does not exist"),
        ("file,label\nx.wav,\n", "line 2: empty label"),
        ("file,label\n,dog\n", "line 2: empty file"),
        ("file,label,seconds\nx.wav,dog,long\n", "line 2: seconds is 'long'"),
        ("file,label\nx.wav,dog: big\n", "'dog: big'.*column phrase"),
        ("file,label,phrase\nx.wav,dog,a\nx.wav,dog,b\n", "two phrases, 'a' and 'b'"),
        ("file,label\nx.wav,dog_bark\nx.wav,Dog-Bark\n", "both read 'dog bark'"),
    ],
)
def test_bad_csv_names_the_place(tmp_path, text, said):
    touch(tmp_path / "x.wav")
    with pytest.raises(DataError, match=said) as caught:
        read_manifest(write_csv(tmp_path, text))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_paths(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_manifest(tmp_path / "gone")
    touch(tmp_path / "dog" / "readme.txt")
    with pytest.raises(DataError, match="no audio in its sub-folders"):
        read_manifest(tmp_path)
    binary = tmp_path / "clips.csv"
    binary.write_bytes(b"file,label\n\xff\xfe\x00,dog\n")
    with pytest.raises(DataError, match="not a UTF-8 CSV"):
        read_manifest(binary)


def clip(label: str, name: str, group: str = "", split: str = "") -> Clip:
    return Clip(path=Path(label) / name, label=label, phrase=label, group=group, split=split)


def test_split_holds_out_the_smallest_group():
    clips = [clip("door", f"{i}.wav", "minetest") for i in range(6)] + [
        clip("door", f"f{i}.wav", "fluid") for i in "ab"
    ]
    clips += [clip("bell", "one.wav", "fluid")]
    train, unseen = split_clips(clips, seed=3)
    assert unseen == [clip("door", "fa.wav", "fluid"), clip("door", "fb.wav", "fluid")]
    assert sorted(train + unseen, key=str) == sorted(clips, key=str)


@pytest.mark.parametrize("count, held", [(1, 0), (2, 1), (4, 1), (10, 2), (15, 3)])
def test_split_of_one_group_takes_a_fifth(count, held):
    clips = [clip("dog", f"{i:02d}.wav") for i in range(count)]
    train, unseen = split_clips(clips, seed=0)
    assert (len(train), len(unseen)) == (count - held, held)


def test_split_depends_on_seed_and_label_only():
    dogs = [clip("dog", f"{i:02d}.wav") for i in range(20)]
    cats = [clip("cat", f"{i:02d}.wav") for i in range(20)]
    held = set(split_clips(dogs, seed=1)[1])
    assert held == set(split_clips(dogs[::-1], seed=1)[1])
    assert held == {c for c in split_clips(cats + dogs, seed=1)[1] if c.label == "dog"}
    assert any(set(split_clips(dogs, seed=s)[1]) != held for s in range(2, 6))


def test_split_column_wins():
    clips = [
        clip("dog", "a.wav", split="train"),
        clip("dog", "b.wav", split="eval"),
        clip("cat", "c.wav", split="train"),
    ]
    assert split_clips(clips, held_out="eval")[1] == [clips[1]]
    assert split_clips(clips)[1] == []


def test_parts_of_a_collection(tmp_path):
    clips, phrases = choose_clips("shipped", "unseen")
    assert clips == split_clips(read_manifest(shipped_sounds()))[1]
    assert phrases == sorted({c.phrase for c in choose_clips("shipped")[0]}) and len(phrases) == 30
    (tmp_path / "bark").mkdir()
    (tmp_path / "bark" / "1.wav").touch()
    assert len(choose_clips(tmp_path, "train")[0]) == 1
    with pytest.raises(DataError, match="no clip is left for split unseen; expected labels that have several clips"):
        choose_clips(tmp_path, "unseen")


def test_shipped_clips_are_complete_and_free():
    folder = shipped_sounds()
    clips = read_manifest(folder)
    with (folder / "manifest.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["file", "label", "package", "source", "licence", "seconds", "sample_rate"]
    on_disk = {str(path.relative_to(folder)) for path in folder.rglob("*.flac")}
    assert {row["file"] for row in rows} == on_disk and len(rows) == len(clips) == 47
    assert {row["licence"] for row in rows} <= LICENCES
    assert "ion-sound" not in {row["package"] for row in rows}
    attribution = (folder / "ATTRIBUTION.md").read_text()
    table = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in attribution.splitlines() if line.startswith("| "))
    }
    for row in rows:
        author, package, licence, original = table[row["file"]]
        assert author and original and (package, licence) == (row["package"], row["licence"])
        info = soundfile.info(folder / row["file"])
        assert (info.channels, info.samplerate) == (1, int(row["sample_rate"]))
        assert abs(info.frames / info.samplerate - float(row["seconds"])) < 1e-3  # the CSV has three decimals
        assert Path(row["file"]).parent.name == row["label"]
    assert "MIT" not in {row["licence"] for row in rows} or "Permission is hereby granted" in attribution
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 3e6


def test_shipped_clips_may_be_shipped(shared_sounds):
    """Against the collection that they come from: same bytes, and a licence there that allows it."""
    free = {"MIT", "MIT (package default)", "CC0", "CC-BY-3.0", "CC-BY-3.0 / CC0 (glass)"}
    with (shared_sounds / "manifest.csv").open(newline="") as handle:
        original = {Path(row["file"]).name: row for row in csv.DictReader(handle)}
    expected = {name for name, row in original.items() if row["licence"] in free and row["package"] != "ion-sound"}
    shipped = {path.name: path for path in shipped_sounds().rglob("*.flac")}
    assert set(shipped) == expected
    for name, path in shipped.items():
        assert path.read_bytes() == (shared_sounds / original[name]["file"]).read_bytes()


def test_shipped_split_has_unseen_clips_of_several_labels():
    train, unseen = split_clips(read_manifest(shipped_sounds()), seed=0)
    assert {c.label for c in unseen} <= {c.label for c in train}
    assert len({c.label for c in unseen}) == 7
    for held in unseen:
        others = {c.group for c in train if c.label == held.label}
        assert held.group not in others or len(others) == 1
