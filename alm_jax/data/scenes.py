"""Scene composer: labelled clips mixed into scenes whose content is known, for training and for measuring.

A scene holds a few sounds, each heard once or more, over a background. What is placed is annotated, so that questions
and answers about it (`questions.py`) are true by construction.
"""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alm_jax.audio.io import load_audio, write_audio
from alm_jax.audio.resample import resample
from alm_jax.core.errors import ConfigError, DataError
from alm_jax.core.files import write_text
from alm_jax.data.manifest import Clip
from alm_jax.data.mixing import NOISES, amplitude, bursts, centroid, extent, loop, noise
from alm_jax.data.questions import QUESTION_KINDS, make_rows
from alm_jax.data.workers import start_worker

_MASKED_DB = 5.0  # an event is taken to be heard down to this far below the background
_SILENT_PEAK = 1e-4
_REFERENCE_DB = -20.0  # RMS of a sound with gain 0, dB full scale
_PEAK = 0.95
_READ_SECONDS = 20.0  # only the start of a longer clip is decoded


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are composed; (low, high) pairs are drawn from uniformly, both ends included.

    Attributes:
      seconds: length of a scene.
      sample_rate: of a scene, in Hz.
      sounds: how many different labels; fewer if they do not fit.
      repeats: how often each of them is heard, by one clip at one level; fewer if they do not fit.
      max_events: the most that is heard in all.
      event_seconds: a longer clip is cut there.
      gap: silence between events that do not overlap, in seconds, so that repeats can be told apart.
      overlap: how probable it is that an event begins before the previous one, of another label, has ended.
      max_overlap: the longest overlap as a share of the shorter event.
      gain_db: level of a sound.
      lowpass: how probable a low-pass filter is for a sound. Clips that were recorded at a low rate have an empty upper
        band, which would give away where they come from; filters make it common.
      cutoff_hz: where the filter cuts off.
      speed: how fast a clip is played, pitch and all: few recordings of a label come to stand for others of it.
      fade: fade in and out of each event, in seconds.
      background: what is drawn from for the background: colours of noise (`NOISES`) and labels of clips, which are
        looped and no longer used as events.
      background_probability: of a scene to have one.
      snr_db: how far the background lies below the quietest sound.
    """

    seconds: float = 10.0
    sample_rate: int = 16000
    sounds: tuple[int, int] = (1, 3)
    repeats: tuple[int, int] = (1, 3)
    max_events: int = 5
    event_seconds: float = 3.0
    gap: float = 0.3
    overlap: float = 0.25
    max_overlap: float = 0.5
    gain_db: tuple[float, float] = (-15.0, 0.0)
    lowpass: float = 0.5
    cutoff_hz: tuple[float, float] = (2500.0, 7500.0)
    speed: tuple[float, float] = (1.0, 1.0)
    fade: float = 0.005
    background: tuple[str, ...] = tuple(NOISES)
    background_probability: float = 0.6
    snr_db: tuple[float, float] = (6.0, 30.0)

    def __post_init__(self):
        def check(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise ConfigError(f"SceneConfig.{field} is {getattr(self, field)!r}; expected {expected}")

        for field in ("sounds", "repeats", "gain_db", "cutoff_hz", "speed", "snr_db"):
            pair = getattr(self, field)
            check(len(pair) == 2 and pair[0] <= pair[1], field, "(low, high)")
        for field in ("overlap", "max_overlap", "lowpass", "background_probability"):
            check(0 <= getattr(self, field) <= 1, field, "0 to 1")
        check(self.seconds > 0, "seconds", "a positive number")
        check(self.sample_rate >= 1000, "sample_rate", "samples a second, at least 1000")
        check(self.sounds[0] >= 1, "sounds", "at least 1")
        check(self.repeats[0] >= 1, "repeats", "at least 1")
        check(self.max_events >= self.sounds[0], "max_events", "at least sounds[0]")
        check(0 < self.event_seconds <= self.seconds, "event_seconds", "more than 0, at most `seconds`")
        check(self.gap >= 0, "gap", "0 or more")
        check(0.25 <= self.speed[0] and self.speed[1] <= 4, "speed", "factors from 0.25 to 4")
        check(0 <= self.fade <= 0.1, "fade", "0 to 0.1")
        check(self.snr_db[0] >= 0, "snr_db", "0 or more: an event below the background would not be heard")
        check(
            (0 < self.cutoff_hz[0] and self.cutoff_hz[1] < self.sample_rate / 2) or self.lowpass == 0,
            "cutoff_hz",
            "frequencies between 0 and half the sample rate",
        )
        check(bool(self.background) or self.background_probability == 0, "background", "at least one kind")


@dataclass(frozen=True)
class Event:
    """One sound as it is heard in a scene.

    Attributes:
      label, phrase: what it is, see `Clip`.
      onset, offset: seconds from the start of the scene, measured where it stands out.
      gain_db: its gain as drawn; level_db: its RMS in the scene, dB full scale.
      centroid_hz: mean frequency, weighted by power.
      countable: it is one stretch of sound, not several barks in one recording.
      clip: folder and name of the recording.
    """

    label: str
    phrase: str
    onset: float
    offset: float
    gain_db: float
    level_db: float
    centroid_hz: float
    countable: bool
    clip: str


@dataclass(frozen=True)
class Scene:
    """A composed scene.

    Attributes:
      events: by onset.
      background: in words, or None.
      seconds, sample_rate, seed: as composed.
      waveform: float32 [seconds * sample_rate], peak below 1; None for a scene read back from its annotation.
    """

    events: tuple[Event, ...]
    background: str | None
    seconds: float
    sample_rate: int
    seed: int
    waveform: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    def annotation(self) -> dict:
        """All but the waveform, as JSON holds it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "waveform"}
        return fields | {"events": [dataclasses.asdict(event) for event in self.events]}

    @classmethod
    def from_annotation(cls, annotation: dict) -> "Scene":
        return cls(**annotation | {"events": tuple(Event(**event) for event in annotation["events"])})


