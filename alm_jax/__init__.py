"""Audio-language models in JAX: an encoder hears, an aligner translates, a decoder answers.

`load(name_or_path)` gives a model that answers questions about sounds. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alm_jax.api import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from alm_jax.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
