import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from alm_jax.audio.frontend import KaldiFbank, WhisperLogMel
from alm_jax.audio.io import load_audio
from alm_jax.core.errors import ConfigError, DataError
from alm_jax.core.sequence import Batch, Layout
from alm_jax.data.features import FeatureStore, FeatureWriter, audio_sha256, feature_key
from alm_jax.data.layout import lay_out, row_lengths
from alm_jax.data.pipeline import make_pipeline
from alm_jax.data.plan import DataSpec, Source
from alm_jax.data.templates import ALPACA_SHORT, PLAIN
from alm_jax.data.tokenizer import train_tokenizer
from alm_jax.infer.clips import windows

LAYOUT = Layout(bos="after_audio", loss_on="all", max_text_tokens=150)
FRONTEND = KaldiFbank(num_mels=4, frames=20)
TOKENIZER = train_tokenizer(["What is heard? A dog barks. Rain falls."], 270)
CLIPS = 5
SHAPE = (128, 80)  # four of them are passed from workers in shared memory, also in 16 bits


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """30 rows over 5 clips at several rates; every fifth row has no clip."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        soundfile.write(folder / f"{i}.wav", rng.uniform(-0.5, 0.5, 2000 * (i + 1)), (8000, 16000, 44100)[i % 3])
    rows = [
        {
            "instruction": f"What {'is ' * (i % 7)}heard?",
            "audio_id": "" if i % 5 == 4 else f"{i % CLIPS}.wav",
            "output": f"Row {i}.",
        }
        for i in range(30)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def pipeline(rows_file, audio=FRONTEND, spec=None, **kwargs):
    values = dict(sources=(Source(str(rows_file)),), batch_size=4, buckets=(56, 64, 72, 160), seed=1) | (spec or {})
    kwargs = dict(template=ALPACA_SHORT, layout=LAYOUT, tokenizer=TOKENIZER, audio=audio, audio_tokens=3) | kwargs
    return make_pipeline(DataSpec(**values), **kwargs)


def assert_same(loaded, other):
    assert len(loaded) == len(other)
    for a, b in zip(loaded, other):
        assert (a.step, a.planned, a.bad) == (b.step, b.planned, b.bad)
        for f in fields(Batch):
            np.testing.assert_array_equal(getattr(a.batch, f.name), getattr(b.batch, f.name), err_msg=f.name)


def test_batches_are_the_planned_rows(rows_file):
    data = pipeline(rows_file)
    loaded = list(data.iterate(0, data.plan.steps_per_epoch))
    assert [b.step for b in loaded] == list(range(8))
    for step, batch, planned, bad in loaded:
        assert planned == data.plan(step) and not bad
        assert batch.shape == (4, planned.bucket)
        assert batch.audio.shape == (4, 1, 20, 4) and batch.audio.dtype == np.float32
        for b, (source, index, _) in enumerate(planned.entries):
            row = data.rowsets[source][index]
            expected = lay_out(ALPACA_SHORT.parts(row), LAYOUT, TOKENIZER, audio_tokens=3)
            np.testing.assert_array_equal(batch.tokens[b, : len(expected)], expected.tokens)
            np.testing.assert_array_equal(batch.loss_weight[b, : len(expected)], expected.loss_weight)
            assert batch.q_segment_ids[b].sum() == len(expected)
            if row.audio_id:
                wave, _ = load_audio(rows_file.parent / row.audio_id, sample_rate=16000)
                np.testing.assert_allclose(batch.audio[b, 0], FRONTEND.numpy(wave), atol=1e-5)  # cut before, not after
                assert batch.audio_clip[b, 0] == 0 and batch.audio_index[b].max() == 2
            else:
                assert not batch.audio[b].any() and batch.audio_clip[b, 0] == -1 and batch.audio_index[b].max() == -1
    assert {p.bucket for _, _, p, _ in loaded} == {56, 64, 72}


def shift(window, rng):
    """An augmentation (at module level: it goes to worker processes)."""
    return window + rng.normal(size=window.shape).astype(np.float32)


def test_workers_and_resume_change_nothing(rows_file):
    data = pipeline(rows_file, augment=shift)
    alone = list(data.iterate(0, 10))
    assert_same(list(data.iterate(6, 4)), alone[6:])
    several = pipeline(rows_file, augment=shift, spec={"workers": 4})
    assert_same(list(several.iterate(3, 7)), alone[3:])
    first, again = alone[0], pipeline(rows_file, augment=shift, spec={"seed": 2}).load(0)
    assert not np.array_equal(first.batch.audio, again.batch.audio)


def test_processes_share_the_planned_batch(rows_file):
    whole = pipeline(rows_file, augment=shift)
    parts = [pipeline(rows_file, augment=shift, process_index=p, process_count=2) for p in (0, 1)]
    for step in (0, 5, 9):
        blocks = [part.load(step) for part in parts]
        for f in fields(Batch):
            values = [getattr(block.batch, f.name) for block in blocks]
            expected = getattr(whole.load(step).batch, f.name)
            if expected is not None:
                np.testing.assert_array_equal(np.concatenate(values), expected)
    with pytest.raises(ConfigError, match="does not divide among 3"):
        pipeline(rows_file, process_count=3)


def test_bad_rows_are_left_out_and_named(tmp_path, caplog, monkeypatch):
    soundfile.write(tmp_path / "good.wav", np.full(800, 0.1), 16000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF....")
    names = ["good.wav", "missing.wav", "broken.wav", "good.wav"]
    rows = [{"instruction": f"Q{i}", "audio_id": n, "output": "A"} for i, n in enumerate(names)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    data = pipeline(path, spec={"shuffle": False, "max_bad_share": 0.5})
    with caplog.at_level(logging.WARNING, "alm_jax"):
        (loaded,) = data.iterate(0, 1)
    assert loaded.batch.audio.shape == (4, 1, 20, 4) and loaded.batch.shape == (4, 56)
    assert loaded.batch.loss_weight.any(axis=1).tolist() == [True, False, False, True]
    assert loaded.batch.audio.any(axis=(1, 2, 3)).tolist() == [True, False, False, True]
    assert len(loaded.bad) == 2
    assert loaded.bad[0].startswith(f"{path}[1]: ") and "missing.wav" in loaded.bad[0]
    assert [m for m in loaded.bad if f"step 1: bad row left out: {m}" in caplog.text] == loaded.bad
    with pytest.raises(DataError, match=r"2 of 4 rows are bad, more than max_bad_share 49.00%.*broken\.wav"):
        list(pipeline(path, spec={"shuffle": False, "max_bad_share": 0.49}).iterate(0, 1))
    # also when a worker meets them, and with the little shared memory that containers give
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(DataError, match="2 of 4 rows are bad"):
        list(pipeline(path, spec={"shuffle": False, "max_bad_share": 0.0, "workers": 1}).iterate(0, 1))
    assert "too small for" in caplog.text


def test_evaluation_counts_every_row_once(rows_file):
    data = pipeline(rows_file, spec={"shuffle": False, "last": "pad", "buckets": (160,)})
    *_, last = data.iterate(0, data.plan.steps_per_epoch)
    assert last.planned.sequences[2:] == ((), ()) and not last.bad
    assert last.batch.loss_weight.any(axis=1).tolist() == [True, True, False, False]
    assert not last.batch.q_segment_ids[2:].any() and not last.batch.audio[2:].any()


def test_rows_without_any_audio(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": "Q", "audio_id": None, "output": "A"}]))
    loaded = pipeline(path, audio=None).load(0)
    assert loaded.batch.audio is None and loaded.batch.audio_clip is None and not loaded.bad
    assert not pipeline(path).load(0).batch.audio.any()
    with pytest.raises(ConfigError, match="no fixed shape"):
        pipeline(path, audio=replace(FRONTEND, frames=None))


def test_rows_of_several_clips(rows_file, tmp_path):
    """Clips in any order with text, a clip twice, none: a batch has slots for its row of most clips."""
    texts = ["<audio>a<audio>b<audio>", "Which?", "x<audio>y", "No sound.", "<audio><audio>z"]
    heard = [["0.wav", "2.wav", "0.wav"], ["3.wav", "1.wav"], ["4.wav"], [], ["1.wav", "0.wav"]]
    rows = [{"instruction": text, "audio_id": clips, "output": "A"} for text, clips in zip(texts, heard)]
    path = rows_file.parent / "several.json"
    path.write_text(json.dumps(rows))
    spec = {"shuffle": False, "batch_size": 5, "buckets": (160,)}
    batch = pipeline(path, spec=spec).load(0).batch
    assert batch.audio.shape == (5, 3, 20, 4)
    assert batch.audio_clip.tolist() == [[0, 1, 2], [0, 1, -1], [0, -1, -1], [-1] * 3, [0, 1, -1]]
    waves = {f"{i}.wav": load_audio(rows_file.parent / f"{i}.wav", sample_rate=16000)[0] for i in range(5)}
    windows = {name: FRONTEND.numpy(wave) for name, wave in waves.items()}
    for b, clips in enumerate(heard):
        for slot in range(3):
            expected = windows[clips[slot]] if slot < len(clips) else np.zeros((20, 4))
            np.testing.assert_allclose(batch.audio[b, slot], expected, atol=1e-5)
        # three tokens a clip, where its mark stands, and none where nothing is heard
        places = batch.audio_index[b][batch.audio_index[b] >= 0]
        assert places.tolist() == list(range(3 * len(clips)))
    first = batch.audio_index[0]
    assert [int(first[i]) for i in range(len(first)) if first[i] >= 0 and first[i - 1] < 0] == [0, 3, 6]
    assert (batch.loss_weight.sum(axis=1) > 0).all()

    # a batch of rows alone is the same as theirs among others, but for the empty slots
    for b, row in enumerate(rows):
        row["audio_id"] = [str(rows_file.parent / clip) for clip in heard[b]]
        (tmp_path / "one.json").write_text(json.dumps([row]))
        alone = pipeline(tmp_path / "one.json", spec=spec | {"batch_size": 1}).load(0).batch
        assert alone.audio.shape[1] == max(1, len(heard[b]))
        for f in fields(Batch):
            if f.name not in ("audio", "audio_clip") and getattr(batch, f.name) is not None:
                np.testing.assert_array_equal(getattr(alone, f.name)[0], getattr(batch, f.name)[b], err_msg=f.name)
        np.testing.assert_array_equal(alone.audio[0], batch.audio[b, : alone.audio.shape[1]])
    with pytest.raises(ConfigError, match="rows of 3 clips need a front end or a feature store"):
        pipeline(path, audio=None)


def test_aligners_that_read_text(rows_file):
    """Every batch has texts of one length, also where no row hears anything: shapes agree between processes."""
    layout = Layout(apart=True, aligner_text_tokens=24)
    options = {"layout": layout, "template": PLAIN, "aligner_tokenizer": TOKENIZER}
    data = pipeline(rows_file, spec={"shuffle": False, "buckets": (160,)}, **options)
    batch = data.load(1).batch  # rows 4 to 7; row 4 has no clip
    assert batch.aligner_tokens.shape == batch.aligner_mask.shape == (4, 1, 24)
    assert batch.aligner_mask.any(axis=(1, 2)).tolist() == [False, True, True, True]
    read = batch.aligner_tokens[1, 0][batch.aligner_mask[1, 0]].tolist()
    text = [*TOKENIZER.encode(data.rowsets[0][5].instruction), TOKENIZER.eos_id][-23:]
    assert read[-len(text) :] == text
    (rows_file.parent / "none.json").write_text(json.dumps([{"instruction": "Q", "audio_id": "", "output": "A"}]))
    silent = pipeline(rows_file.parent / "none.json", spec={"buckets": (160,)}, **options).load(0).batch
    assert silent.aligner_tokens.shape == (4, 1, 24) and not silent.aligner_mask.any()
    assert pipeline(rows_file, layout=layout).load(0).batch.aligner_tokens is None


def test_slots_are_those_of_the_whole_batch(rows_file, tmp_path):
    """Also on the process whose own rows hear less; sources that keep to themselves cost each other nothing."""
    clips = [str(rows_file.parent / f"{i}.wav") for i in range(3)]
    for name, heard in (("one", clips[:1]), ("three", clips)):
        (tmp_path / name).write_text(json.dumps([{"instruction": "Q", "audio_id": heard, "output": "A"}] * 4))
    sources = tuple(Source(str(tmp_path / name)) for name in ("one", "three"))
    spec = {"sources": sources, "shuffle": False, "batch_size": 8, "buckets": (160,)}
    parts = [pipeline(rows_file, spec=spec, process_index=p, process_count=2).load(0).batch for p in (0, 1)]
    assert [part.audio.shape[:2] for part in parts] == [(4, 3), (4, 3)]
    assert [(part.audio_clip >= 0).sum() for part in parts] == [4, 12]
    apart = pipeline(rows_file, spec=spec | {"batch_size": 4, "mixing": "one_source_per_batch"})
    assert [apart.load(step).batch.audio.shape[1] for step in (0, 1)] == [1, 3]


@dataclass(frozen=True)
class Computed:
    """A features file of the clips beside a rows file."""

    path: str
    dtype: str = "float16"

    def write(self, rows_file):
        with FeatureWriter(self.path, SHAPE, self.dtype) as writer:
            for i in range(CLIPS - 1):
                clip = rows_file.parent / f"{i}.wav"
                key = feature_key(audio_sha256(clip), frontend=FRONTEND, weights="w", taps=(1,), dtype=self.dtype)
                writer.add(key, np.full(SHAPE, i + 1, np.float32))
                writer.link(clip, key)
        return FeatureStore.open(self.path)


@pytest.mark.parametrize("front_end", [FRONTEND, replace(FRONTEND, sample_rate=32000, peak=0.5)])
def test_long_clips_take_the_slots_that_they_take_in_inference(rows_file, tmp_path, front_end):
    """0.14 to 1.1 s at three rates, in windows of 0.2 s, of which three are allowed; what is longer is cut."""
    folder, clips = rows_file.parent, [*range(CLIPS), "long"]
    soundfile.write(folder / "long.wav", np.random.default_rng(1).uniform(-0.5, 0.5, 9000), 8000)
    rows = [{"instruction": "What?", "audio_id": str(folder / f"{i}.wav"), "output": "It."} for i in clips]
    rows.append({"instruction": "<audio> or <audio>?", "audio_id": [str(folder / "3.wav"), str(folder / "0.wav")]})
    rows[-1] |= {"output": "That."}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = pipeline(tmp_path / "rows.json", front_end, {"segments": 3, "batch_size": 7}, cache_dir=tmp_path)
    loaded = data.load(0)
    counts = [len(windows(folder / f"{i}.wav", front_end, 9)) for i in clips]
    assert counts == [2, 2, 1, 5, 4, 6] and loaded.batch.audio.shape == (7, 5, 20, 4) and not loaded.bad
    for b, (_, index, _) in enumerate(loaded.planned.entries):
        heard = [3, 0] if index == 6 else [clips[index]]
        expected = np.concatenate([windows(folder / f"{i}.wav", front_end, 9)[:3] for i in heard])
        np.testing.assert_allclose(loaded.batch.audio[b, : len(expected)], expected, atol=1e-5)
        assert not loaded.batch.audio[b, len(expected) :].any()
        assert (loaded.batch.audio_clip[b] >= 0).sum() == len(expected)
        assert (loaded.batch.audio_index[b] >= 0).sum() == 3 * len(expected)  # 3 tokens a slot
        slots = [min(3, len(windows(folder / f"{i}.wav", front_end, 9))) for i in heard]
        parts = ALPACA_SHORT.parts(data.rowsets[0][index])
        row = lay_out(parts, LAYOUT, TOKENIZER, audio_tokens=3, slots=slots)
        np.testing.assert_array_equal(loaded.batch.audio_index[b, : len(row)], row.audio_index)
        assert row_lengths([parts], LAYOUT, TOKENIZER, audio_tokens=3, slots=[slots]) == [len(row)]


def test_segments_that_cannot_be(rows_file, tmp_path):
    with pytest.raises(ConfigError, match="segments is 0"):
        pipeline(rows_file, spec={"segments": 0})
    with pytest.raises(ConfigError, match=r"a row hears 2 windows, data.max_slots is 1: raise it, lower data.segments"):
        pipeline(rows_file, spec={"segments": 2, "max_slots": 1})
    with pytest.raises(ConfigError, match=r"data.segments is 2, and WhisperLogMel hears one window of a clip"):
        pipeline(rows_file, WhisperLogMel(), spec={"segments": 2})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_features_in_place_of_audio(rows_file, tmp_path, dtype):
    store = Computed(tmp_path / "a" / "features.array_record", dtype).write(rows_file)
    assert os.listdir(tmp_path / "a") == ["features.array_record"]
    assert len(store) == CLIPS - 1 and store.shape == SHAPE
    data = pipeline(rows_file, audio=store, spec={"max_bad_share": 1.0})
    loaded = list(data.iterate(0, 8))
    for _, batch, planned, bad in loaded:
        assert batch.audio.shape == (4, 1, *SHAPE) and batch.audio.dtype == np.dtype(dtype) and not bad
        for b, (source, index, _) in enumerate(planned.entries):
            name = data.rowsets[source][index].audio_id
            assert (batch.audio[b] == (int(name[0]) + 1 if name else 0)).all()
    if dtype == "bfloat16":  # a dtype that is not NumPy's own passes to and from workers too
        assert_same(list(pipeline(rows_file, audio=store, spec={"workers": 1}).iterate(0, 8)), loaded)
    with pytest.raises(ConfigError, match="cannot be augmented"):
        pipeline(rows_file, audio=store, augment=shift)


def test_feature_files_are_whole_and_checked(rows_file, tmp_path):
    path = tmp_path / "features.array_record"
    store = Computed(path).write(rows_file)
    key = store.keys[str(rows_file.parent / "2.wav")]
    assert key in store and "x" not in store
    np.testing.assert_array_equal(store[key], np.full(SHAPE, 3, np.float16))
    with pytest.raises(DataError, match=r"no features of .*9\.wav"):
        store.of_clip("9.wav")
    whole = path.read_bytes()

    with pytest.raises(RuntimeError), FeatureWriter(path, SHAPE, "float16") as writer:
        writer.add("k", np.zeros(SHAPE))
        raise RuntimeError
    assert path.read_bytes() == whole and os.listdir(tmp_path) == [path.name]

    at = whole.index(np.full(SHAPE, 3, np.float16).tobytes())
    path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    with pytest.raises(DataError, match="record 2"):
        FeatureStore.open(path)[key]
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a whole features file; delete it"):
        FeatureStore.open(path)
    with pytest.raises(DataError, match="no such features file"):
        FeatureStore.open(tmp_path / "none")

    with FeatureWriter(path, SHAPE, "float16") as writer:
        with pytest.raises(DataError, match="shape"):
            writer.add("k", np.zeros((5, 2)))
        with pytest.raises(DataError, match="not finite in float16"):
            writer.add("k", np.full(SHAPE, 1e6))


def test_feature_keys_name_all_that_matters():
    base = dict(audio="a", frontend=FRONTEND, weights="w", taps=(1, 2), dtype="float16")
    changes = [{}, {"audio": "b"}, {"frontend": replace(FRONTEND, std=2.0)}, {"weights": "x"}, {"taps": (1,)}]
    assert len({feature_key(**(base | change)) for change in changes}) == len(changes)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from test_pipeline import pipeline
if __name__ == "__main__":
    for loaded in pipeline(sys.argv[1], spec={"workers": 2}).iterate(0, 10**6):
        import multiprocessing
        print(*(p.pid for p in multiprocessing.active_children()), flush=True)
        input()
"""


def test_workers_end_with_their_parent(rows_file, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, script, rows_file, os.path.dirname(__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
