"""How published sets name things."""

from __future__ import annotations

import re

_NUMBER = r"\d+(?:\.\d+)?"
_CUT = re.compile(rf"\[?([\w-]{{11}})\]?(?:[_-]\[?({_NUMBER})(?:[_-]({_NUMBER}))?\]?)?", re.ASCII)


def words(label: str) -> str:
    """A label as published sets write it, in words: `dog_bark` reads `dog bark`."""
    return " ".join(label.replace("_", " ").split())


def youtube(video: str, start: float, end: float | None = None) -> tuple[str, ...]:
    """The names under which people keep a cut of a video: by AudioSet's, VGGSound's, WavCaps's, DCASE's and
    AudioCaps's downloaders, in that order."""
    end = start + 10 if end is None else end
    spans = (
        f"{video}_{start * 1000:.0f}",
        f"{video}_{start:06.0f}",
        f"Y{video}",
        f"Y{video}_{start:.3f}_{end:.3f}",
        f"{video}_{start:.0f}",
        f"{video}_{start * 1000:.0f}_{end * 1000:.0f}",
        f"{video}_{start:.0f}_{end:.0f}",
        f"{video}_{start:.1f}_{end:.1f}",
        f"{video}_{start:.3f}_{end:.3f}",
        f"{video}-{start:.0f}-{end:.0f}",
        f"[{video}]-[{start:.0f}-{end:.0f}]",
        f"Y{video}_{start:.0f}_{end:.0f}",
    )
    return (video, *spans)


def recordings(name: str, about: str = "") -> tuple[str, ...]:
    """What a clip may be taken from, as `Item.source` says it, by the name of its file: `youtube:ID` where it is built
    as those that `youtube` gives, `freesound:ID` for a number.

    Args:
        about: where the file stands, and what else is said of it; numbers are Freesound's only where it is named.
    """
    found = [f"youtube:{cut[1]}" for each in (name, name.removeprefix("Y")) if (cut := _CUT.fullmatch(each))]
    if name.isdecimal() and re.search("freesound|fsd", about, re.IGNORECASE):
        found.append(f"freesound:{name}")
    return tuple(dict.fromkeys(found))
