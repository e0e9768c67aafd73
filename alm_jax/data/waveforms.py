"""Samples of clips in the place of their frames, where a step computes these itself (`Stage.front_end`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from alm_jax.core.errors import ConfigError


@dataclass(frozen=True)
class Waveforms:
    """What `frontend.jax` is given of a clip: as many samples as its frames are taken from, or as the clip has.

    Attributes:
        frontend: of the encoder (`alm_jax.audio.frontend`).

    Raises:
        ConfigError: its frames depend on more of a clip than such a window.
    """

    frontend: Any

    def __post_init__(self) -> None:
        if self.max_seconds is None:
            raise ConfigError(
                f"front_end='device' takes the same number of samples of each clip, and {type(self.frontend).__name__} "
                "with these settings looks at the whole of it: leave front_end='host'"
            )

    @property
    def sample_rate(self) -> int:
        return self.frontend.sample_rate

    @property
    def max_seconds(self) -> float | None:
        return self.frontend.max_seconds

    @property
    def feature_shape(self) -> tuple[int]:
        """(samples,)."""
        return (round(self.max_seconds * self.sample_rate),)

    def numpy(self, wave: np.ndarray) -> np.ndarray:
        """float32 [n] to its first `feature_shape` samples, or all if there are fewer."""
        return wave[: self.feature_shape[0]]
