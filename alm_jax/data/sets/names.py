"""How published sets name things."""

from __future__ import annotations


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
