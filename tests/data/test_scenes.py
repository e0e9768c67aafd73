"""The scene composer: what it annotates is what is in the waveform, measured without its own helpers."""

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.core.errors import AudioError, ConfigError, DataError
from alm_jax.data.manifest import Clip, read_manifest, shipped_sounds
from alm_jax.data.scenes import Event, Scene, SceneConfig, compose, read_scenes, write_scenes

RATE = 16000
FRAME = 1 / 100  # extents are measured in frames of 10 ms
TONES = {"low": 300.0, "middle": 900.0, "high": 3000.0, "top": 5000.0}
PLAIN = SceneConfig(lowpass=0.0, background_probability=0.0, overlap=0.0)


def tone(frequency: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write_clip(folder: Path, label: str, name: str, samples: np.ndarray, rate: int = RATE) -> Clip:
    path = folder / label / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return Clip(path=path, label=label, phrase=label)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    """Four labels, each a tone of its own frequency with silence around it; one clip at another rate."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for i, (label, frequency) in enumerate(TONES.items()):
        silence = np.zeros(4000)
        samples = np.concatenate([silence, tone(frequency, 0.3 + 0.2 * i), silence, silence])
        made.append(write_clip(folder, label, "one.wav", samples))
    made.append(write_clip(folder, "middle", "two.wav", tone(900.0, 0.8, 22050), 22050))
    return made


def spans(scene: Scene) -> list[tuple[int, int]]:
    return [(round(e.onset * scene.sample_rate), round(e.offset * scene.sample_rate)) for e in scene.events]


def peak_frequency(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 16))
    return float(spectrum.argmax() * RATE / (1 << 16))


def test_speed_moves_pitch_and_length(clips):
    config = replace(PLAIN, sounds=(1, 1), repeats=(1, 1), gain_db=(0.0, 0.0))
    (plain,), (fast,) = (compose(clips[:1], replace(config, speed=(by, by)), 3).events for by in (1.0, 1.5))
    assert fast.centroid_hz == pytest.approx(1.5 * plain.centroid_hz, rel=0.01)  # of windows of other lengths
    assert fast.offset - fast.onset == pytest.approx((plain.offset - plain.onset) / 1.5, abs=2 * FRAME)


def test_same_seed_same_scene(clips):
    config = SceneConfig()
    one, two = compose(clips, config, 11), compose(clips, config, 11)
    assert one == two and one.waveform.tobytes() == two.waveform.tobytes()
    assert compose(clips, config, 12).waveform.tobytes() != one.waveform.tobytes()


@pytest.mark.parametrize("seed", range(12))
def test_annotation_is_what_is_heard(clips, seed):
    scene = compose(clips, PLAIN, seed)
    wave = scene.waveform
    assert wave.dtype == np.float32 and wave.shape == (160000,) and np.abs(wave).max() < 1
    heard = np.zeros(len(wave), bool)
    for event, (start, stop) in zip(scene.events, spans(scene)):
        heard[start:stop] = True
        part = wave[start:stop]
        # The frequency grid of the padded transform is 0.25 Hz; the window of the shortest tone is 7 Hz wide.
        assert abs(peak_frequency(part) - TONES[event.label]) < 5
        assert abs(event.centroid_hz - TONES[event.label]) < 30  # onset fades widen the line a little
        assert abs(event.level_db - 10 * np.log10(np.mean(part.astype(float) ** 2))) < 0.05
        assert event.countable
    assert not wave[~heard].any()  # nothing sounds outside of the annotated events
    # Stretches of sound in the waveform: as many as events, since they do not overlap.
    loud = np.flatnonzero(np.abs(wave) > 1e-4)
    assert 1 + int(np.sum(np.diff(loud) > 0.2 * RATE)) == len(scene.events)
    assert list(scene.events) == sorted(scene.events, key=lambda e: e.onset)


def test_extent_leaves_out_the_silence_of_a_clip(clips):
    by_clip = {"low": 0.3, "high": 0.7, "top": 0.9}
    for seed in range(20):
        for event in compose(clips, PLAIN, seed).events:
            if event.label in by_clip:
                assert abs(event.offset - event.onset - by_clip[event.label]) <= 2 * FRAME


def test_counts_follow_the_config(clips):
    config = replace(PLAIN, sounds=(2, 2), repeats=(2, 2))
    for seed in range(10):
        labels = [event.label for event in compose(clips, config, seed).events]
        assert sorted(labels.count(label) for label in set(labels)) == [2, 2]
    drawn = [len({e.label for e in compose(clips, PLAIN, seed).events}) for seed in range(40)]
    assert set(drawn) == {1, 2, 3}


def test_max_events(clips):
    config = replace(PLAIN, sounds=(3, 3), repeats=(3, 3), max_events=4)
    assert {len(compose(clips, config, seed).events) for seed in range(10)} == {4}


def test_gaps_without_overlap(clips):
    config = replace(PLAIN, gap=0.4, sounds=(3, 3), repeats=(2, 2), max_events=6)
    for seed in range(10):
        events = compose(clips, config, seed).events
        for before, after in itertools.pairwise(events):
            assert after.onset - before.offset >= 0.4 - 2 * FRAME


@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0])
def test_overlap_stays_in_its_limit(clips, limit):
    config = replace(PLAIN, overlap=1.0, max_overlap=limit, sounds=(3, 3), repeats=(2, 2), max_events=6)
    overlaps = 0
    for seed in range(20):
        scene = compose(clips, config, seed)
        covered = np.zeros(len(scene.waveform), int)
        for start, stop in spans(scene):
            covered[start:stop] += 1
        assert covered.max() <= 2
        for a, b in itertools.combinations(scene.events, 2):
            shared = min(a.offset, b.offset) - max(a.onset, b.onset)
            if shared > 1e-6:
                overlaps += 1
                assert a.label != b.label
                # The limit is on what was placed, the extents may be a frame shorter at each end.
                assert shared <= limit * (min(a.offset - a.onset, b.offset - b.onset) + 2 * FRAME)
            elif a.label == b.label:
                assert -shared >= config.gap - 2 * FRAME
    assert (overlaps > 20) == (limit > 0)


def test_sounds_that_do_not_fit_are_left_out(tmp_path):
    clips = [write_clip(tmp_path, f"l{i}", "a.wav", tone(400 + 100 * i, 3.0)) for i in range(4)]
    config = replace(PLAIN, seconds=5.0, sounds=(3, 3), repeats=(3, 3), event_seconds=2.0, max_events=9)
    scene = compose(clips, config, 0)
    assert len(scene.events) == 2 and max(e.offset for e in scene.events) <= 5.0
    assert all(abs(e.offset - e.onset - 2.0) <= FRAME for e in scene.events)
    assert len(scene.waveform) == 5 * RATE


def test_background_level_and_colour(clips):
    for kind, exponent in {"white noise": 0, "pink noise": 1, "brown noise": 2}.items():
        config = replace(PLAIN, background=(kind,), background_probability=1.0, snr_db=(20.0, 20.0), sounds=(1, 1))
        scene = compose(clips, config, 5)
        assert scene.background == kind
        mask = np.ones(len(scene.waveform), bool)
        for start, stop in spans(scene):
            mask[max(start - RATE // 10, 0) : stop + RATE // 10] = False
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
        first, last = max(zip(edges[::2], edges[1::2]), key=lambda pair: pair[1] - pair[0])
        noise = scene.waveform[first:last].astype(float)
        quietest = min(event.level_db for event in scene.events)
        # Brown noise has few independent slow periods in some seconds: its level varies most.
        assert abs(10 * np.log10(np.mean(noise**2)) - (quietest - 20)) < (0.3, 0.7, 3.0)[exponent]
        power = np.abs(np.fft.rfft(noise * np.hanning(len(noise)))) ** 2
        frequency = np.fft.rfftfreq(len(noise), 1 / RATE)
        bands = np.geomspace(100, 6400, 7)
        means = [power[(frequency >= a) & (frequency < b)].mean() for a, b in itertools.pairwise(bands)]
        slope = np.polyfit(np.log(np.sqrt(bands[1:] * bands[:-1])), np.log(means), 1)[0]
        assert abs(slope + exponent) < 0.15  # six octaves, hundreds of bins in each but the lowest


def test_masked_ends_are_not_annotated(tmp_path):
    """A tone that dies away over a second ends where it sinks into the background."""
    decay = tone(500, 1.0) * 10 ** (-2 * np.arange(RATE) / RATE)  # 40 dB a second
    clips = [write_clip(tmp_path, "bell", "a.wav", decay)]
    quiet = replace(PLAIN, sounds=(1, 1), repeats=(1, 1))
    noisy = replace(quiet, background=("white noise",), background_probability=1.0, snr_db=(6.0, 6.0))
    alone, masked = (compose(clips, config, 0).events[0] for config in (quiet, noisy))
    # Measured down to 35 dB under the loudest frame: 0.875 s. The RMS lies 9.6 dB under the start, the noise 6 dB under
    # that, and 5 dB further is still heard: 20.6 dB, 0.52 s.
    assert abs(alone.offset - alone.onset - 0.875) < 2 * FRAME
    assert abs(masked.offset - masked.onset - 0.52) < 3 * FRAME


def test_clips_as_background(clips):
    config = replace(PLAIN, background=("low",), background_probability=1.0, sounds=(1, 3), snr_db=(10.0, 10.0))
    for seed in range(6):
        scene = compose(clips, config, seed)
        assert scene.background == "low" and "low" not in {event.label for event in scene.events}
        gaps = np.ones(len(scene.waveform), bool)
        for start, stop in spans(scene):
            gaps[start:stop] = False
        frames = scene.waveform[: len(gaps) // 160 * 160].reshape(-1, 160)[gaps.reshape(-1, 160).all(axis=1)]
        levels = 10 * np.log10(np.mean(frames.astype(float) ** 2, axis=1))
        assert levels.min() > levels.max() - 10  # looped over the whole scene without a hole


def test_low_pass(tmp_path):
    noise = np.random.default_rng(0).standard_normal(RATE) * 0.1
    clips = [write_clip(tmp_path, "hiss", "a.wav", noise)]
    config = replace(PLAIN, sounds=(1, 1), repeats=(1, 1), lowpass=1.0, cutoff_hz=(2000.0, 2000.0))
    for chance, expected in ((0.0, 0.0), (1.0, -48.0)):  # fourth order: 24 dB an octave, and 8 kHz is two up
        scene = compose(clips, replace(config, lowpass=chance), 0)
        (start, stop), frequency = spans(scene)[0], np.fft.rfftfreq(RATE // 2, 1 / RATE)
        power = np.abs(np.fft.rfft(scene.waveform[start : start + RATE // 2])) ** 2
        upper = power[(frequency > 6000) & (frequency < 7000)].mean() / power[frequency < 1500].mean()
        assert 10 * np.log10(upper) < expected + 3
        assert (10 * np.log10(upper) > -3) == (chance == 0)
        assert stop - start > 0.9 * RATE
    # A filter that would leave nothing of a sound is not applied.
    clips = [write_clip(tmp_path, "whistle", "a.wav", tone(7000, 0.5))]
    scene = compose(clips, config, 0)
    assert abs(peak_frequency(scene.waveform[slice(*spans(scene)[0])]) - 7000) < 5


def test_several_bursts_in_a_clip_are_not_countable(tmp_path):
    barks = np.concatenate([tone(500, 0.2), np.zeros(RATE // 5), tone(500, 0.2)])
    scene = compose([write_clip(tmp_path, "dog", "a.wav", barks)], replace(PLAIN, sounds=(1, 1)), 0)
    assert not any(event.countable for event in scene.events)


def test_long_clip_is_cut_and_read_in_part(tmp_path):
    clips = [write_clip(tmp_path, "drone", "a.wav", tone(500, 60.0))]
    scene = compose(clips, replace(PLAIN, sounds=(1, 1), repeats=(1, 1), event_seconds=4.0), 1)
    assert abs(scene.events[0].offset - scene.events[0].onset - 4.0) <= FRAME


@pytest.mark.parametrize(
    "field, value",
    [
        ("sounds", (3, 1)),
        ("sounds", (0, 2)),
        ("repeats", (0, 1)),
        ("max_events", 0),
        ("seconds", 0.0),
        ("event_seconds", 11.0),
        ("overlap", 1.5),
        ("max_overlap", -0.1),
        ("lowpass", 2.0),
        ("gap", -1.0),
        ("fade", 3.0),
        ("snr_db", (-3.0, 5.0)),
        ("cutoff_hz", (1000.0, 9000.0)),
        ("background", ()),
        ("sample_rate", 10),
    ],
)
def test_bad_config_names_the_field(field, value):
    with pytest.raises(ConfigError, match=f"SceneConfig.{field} is .*; expected "):
        SceneConfig(**{field: value})


def test_bad_collections(clips, tmp_path):
    with pytest.raises(DataError, match=r"1 labels for events.*at least 2"):
        compose(clips[:1], replace(PLAIN, sounds=(2, 2)), 0)
    with pytest.raises(ConfigError, match=r"SceneConfig\.background holds wind"):
        compose(clips, replace(PLAIN, background=("wind",)), 0)
    silent = write_clip(tmp_path, "quiet", "a.wav", np.zeros(RATE))
    with pytest.raises(DataError, match=r"a\.wav: silent"):
        compose([silent], replace(PLAIN, sounds=(1, 1)), 0)
    text = tmp_path / "text" / "a.wav"
    text.parent.mkdir()
    text.write_text("no audio")
    with pytest.raises(AudioError, match=r"a\.wav"):
        compose([Clip(path=text, label="text", phrase="text")], replace(PLAIN, sounds=(1, 1)), 0)


def test_written_scenes_are_the_composed_ones(clips, tmp_path):
    calls = []
    path = write_scenes(tmp_path, clips, SceneConfig(), 4, 7, progress=lambda done, n: calls.append((done, n)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert path == tmp_path / "rows.json"
    scenes = read_scenes(tmp_path / "scenes.jsonl")
    assert [audio_id for audio_id, _ in scenes] == [f"scenes/{i:06d}.flac" for i in range(4)]
    for audio_id, scene in scenes:
        again = compose(clips, SceneConfig(), scene.seed)
        assert scene == again and scene.waveform is None
        samples, rate = soundfile.read(path.parent / audio_id, dtype="float32")
        assert rate == RATE and np.abs(samples - again.waveform).max() <= 1 / 32768  # 16 bit
    rows = json.loads(path.read_text())
    assert {row["audio_id"] for row in rows} == {audio_id for audio_id, _ in scenes}
    fields = ("instruction", "input", "audio_id", "caption", "dataset", "task", "output", "meta")
    assert {tuple(row) for row in rows} == {fields}
    assert len({scene.seed for _, scene in scenes}) == 4
    assert not list(tmp_path.glob("**/.*"))  # no partial file is left


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resume_after_a_stop(clips, tmp_path):
    write_scenes(tmp_path, clips, SceneConfig(), 5, 7)
    whole = snapshot(tmp_path)
    lines = (tmp_path / "scenes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "scenes.jsonl").write_text("".join(lines[:3]) + lines[3][:40])  # killed while it wrote line 4
    (tmp_path / "rows.json").unlink()
    (tmp_path / "scenes" / "000001.flac").unlink()
    (tmp_path / "scenes" / "000004.flac").unlink()
    kept = tmp_path / "scenes" / "000002.flac"
    os.utime(kept, (1, 1))
    calls = []
    write_scenes(tmp_path, clips, SceneConfig(), 5, 7, progress=lambda done, n: calls.append(done))
    assert snapshot(tmp_path) == whole
    assert kept.stat().st_mtime == 1 and calls == [3, 4, 5]


def test_more_scenes_extend_fewer(clips, tmp_path):
    write_scenes(tmp_path / "a", clips, SceneConfig(), 2, 7)
    write_scenes(tmp_path / "a", clips, SceneConfig(), 5, 7)
    write_scenes(tmp_path / "b", clips, SceneConfig(), 5, 7)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_workers_write_the_same(clips, tmp_path):
    write_scenes(tmp_path / "a", clips, SceneConfig(), 4, 7)
    write_scenes(tmp_path / "b", clips, SceneConfig(), 4, 7, workers=2)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_kinds_and_vocabulary(clips, tmp_path):
    write_scenes(tmp_path, clips, PLAIN, 6, 1, kinds=("unanswerable",), vocabulary=["a siren"])
    before = {name: data for name, data in snapshot(tmp_path).items() if name != "rows.json"}
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["meta"] for row in rows] == [{"missing": "a siren"}] * 6
    write_scenes(tmp_path, clips, PLAIN, 6, 1, kinds=("count",))  # asks anew about the same scenes
    assert {row["task"] for row in json.loads((tmp_path / "rows.json").read_text())} == {"count"}
    assert before == {name: data for name, data in snapshot(tmp_path).items() if name != "rows.json"}


def test_other_scenes_are_not_mixed_in(clips, tmp_path):
    write_scenes(tmp_path, clips, PLAIN, 1, 1)
    for changed in ((clips, PLAIN, 1, 2), (clips, SceneConfig(), 1, 1), (clips[1:], PLAIN, 1, 1)):
        with pytest.raises(DataError, match="scenes of another seed, config or set of clips"):
            write_scenes(tmp_path, *changed)


def test_a_folder_without_finished_scenes_takes_any(clips, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    bad = Clip(tmp_path / "bad.wav", "bad", "bad")
    with pytest.raises(AudioError, match=r"bad\.wav"):
        write_scenes(tmp_path / "out", [bad], PLAIN, 1, 1)
    write_scenes(tmp_path / "out", clips, PLAIN, 1, 1)
    with pytest.raises(DataError, match="another seed"):
        write_scenes(tmp_path / "out", [bad], PLAIN, 1, 1)


def test_bad_targets(clips, tmp_path):
    with pytest.raises(ConfigError, match="number of scenes is 0; expected at least 1"):
        write_scenes(tmp_path, clips, PLAIN, 0, 1)
    with pytest.raises(ConfigError, match="seed is -1; expected at least 0"):
        write_scenes(tmp_path, clips, PLAIN, 1, -1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write scenes"):
        write_scenes(tmp_path / "file", clips, PLAIN, 1, 1)
    (tmp_path / "scenes.jsonl").write_text('{"audio_id": "a"}\n')
    with pytest.raises(DataError, match="line 1: not a scene's annotation"):
        read_scenes(tmp_path / "scenes.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read_scenes(tmp_path / "gone.jsonl")


def test_shipped_clips_compose():
    clips = read_manifest(shipped_sounds())
    labels = set()
    for seed in range(60):
        scene = compose(clips, SceneConfig(), seed)
        assert np.isfinite(scene.waveform).all() and 0 < np.abs(scene.waveform).max() < 1
        assert all(0 <= e.onset < e.offset <= 10 for e in scene.events) and 1 <= len(scene.events) <= 5
        labels |= {event.label for event in scene.events}
    assert len(labels) > 25


def test_event_reads_back_from_json():
    event = Event("dog", "dog", 1 / 3, 0.5, -3.0, -20.0, 440.0, True, "dog/a.wav")
    scene = Scene(events=(event,), background=None, seconds=10.0, sample_rate=RATE, seed=2**63 + 1)
    assert Scene.from_annotation(json.loads(json.dumps(scene.annotation()))) == scene
