"""Each set's layout as it is published, in little: a few clips, and what is to be read from them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile


class Want(NamedTuple):
    """What is to be read of a clip."""

    split: str
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    events: tuple[tuple[str, float, float], ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    source: str = ""


Wanted = dict[str, Want]


def sound(path: Path, seconds: float = 0.05, rate: int = 8000, channels: int = 1) -> np.ndarray:
    """Write 16-bit noise that its name decides; the samples of the first channel."""
    rng = np.random.default_rng(list(path.name.encode()))
    samples = rng.integers(-9000, 9000, (round(seconds * rate), channels), dtype=np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16" if path.suffix in (".wav", ".flac", ".au") else None)
    return samples[:, 0]


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding, newline="")


def table(path: Path, rows: Sequence[Sequence[Any]], delimiter: str = ",") -> None:
    text = StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    write(path, text.getvalue())


def esc50(root: Path) -> Wanted:
    rows = [
        ("1-100032-A-0.wav", 1, 0, "dog", "True", 100032, "A"),
        ("5-9-B-36.wav", 5, 36, "vacuum_cleaner", "", 9, "B"),
    ]
    table(
        root / "ESC-50-master/meta/esc50.csv",
        [("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows],
    )
    for row in rows:
        sound(root / "ESC-50-master/audio" / row[0])
    return {
        "1-100032-A-0": Want("fold1", ("dog",), source="freesound:100032"),
        "5-9-B-36": Want("fold5", ("vacuum cleaner",), source="freesound:9"),
    }


def urbansound8k(root: Path) -> Wanted:
    root = root / "UrbanSound8K"
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    table(root / "metadata/UrbanSound8K.csv", [header, ("7-3-0-0.wav", 7, 0.0, 0.3, 1, 10, 3, "dog_bark")])
    sound(root / "audio/fold10/7-3-0-0.wav", channels=2)
    return {"7-3-0-0": Want("fold10", ("dog bark",), source="freesound:7")}


def fsd50k(root: Path) -> Wanted:
    truth = root / "FSD50K.ground_truth"
    table(
        truth / "vocabulary.csv",
        [(0, "Bark", "/m/05tny_"), (1, "Dog", "/m/0bt9lr"), (2, "Accelerating_and_revving", "/x")],
    )
    table(
        truth / "dev.csv",
        [("fname", "labels", "mids", "split"), (64760, "Bark,Dog", "a,b", "train"), (16399, "Dog", "b", "val")],
    )
    table(truth / "eval.csv", [("fname", "labels", "mids"), (37199, "Accelerating_and_revving", "c")])
    for name in ("dev_audio/64760", "dev_audio/16399", "eval_audio/37199"):
        sound(root / f"FSD50K.{name}.wav")
    return {
        "64760": Want("train", ("Bark", "Dog"), source="freesound:64760"),
        "16399": Want("val", ("Dog",), source="freesound:16399"),
        "37199": Want("test", ("Accelerating and revving",), source="freesound:37199"),
    }


def clotho(root: Path) -> Wanted:
    captions = tuple(f"A thing is heard, {i}." for i in range(5))
    header = ("file_name", *(f"caption_{i}" for i in range(1, 6)))
    for split, name in (
        ("development", "Distorted AM Radio noise.wav"),
        ("validation", "a!b.wav"),
        ("evaluation", "Santa Motor.wav"),
    ):
        table(root / f"clotho_captions_{split}.csv", [header, (name, *captions)])
        sound(root / split / name)
    about = "file_name,keywords,sound_id,sound_link\nDistorted AM Radio noise.wav,radio;café,2,x\n"
    write(root / "clotho_metadata_development.csv", about, encoding="utf-8")
    return {
        "development/Distorted AM Radio noise": Want("train", captions=captions, source="freesound:2"),
        "validation/a!b": Want("val", captions=captions),
        "evaluation/Santa Motor": Want("test", captions=captions),
    }


def clotho_aqa(root: Path) -> Wanted:
    asked = [("Are there birds?", answer) for answer in ("yes", "no", "yes")]
    header = ("file_name", "QuestionText", "answer", "confidence")
    table(root / "clotho_aqa_train.csv", [header, *(("A walk.wav", *pair, "yes") for pair in asked)])
    table(root / "clotho_aqa_test.csv", [header, ("rain.wav", "What falls?", "rain", "maybe")])
    for name in ("A walk", "rain"):
        sound(root / f"audio_files/{name}.wav")
    return {"A walk": Want("train", questions=tuple(asked)), "rain": Want("test", questions=(("What falls?", "rain"),))}


def audiocaps(root: Path) -> Wanted:
    header = ("audiocap_id", "youtube_id", "start_time", "caption")
    table(root / "dataset/train.csv", [header, (91139, "r1nicOVtvkQ", 130, "A woman talks, a dog barks")])
    table(root / "dataset/test.csv", [header, *((i, "-_xyz_1234A", 30, f"Caption {i}") for i in (103, 104))])
    sound(root / "train/r1nicOVtvkQ.wav")
    sound(root / "test/Y-_xyz_1234A_30.000_40.000.flac")
    return {
        "r1nicOVtvkQ_130": Want("train", captions=("A woman talks, a dog barks",), source="youtube:r1nicOVtvkQ"),
        "-_xyz_1234A_30": Want("test", captions=("Caption 103", "Caption 104"), source="youtube:-_xyz_1234A"),
    }


_MIDS = {"/m/09x0r": "Speech", "/t/dd00088": "Gush", "/m/0ngt1": "Thunder", "/m/0bt9lr": "Dog"}


def _segments(root: Path, table: str, rows: Sequence[tuple[str, float, str]]) -> None:
    head = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=1\n"
    head += "# YTID, start_seconds, end_seconds, positive_labels\n"
    lines = [f'{video}, {start:.3f}, {start + 10:.3f}, "{mids}"\n' for video, start, mids in rows]
    write(root / table, head + "".join(lines))


def audioset(root: Path) -> Wanted:
    classes = [("index", "mid", "display_name"), *((i, mid, name) for i, (mid, name) in enumerate(_MIDS.items()))]
    table(root / "class_labels_indices.csv", classes)
    _segments(root, "balanced_train_segments.csv", [("-0DdlOuIFUI", 50, "/m/09x0r,/t/dd00088")])
    _segments(
        root,
        "unbalanced_train_segments.csv",
        [("---1_cCGK4M", 0, "/m/09x0r"), ("--2_BBVHAAA", 30, "/m/09x0r,/m/0bt9lr")],
    )
    _segments(root, "eval_segments.csv", [("--4gqARaEJE", 0, "/m/0ngt1")])
    sound(root / "balanced/-0DdlOuIFUI.wav")
    sound(root / "unbalanced/---1_cCGK4M_0.wav")
    sound(root / "unbalanced/Y--2_BBVHAAA.flac")
    sound(root / "eval/--4gqARaEJE_0_10.wav")
    return {
        "-0DdlOuIFUI_50000": Want("balanced_train", ("Speech", "Gush"), source="youtube:-0DdlOuIFUI"),
        "---1_cCGK4M_0": Want("unbalanced_train", ("Speech",), source="youtube:---1_cCGK4M"),
        "--2_BBVHAAA_30000": Want("unbalanced_train", ("Speech", "Dog"), source="youtube:--2_BBVHAAA"),
        "--4gqARaEJE_0": Want("eval", ("Thunder",), source="youtube:--4gqARaEJE"),
    }


def audioset_ltu(root: Path) -> Wanted:
    wanted = audioset(root)
    return {k: w._replace(split="train") for k, w in wanted.items() if w.split != "eval"}


def audioset_strong(root: Path) -> Wanted:
    table(root / "mid_to_display_name.tsv", _MIDS.items(), "\t")
    header = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
    rows = [("b0RFKhbpFJA_30000", 4.5, 6.25, "/m/0bt9lr"), ("b0RFKhbpFJA_30000", 0, 10, "/m/09x0r")]
    table(root / "audioset_train_strong.tsv", [header, *rows], "\t")
    table(root / "audioset_eval_strong.tsv", [header, ("s9d-2nhuJCQ_30000", 2.627, 7.237, "/m/0ngt1")], "\t")
    sound(root / "b0RFKhbpFJA_30000.wav")
    sound(root / "Ys9d-2nhuJCQ.wav")
    return {
        "b0RFKhbpFJA_30000": Want(
            "train",
            ("Speech", "Dog"),
            events=(("Speech", 0.0, 10.0), ("Dog", 4.5, 6.25)),
            source="youtube:b0RFKhbpFJA",
        ),
        "s9d-2nhuJCQ_30000": Want(
            "eval", ("Thunder",), events=(("Thunder", 2.627, 7.237),), source="youtube:s9d-2nhuJCQ"
        ),
    }


def wavcaps(root: Path) -> Wanted:
    parts = {
        "AudioSet_SL/as_final.json": {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind.", "duration": 10.0},
        "BBC_Sound_Effects/bbc_final.json": {"id": "NHU05104027", "caption": "Ice cracks.", "duration": 160.8},
        "FreeSound/fsd_final.json": {"id": "180913", "caption": "Bells ring.", "duration": 9.5},
        "SoundBible/sb_final.json": {"id": "2219", "caption": "A waterfall.", "duration": 4.0},
    }
    for place, row in parts.items():
        write(root / "json_files" / place, json.dumps({"num_captions_per_audio": 1, "data": [row]}))
        folder, name = place.split("/")[0], row["id"].removesuffix(".wav")
        sound(root / f"Zip_files/{folder}/mnt/fast/waveforms/{folder}_flac/{name}.flac")
    return {
        "audioset_sl/Yb0RFKhbpFJA": Want("audioset_sl", captions=("Wind.",), source="youtube:b0RFKhbpFJA"),
        "bbc/NHU05104027": Want("bbc", captions=("Ice cracks.",), source="bbc:NHU05104027"),
        "freesound/180913": Want("freesound", captions=("Bells ring.",), source="freesound:180913"),
        "soundbible/2219": Want("soundbible", captions=("A waterfall.",), source="soundbible:2219"),
    }


def _one_part(part: str) -> Callable[[Path], Wanted]:
    def make(root: Path) -> Wanted:
        wanted = wavcaps(root)
        path = root / "json_files/FreeSound/fsd_final.json"
        held = json.loads(path.read_text())
        held["data"].append({"id": "9", "caption": "Long.", "duration": 10.5})  # LTU takes what is shorter than 10 s
        write(path, json.dumps(held))
        return {name: want._replace(split="train") for name, want in wanted.items() if want.split == part}

    return make


def _openaqa(file: str) -> Callable[[Path], Wanted]:
    def make(root: Path) -> Wanted:
        home = "/data/sls/scratch/yuangong/audiocap/dave_version/audio"
        rows = [
            (f"{home}/-0DdlOuIFUI.flac", "as_20k", "cla_label", "What is heard?", "Labels: Speech"),
            (
                "/data/sls/fsd/FSD50K.dev_audio_16k/64760.wav",
                "fsd50k",
                "cla",
                "Closed-ended question: What?",
                "Labels: Dog",
            ),
            (f"{home}/-0DdlOuIFUI.flac", "as_20k", "open", "Is it loud?", "It is not."),
        ]
        names = ("audio_id", "dataset", "task", "instruction", "output")
        write(root / f"openaqa/data/{file}", json.dumps([dict(zip(names, row)) | {"input": ""} for row in rows]))
        sound(root / "as/-0DdlOuIFUI.wav")
        sound(root / "fsd50k/FSD50K.dev_audio_16k/64760.wav")
        return {
            "-0DdlOuIFUI": Want(
                "train", questions=(("What is heard?", "Labels: Speech"), ("Is it loud?", "It is not."))
            ),
            "64760": Want("train", questions=(("Closed-ended question: What?", "Labels: Dog"),)),
        }

    return make


def mmau(root: Path) -> Wanted:
    row = {"id": "e8", "audio_id": "./test-mini-audios/e8.wav", "question": "Which?", "choices": ["Man", "Woman"]}
    write(root / "mmau-test-mini.json", json.dumps([row | {"answer": "Woman", "task": "speech", "difficulty": "hard"}]))
    row = {"id": "f9", "audio_id": "./test-audios/f9.wav", "question": "What?", "choices": ["A", "B"], "answer": ""}
    write(root / "mmau-test.json", json.dumps([row | {"task": "sound"}]))
    sound(root / "test-mini-audios/e8.wav")
    sound(root / "test-audios/f9.wav")
    return {"e8": Want("test_mini", questions=(("Which?", "Woman"),)), "f9": Want("test")}


def air_bench(root: Path) -> Wanted:
    row = {"path": "a.wav", "question": "What?", "choice_a": "rain", "choice_b": "dog", "answer_gt": "dog"}
    row |= {"task_name": "Sound_AQA", "dataset_name": "clothoaqa", "uniq_id": 7}
    ground = row | {"path": "g.wav", "task_name": "Audio_Grounding", "dataset_name": "AudioGrounding", "uniq_id": 8}
    write(root / "Foundation/Foundation_meta.json", json.dumps([row, ground]))
    chat = {
        "path": "c.wav",
        "question": "Why?",
        "answer_gt": "Wind.",
        "task_name": "sound_QA",
        "dataset_name": "clotho",
    }
    write(root / "Chat/Chat_meta.json", json.dumps([chat | {"meta_info": "Wind blows.", "uniq_id": 7}]))
    sound(root / "Foundation/Sound_AQA_clothoaqa/a.wav")
    sound(root / "Foundation/Audio_Grounding_AudioGrounding/g.flac")
    sound(root / "Chat/sound_QA_clotho/c.wav")
    return {
        "foundation/7": Want("foundation", questions=(("What?", "dog"),)),
        "foundation/8": Want("foundation", questions=(("What?", "dog"),)),
        "chat/7": Want("chat", questions=(("Why?", "Wind."),)),
    }


def vggsound(root: Path) -> Wanted:
    rows = [("---g-f_I2yQ", 1, "people marching", "test"), ("--0PQM4-hqg", 30, "waterfall, burbling", "train")]
    write(root / "vggsound.csv", "".join(f'{v},{s},"{label}",{split}\n' for v, s, label, split in rows))
    sound(root / "test/---g-f_I2yQ_000001.wav")
    sound(root / "train/--0PQM4-hqg_000030.wav")
    return {
        "---g-f_I2yQ_000001": Want("test", ("people marching",), source="youtube:---g-f_I2yQ"),
        "--0PQM4-hqg_000030": Want("train", ("waterfall, burbling",), source="youtube:--0PQM4-hqg"),
    }


def avqa(root: Path) -> Wanted:
    row = {"id": 1, "video_name": "--0PQM4-hqg_000030", "video_id": 2, "question_text": "What falls?"}
    row |= {"multi_choice": ["water", "rain"], "answer": 0, "question_relation": "Both", "question_type": "What"}
    write(root / "train_qa.json", json.dumps([row]))
    write(root / "val_qa.json", json.dumps([row | {"id": 2, "video_name": "0AEJTlHIhz0_000358", "answer": 1}]))
    sound(root / "--0PQM4-hqg_000030.wav")
    sound(root / "0AEJTlHIhz0_000358.flac")
    return {
        "--0PQM4-hqg_000030": Want("train", questions=(("What falls?", "water"),), source="youtube:--0PQM4-hqg"),
        "0AEJTlHIhz0_000358": Want("val", questions=(("What falls?", "rain"),), source="youtube:0AEJTlHIhz0"),
    }


def dcase2017_task4(root: Path) -> Wanted:
    truth = root / "groundtruth_release"
    name = "-5QrBL6MzLg_60.000_70.000.wav"
    labels = ("Train horn", "Air horn, truck horn")
    table(truth / "groundtruth_weak_label_testing_set.csv", [(name, 60.0, 70.0, label) for label in labels], "\t")
    table(truth / "groundtruth_strong_label_testing_set.csv", [(name, 0.917, 2.029, labels[0])], "\t")
    table(truth / "groundtruth_weak_label_training_set.csv", [("--ab_1234_c_0.000_10.000.wav", 0, 10, "Bus")], "\t")
    scored = ("zzYt9mEKLFc_30.000_40.000.wav", "Car alarm")
    for kind, times in (("weak", (30.0, 40.0)), ("strong", (0.0, 4.5))):
        rows = [(scored[0], *times, scored[1])]
        table(truth / f"groundtruth_{kind}_label_evaluation_set.csv", rows, "\t")
    sound(root / "testing" / f"Y{name}")
    sound(root / "training/Y--ab_1234_c_0.000_10.000.wav")
    sound(root / "evaluation" / f"Y{scored[0]}")
    return {
        scored[0].removesuffix(".wav"): Want(
            "eval", scored[1:], events=((scored[1], 0.0, 4.5),), source="youtube:zzYt9mEKLFc"
        ),
        name.removesuffix(".wav"): Want(
            "test", labels, events=(("Train horn", 0.917, 2.029),), source="youtube:-5QrBL6MzLg"
        ),
        "--ab_1234_c_0.000_10.000": Want("train", ("Bus",), source="youtube:--ab_1234_c"),
    }


def tut2017(root: Path) -> Wanted:
    name = "TUT-acoustic-scenes-2017-{}"
    table(root / name.format("development") / "meta.txt", [("audio/b020_90_100.wav", "beach", "b020")], "\t")
    table(root / name.format("evaluation") / "meta.txt", [("audio/1245.wav", "grocery_store")], "\t")
    sound(root / name.format("development") / "audio/b020_90_100.wav")
    sound(root / name.format("evaluation") / "audio/1245.wav")
    return {"dev/b020_90_100": Want("dev", ("beach",)), "eval/1245": Want("eval", ("grocery store",))}


def vocalsound(root: Path) -> Wanted:
    for split, name in (("tr", "f0003_0_cough.wav"), ("te", "m0001_0_throatclearing.wav")):
        rows = [{"wav": f"/data/sls/scratch/vocalsound/audio_16k/{name}", "labels": "/m/01b_21"}]
        write(root / f"datafiles/{split}.json", json.dumps({"data": rows}))
        sound(root / "audio_16k" / name)
    return {"f0003_0_cough": Want("train", ("Cough",)), "m0001_0_throatclearing": Want("test", ("Throat clearing",))}


def crema_d(root: Path) -> Wanted:
    sound(root / "AudioWAV/1001_DFA_ANG_XX.wav")
    return {"1001_DFA_ANG_XX": Want("train", ("anger",))}


def ravdess(root: Path) -> Wanted:
    sound(root / "Actor_12/03-01-06-01-02-01-12.wav")
    sound(root / "song/Actor_12/03-02-03-01-02-01-12.wav")
    return {
        "03-01-06-01-02-01-12": Want("speech", ("fearful",)),
        "03-02-03-01-02-01-12": Want("song", ("happy",)),
    }


def sesa(root: Path) -> Wanted:
    sound(root / "SESA/train/casual_000.wav")
    sound(root / "SESA/test/gunshot_012.wav")
    return {"train/casual_000": Want("train", ("casual sound",)), "test/gunshot_012": Want("test", ("gunshot",))}


def gtzan(root: Path) -> Wanted:
    sound(root / "genres/blues/blues.00000.wav")
    sound(root / "genres/hiphop/hiphop.00031.au")
    return {"blues.00000": Want("train", ("blues",)), "hiphop.00031": Want("train", ("hip hop",))}


def beijing_opera(root: Path) -> Wanted:
    folder = root / "beijing_opera_percussion_instrument_1.0"
    sound(folder / "215__Bangu-1.wav")
    sound(folder / "219__xiaoluo-2.wav")
    return {"215__Bangu-1": Want("test", ("clapper-drum",)), "219__xiaoluo-2": Want("test", ("small gong",))}


def musiccaps(root: Path) -> Wanted:
    header = (
        "ytid",
        "start_s",
        "end_s",
        "audioset_positive_labels",
        "aspect_list",
        "caption",
        "author_id",
        "is_balanced_subset",
        "is_audioset_eval",
    )
    rows = [("-0Gj8-vB1q4", 30, 40, "/m/0", "['slow']", "A slow song,\nsung.", 4, "False", "True")]
    table(root / "musiccaps-public.csv", [header, *rows])
    sound(root / "wav/-0Gj8-vB1q4.wav")
    return {"-0Gj8-vB1q4_30": Want("eval", captions=("A slow song,\nsung.",), source="youtube:-0Gj8-vB1q4")}


def song_describer(root: Path) -> Wanted:
    header = (
        "caption_id",
        "track_id",
        "caption",
        "is_valid_subset",
        "familiarity",
        "artist_id",
        "album_id",
        "path",
        "duration",
    )
    rows = [
        (1, 1004034, "A song.", "True", 0, 1, 2, "34/1004034.mp3", 240),
        (2, 1004034, "Soft.", "False", 0, 1, 2, "34/1004034.mp3", 240),
    ]
    table(root / "song_describer.csv", [header, *rows])
    sound(root / "audio/34/1004034.2min.mp3", seconds=0.2)
    return {"1004034": Want("test", captions=("A song.", "Soft."), source="jamendo:1004034")}


def musicqa(root: Path) -> Wanted:
    row = {
        "audio_name": "000001.wav",
        "conversation": [{"from": "human", "value": " Which mood?"}, {"from": "gpt", "value": "Calm."}],
    }
    write(root / "FinetuneMusicQA.json", json.dumps([row, row | {"conversation": row["conversation"][::-1]}]))
    write(root / "EvalMusicQA.json", json.dumps([row | {"audio_name": "000002.wav"}]))
    sound(root / "audios/000001.wav")
    sound(root / "audios/000002.wav")
    return {
        "000001": Want("train", questions=(("Which mood?", "Calm."), ("Calm.", "Which mood?"))),
        "000002": Want("test", questions=(("Which mood?", "Calm."),)),
    }


def macs(root: Path) -> Wanted:
    text = "files:\n- filename: airport-barcelona-0-0-a.wav\n  annotations:\n"
    text += "  - annotator_id: 1\n    sentence: People talk.\n    tags: [adults_talking]\n"
    text += "  - annotator_id: 2\n    sentence: A hall.\n    tags: [footsteps]\n"
    write(root / "MACS.yaml", text)
    sound(root / "audio/airport-barcelona-0-0-a.wav")
    name = "airport-barcelona-0-0-a"
    return {name: Want("train", captions=("People talk.", "A hall."), source=f"tau2019:{name}")}


MINIATURES: dict[str, Callable[[Path], Wanted]] = {
    make.__name__: make
    for make in (
        *(esc50, urbansound8k, fsd50k, clotho, clotho_aqa, audiocaps, audioset, audioset_ltu, audioset_strong, wavcaps),
        *(mmau, air_bench, vggsound, avqa, dcase2017_task4, tut2017, vocalsound, crema_d, ravdess, sesa, gtzan),
        *(beijing_opera, musiccaps, song_describer, musicqa, macs),
    )
} | {
    "freesound": _one_part("freesound"),
    "soundbible": _one_part("soundbible"),
    "openaqa": _openaqa("openaqa_5.6M.json"),
    "openaqa_closed": _openaqa("all_closed_qa.json"),
    "openaqa_labels": _openaqa("combine_cla.json"),
}
