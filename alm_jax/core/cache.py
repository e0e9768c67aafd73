"""Where everything that can be made again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$ALM_CACHE`, by default `~/.cache/alm_jax`: downloaded weights, composed scenes, row lengths, features."""
    return Path(os.environ.get("ALM_CACHE") or "~/.cache/alm_jax").expanduser()
