"""The sets by name."""

from __future__ import annotations

from alm_jax.core.config import did_you_mean
from alm_jax.core.errors import ConfigError
from alm_jax.data.sets import (
    audiocaps,
    audioset,
    clotho,
    dcase,
    esc50,
    fsd50k,
    mmau,
    music,
    openaqa,
    urbansound8k,
    vggsound,
    voices,
    wavcaps,
)
from alm_jax.data.sets.base import DataSet

SETS: dict[str, DataSet] = {
    dataset.name: dataset
    for dataset in (
        esc50.ESC50,
        urbansound8k.URBANSOUND8K,
        fsd50k.FSD50K,
        clotho.CLOTHO,
        clotho.CLOTHO_AQA,
        audiocaps.AUDIOCAPS,
        audioset.AUDIOSET,
        audioset.AUDIOSET_LTU,
        audioset.AUDIOSET_STRONG,
        wavcaps.WAVCAPS,
        wavcaps.FREESOUND,
        wavcaps.SOUNDBIBLE,
        openaqa.OPENAQA,
        openaqa.OPENAQA_CLOSED,
        openaqa.OPENAQA_LABELS,
        mmau.MMAU,
        mmau.AIR_BENCH,
        vggsound.VGGSOUND,
        vggsound.AVQA,
        dcase.DCASE2017,
        dcase.TUT2017,
        voices.VOCALSOUND,
        voices.CREMA_D,
        voices.RAVDESS,
        voices.SESA,
        music.GTZAN,
        music.BEIJING_OPERA,
        music.MUSICCAPS,
        music.SONG_DESCRIBER,
        music.MUSICQA,
        music.MACS,
    )
}


def find_set(name: str) -> DataSet:
    """The set of that name; ConfigError where there is none."""
    if name not in SETS:
        raise ConfigError(f"no data set {name!r}{did_you_mean(name, SETS) or '.'} `alm data list` lists them")
    return SETS[name]
