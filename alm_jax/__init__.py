"""Audio-language models in JAX: an encoder hears, an aligner translates, a decoder answers.

`load` gives a model that answers questions about sounds, `load_clap` a CLAP. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alm_jax.api import load, load_clap

__version__ = "0.1.0"
__all__ = ["__version__", "load", "load_clap"]


def __getattr__(name: str) -> Any:
    if name in ("load", "load_clap"):
        from alm_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