@dataclass(frozen=True)
class _Sound:
    """A clip made ready: float32 samples of RMS 1, trimmed to where it is audible."""

    clip: Clip
    samples: np.ndarray
    centroid_hz: float
    countable: bool


def compose(clips: Sequence[Clip], config: SceneConfig, seed: int) -> Scene:
    """Composes one scene: a pure function of its arguments and of the clips' files, bit for bit.

    Raises:
      ConfigError: `config.background` names a label that no clip has.
      DataError: fewer labels than `config.sounds` asks for, or a silent clip.
      AudioError: a clip that cannot be decoded.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    foreground, backgrounds = _by_label(clips, config)
    count = int(rng.integers(config.sounds[0], config.sounds[1] + 1))
    labels = rng.permutation(sorted(foreground))[:count]
    sounds = [_make_sound(_pick(foreground[label], rng), config, rng) for label in labels]
    repeats = [int(rng.integers(config.repeats[0], config.repeats[1] + 1)) for _ in sounds]
    gains = [round(float(rng.uniform(*config.gain_db)), 2) for _ in sounds]

    repeats = _fit([len(sound.samples) for sound in sounds], repeats, config)
    quietest = min(gain for gain, times in zip(gains, repeats) if times)
    order = rng.permutation([i for i, times in enumerate(repeats) for _ in range(times)])
    lengths = [len(sounds[i].samples) for i in order]
    starts = _place(order, lengths, config, rng)

    kind, noise_db, waveform = _make_background(backgrounds, config, quietest, rng)
    for i, start, length in zip(order, starts, lengths):
        waveform[start : start + length] += sounds[i].samples * amplitude(_REFERENCE_DB + gains[i])
    scale = min(1.0, _PEAK / float(np.abs(waveform).max()))
    events = [
        _annotate(sounds[i], start, gains[i], noise_db, scale, config.sample_rate) for i, start in zip(order, starts)
    ]
    return Scene(
        events=tuple(sorted(events, key=lambda event: (event.onset, event.label))),
        background=kind,
        seconds=config.seconds,
        sample_rate=config.sample_rate,
        seed=int(seed),
        waveform=(waveform * scale).astype(np.float32),
    )


def write_scenes(
    out_dir: str | Path,
    clips: Sequence[Clip],
    config: SceneConfig,
    n: int,
    seed: int,
    *,
    kinds: Sequence[str] = tuple(QUESTION_KINDS),
    vocabulary: Sequence[str] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes scenes and the question rows about them; called again, it goes on where it was stopped.

    Writes `scenes/000123.flac`, `scenes.jsonl` (a line a scene: its annotation and `audio_id`), `scenes.json` (what
    they were composed from) and `rows.json` (LTU's row format, `audio_id` relative to it). Every file appears whole or
    not at all; `scenes.jsonl` grows by lines.

    Args:
      out_dir: the folder, made if absent.
      n: number of scenes; scene i depends on `seed` and i alone, so that a larger n extends what is there.
      kinds: which kinds of question.
      vocabulary: phrases that questions about absent sounds choose from; those of the events' clips if not given.
      workers: processes.
      progress: called with (scenes done, n).

    Returns:
      The path of `rows.json`.

    Raises:
      ConfigError: a number out of range. DataError: the folder holds scenes of another seed, config or collection, or
        cannot be written.
    """
    for name, value, least in (("number of scenes", n, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}; expected at least {least}")
    out_dir, clips = Path(out_dir), list(clips)
    try:
        (out_dir / "scenes").mkdir(parents=True, exist_ok=True)
        _claim(out_dir, clips, config, seed)
        listing = out_dir / "scenes.jsonl"
        done = {index: scene for index, scene in _finished(out_dir, listing) if index < n}
        write_text(listing, "".join(_line(index, done[index]) for index in sorted(done)))
        todo = [index for index in range(n) if index not in done]
        with listing.open("a", encoding="utf-8") as handle:
            for index, scene in _compose_all(out_dir, clips, config, seed, todo, workers):
                done[index] = scene
                handle.write(_line(index, scene))
                handle.flush()
                if progress:
                    progress(len(done), n)
        write_text(listing, "".join(_line(index, done[index]) for index in range(n)))
        if vocabulary is None:
            vocabulary = [clip.phrase for clip in clips if clip.label not in config.background]
        rows = [
            row
            for index in range(n)
            for row in make_rows(done[index], _audio_id(index), kinds, done[index].seed, vocabulary=vocabulary)
        ]
        write_text(out_dir / "rows.json", json.dumps(rows, indent=0))
    except (OSError, BrokenExecutor) as error:  # a full disk; a worker killed for memory
        raise DataError(
            f"{out_dir}: cannot write scenes ({error}); finished ones are kept: remove the cause and run again"
        ) from error
    return out_dir / "rows.json"


def read_scenes(path: str | Path) -> list[tuple[str, Scene]]:
    """Reads `scenes.jsonl`: (audio_id, scene without waveform) for each line."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the scenes.jsonl that write_scenes makes")
    scenes = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            scenes.append(_parse(text))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} line {number}: not a scene's annotation ({error}); run write_scenes again"
            ) from error
    return scenes


def _by_label(clips: Sequence[Clip], config: SceneConfig) -> tuple[dict, dict]:
    """Clips of events by label, and of backgrounds."""
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.label, []).append(clip)
    wanted = [kind for kind in config.background if kind not in NOISES]
    unknown = [kind for kind in wanted if kind not in groups]
    if unknown:
        raise ConfigError(
            f"SceneConfig.background holds {', '.join(unknown)}; expected {', '.join(NOISES)} or a label of the clips"
        )
    backgrounds = {label: groups.pop(label) for label in wanted}
    if len(groups) < config.sounds[0]:
        raise DataError(
            f"{len(groups)} labels for events, but SceneConfig.sounds asks for at least {config.sounds[0]}; give more "
            "labels or lower it"
        )
    return groups, backgrounds


def _play(samples: np.ndarray, rate: int, config: SceneConfig, rng: np.random.Generator) -> np.ndarray:
    """A clip at a speed drawn evenly in semitones, rounded to a twentieth so that filters are few and short."""
    if config.speed == (1.0, 1.0):
        return samples.astype(np.float64)
    steps = round(20 * float(np.exp(rng.uniform(*np.log(config.speed)))))
    return resample(samples, steps * rate, 20 * rate).astype(np.float64)


def _pick(clips: Sequence[Clip], rng: np.random.Generator) -> Clip:
    return clips[int(rng.integers(len(clips)))]


def _make_sound(clip: Clip, config: SceneConfig, rng: np.random.Generator) -> _Sound:
    from scipy.signal import butter, sosfilt

    rate = config.sample_rate
    samples = _play(_decode(clip.path, rate), rate, config, rng)[: round(config.event_seconds * rate)]
    filtered, cutoff = rng.random() < config.lowpass, rng.uniform(*config.cutoff_hz)
    if filtered:
        low = sosfilt(butter(4, cutoff, fs=rate, output="sos"), samples)
        if np.mean(low**2) > 0.01 * np.mean(samples**2):  # else the sound itself lies above the cut-off
            samples = low
    start, stop = extent(samples, rate)
    samples = samples[start:stop]
    fade = min(round(config.fade * rate), len(samples) // 2)
    ramp = np.linspace(0, 1, fade, endpoint=False)
    samples[:fade] *= ramp
    samples[len(samples) - fade :] *= ramp[::-1]
    samples /= np.sqrt(np.mean(samples**2))
    return _Sound(
        clip=clip,
        samples=samples.astype(np.float32),
        centroid_hz=round(centroid(samples, rate), 1),
        countable=bursts(samples, rate) == 1,
    )


@functools.lru_cache(maxsize=256)
def _decode(path: Path, rate: int) -> np.ndarray:
    """A clip at the scenes' rate without DC and without the silence at its ends, float32, read-only."""
    samples, _ = load_audio(path, sample_rate=rate, max_seconds=_READ_SECONDS)
    samples = samples - samples.mean()
    if np.abs(samples).max() < _SILENT_PEAK:
        raise DataError(f"{path}: silent; remove it from the collection")
    start, stop = extent(samples, rate)
    samples = samples[start:stop]
    samples.flags.writeable = False
    return samples


def _fit(lengths: list[int], repeats: list[int], config: SceneConfig) -> list[int]:
    """Lowers repeats, of the longest sounds first, and then leaves sounds out until all fit one after another."""
    repeats = list(repeats)
    gap, total = round(config.gap * config.sample_rate), round(config.seconds * config.sample_rate)

    def fits() -> bool:
        needed = sum(times * (length + gap) for times, length in zip(repeats, lengths)) - gap
        return needed <= total and sum(repeats) <= config.max_events

    while not fits():
        longest = max(range(len(repeats)), key=lambda i: (repeats[i] > 1, repeats[i] * lengths[i]))
        repeats[longest] -= 1
    return repeats


def _place(order: np.ndarray, lengths: list[int], config: SceneConfig, rng: np.random.Generator) -> list[int]:
    """Start samples of events, given in their order: gaps first, then some events are moved into their predecessor.

    No event overlaps both its neighbours, and the limit is at most a whole event: three are never heard at once and
    repeats of a label keep their gap.
    """
    gap, total = round(config.gap * config.sample_rate), round(config.seconds * config.sample_rate)
    slack = total - sum(lengths) - gap * (len(lengths) - 1)
    spare = np.sort(rng.integers(0, slack + 1, size=len(lengths)))
    ends = np.cumsum([length + gap for length in lengths])
    starts = [int(spare[i] + ends[i] - lengths[i] - gap) for i in range(len(lengths))]
    moved = False
    for i in range(1, len(starts)):
        wish, depth = rng.random() < config.overlap, rng.uniform(0.2, 1.0)
        moved = bool(wish and not moved and order[i] != order[i - 1])
        if moved:
            shared = int(depth * config.max_overlap * min(lengths[i - 1], lengths[i]))
            starts[i] = starts[i - 1] + lengths[i - 1] - shared
    return starts


def _make_background(
    backgrounds: dict[str, list[Clip]], config: SceneConfig, quietest_db: float, rng: np.random.Generator
) -> tuple[str | None, float, np.ndarray]:
    """What it is in words, its RMS in dB full scale (before the peak is limited), and its samples, float64."""
    total = round(config.seconds * config.sample_rate)
    if rng.random() >= config.background_probability:
        return None, -np.inf, np.zeros(total)
    kind = config.background[int(rng.integers(len(config.background)))]
    if kind in NOISES:
        phrase, samples = kind, noise(NOISES[kind], total, config.sample_rate, rng)
    else:
        clip = _pick(backgrounds[kind], rng)
        looped = loop(_decode(clip.path, config.sample_rate), total, config.sample_rate)
        phrase, samples = clip.phrase, np.roll(looped, int(rng.integers(len(looped))))[:total]
    level = _REFERENCE_DB + quietest_db - rng.uniform(*config.snr_db)
    return phrase, level, samples * amplitude(level) / np.sqrt(np.mean(samples**2))


def _annotate(sound: _Sound, start: int, gain: float, noise_db: float, scale: float, rate: int) -> Event:
    first, last = extent(sound.samples * amplitude(_REFERENCE_DB + gain), rate, noise_db - _MASKED_DB)
    return Event(
        label=sound.clip.label,
        phrase=sound.clip.phrase,
        onset=(start + first) / rate,
        offset=(start + last) / rate,
        gain_db=gain,
        level_db=round(_REFERENCE_DB + gain + 20 * np.log10(scale), 2),
        centroid_hz=sound.centroid_hz,
        countable=sound.countable,
        clip=f"{sound.clip.path.parent.name}/{sound.clip.path.name}",
    )


def _compose_one(index: int, out_dir: Path, clips: list[Clip], config: SceneConfig, seed: int) -> tuple[int, Scene]:
    scene_seed = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
    scene = compose(clips, config, scene_seed)
    write_audio(out_dir / _audio_id(index), scene.waveform, scene.sample_rate)
    return index, dataclasses.replace(scene, waveform=None)


def _compose_all(
    out_dir: Path, clips: list[Clip], config: SceneConfig, seed: int, todo: list[int], workers: int
) -> Iterator[tuple[int, Scene]]:
    task = functools.partial(_compose_one, out_dir=out_dir, clips=clips, config=config, seed=seed)
    if workers == 1 or len(todo) < 2:
        yield from map(task, todo)
        return
    # A fork of a process that runs JAX may hang, so fresh processes are started.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        yield from pool.map(task, todo, chunksize=8)


def _claim(out_dir: Path, clips: Iterable[Clip], config: SceneConfig, seed: int) -> None:
    """Notes what the scenes come from, or refuses a folder that holds others."""
    listing = [[c.label, c.phrase, f"{c.path.parent.name}/{c.path.name}", c.path.stat().st_size] for c in clips]
    origin = {
        "seed": seed,
        "config": dataclasses.asdict(config),
        "clips": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
    }
    text, note = json.dumps(origin, indent=1), out_dir / "scenes.json"
    if note.exists() and note.read_text(encoding="utf-8") == text:
        return
    if note.exists() and any(_finished(out_dir, out_dir / "scenes.jsonl")):
        raise DataError(f"{out_dir}: holds scenes of another seed, config or set of clips; use another folder")
    write_text(note, text)


def _finished(out_dir: Path, listing: Path) -> Iterator[tuple[int, Scene]]:
    """The scenes that are there. A line cut short by a stop is left out: its scene is composed again, the same."""
    if not listing.exists():
        return
    for text in listing.read_text(encoding="utf-8").splitlines():
        try:
            audio_id, scene = _parse(text)
            index = int(Path(audio_id).stem)
        except (ValueError, KeyError, TypeError):
            continue
        if (out_dir / audio_id).is_file():
            yield index, scene


def _audio_id(index: int) -> str:
    return f"scenes/{index:06d}.flac"


def _line(index: int, scene: Scene) -> str:
    return json.dumps({"audio_id": _audio_id(index)} | scene.annotation()) + "\n"


def _parse(line: str) -> tuple[str, Scene]:
    fields = dict(json.loads(line))
    return fields.pop("audio_id"), Scene.from_annotation(fields)
