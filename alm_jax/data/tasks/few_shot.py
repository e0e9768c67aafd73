"""N-way K-shot classification: labelled examples of sounds, and one to name (APT, section V, B)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alm_jax.core.errors import ConfigError, DataError
from alm_jax.data.rows import AUDIO_MARK, AudioRow
from alm_jax.data.tasks.clips import LabelledClip
from alm_jax.data.tasks.draw import generator, pick, sample
from alm_jax.data.tasks.prompts import FEW_SHOT

_TRIES = 100


@dataclass(frozen=True)
class FewShot:
    """How an episode is drawn.

    Attributes:
        ways: N, how many labels it has to choose from
        shots: K, how many examples it gives of each
        episodes: how many; None: as many as there are clips
    """

    ways: int = 4
    shots: int = 1
    episodes: int | None = None

    def __post_init__(self) -> None:
        if self.ways < 2 or self.shots < 1 or (self.episodes is not None and self.episodes < 1):
            raise ConfigError(
                f"few-shot episodes of {self.ways} ways and {self.shots} shots, {self.episodes} of them; expected at "
                "least 2 ways, 1 shot and 1 episode"
            )


def few_shot(clips: Sequence[LabelledClip], config: FewShot, seed: int) -> Iterator[AudioRow]:
    """Rows of N * K + 1 clips, each followed by `This is a sound of` and its label, the last one's to be said.

    No example bears two of an episode's labels, and none is the query. `meta` has the labels as `choices`.

    Raises:
        DataError: too few labels have K + 1 clips.
    """
    by_label: dict[str, list[LabelledClip]] = {}
    for clip in clips:
        for label in clip.labels:
            by_label.setdefault(label, []).append(clip)
    enough = sorted(label for label, group in by_label.items() if len(group) > config.shots)
    if len(enough) < config.ways:
        raise _too_few(by_label, len(enough), config)
    for episode in range(config.episodes or len(clips)):
        rng = generator(seed, "few_shot", episode)
        classes, groups = _classes(by_label, enough, config, rng)
        label = pick(classes, rng)
        chosen = {name: sample(groups[name], config.shots + (name == label), rng) for name in classes}
        query = chosen[label].pop()
        examples = sample([(clip, name) for name in classes for clip in chosen[name]], config.ways * config.shots, rng)
        yield AudioRow(
            "".join(f"{AUDIO_MARK}{FEW_SHOT} {name}" for _, name in examples) + f"{AUDIO_MARK}{FEW_SHOT}",
            audio_id=tuple(str(clip.path) for clip in [*(clip for clip, _ in examples), query]),
            task="few_shot",
            output=label,
            meta={"choices": sorted(classes)},
        )


def _classes(
    by_label: dict[str, list[LabelledClip]], enough: Sequence[str], config: FewShot, rng: np.random.Generator
) -> tuple[list[str], dict[str, list[LabelledClip]]]:
    """Labels of an episode, and of each the clips that bear no other of them."""
    for _ in range(_TRIES):
        classes = sample(enough, config.ways, rng)
        groups = {
            label: [clip for clip in by_label[label] if len(set(classes) & set(clip.labels)) == 1] for label in classes
        }
        if min(map(len, groups.values())) > config.shots:
            return classes, groups
    raise DataError(
        f"few-shot episodes of {config.ways} labels: in {_TRIES} draws no {config.ways} labels had {config.shots + 1} "
        "clips each that bear one of them alone; lower ways or shots, or take clips with fewer labels"
    )


def _too_few(by_label: dict[str, list[LabelledClip]], enough: int, config: FewShot) -> DataError:
    short = sorted((len(group), label) for label, group in by_label.items() if len(group) <= config.shots)
    told = ", ".join(f"{label} has {count}" for count, label in short[-3:])
    return DataError(
        f"few-shot episodes of {config.ways} labels with {config.shots} example{'s' * (config.shots > 1)} and a query "
        f"need {config.ways} labels of {config.shots + 1} clips or more; {enough or 'no'} label{'s' * (enough != 1)} "
        f"of {len(by_label)} can be used" + (f" ({told})" if told else "") + "; lower ways or shots, or add clips"
    )
