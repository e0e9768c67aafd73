"""PyTorch `.bin` / `.pth` files (zip archives and older bare pickles), read with `weights_only` and nothing else."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from alm_jax.convert.formats import Index
from alm_jax.core.errors import CheckpointError


class TorchPickle:
    """The tensors of a state dict, bare or inside `{'state_dict': ...}` / `{'model': ...}`.

    `metadata` holds the plain values (numbers, strings, flags) that lie beside the tensors or in a `cfg` there. Zip
    archives are mapped into memory, so that only what is read is loaded.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, Any] = {}
        state = _load(path)
        while isinstance(state, Mapping):
            self.metadata |= _plain(state.get("cfg")) | _plain(state)
            inner = next((state[k] for k in ("state_dict", "model") if isinstance(state.get(k), Mapping)), None)
            if inner is None:
                break
            state = inner
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{path}: expected a state dict (names to tensors), got {type(state).__name__}")
        tensors = {str(k): v for k, v in state.items() if hasattr(v, "untyped_storage")}
        others = [f"'{k}' ({type(v).__name__})" for k, v in state.items() if str(k) not in tensors | self.metadata]
        if others:
            raise CheckpointError(f"{path}: expected tensors only, got {', '.join(others)}")
        self._tensors = {key: tensor.detach() for key, tensor in tensors.items()}

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> np.dtype:
        return _as_numpy(self._tensors[key][:0] if self.shape(key) else self._tensors[key]).dtype

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        return _as_numpy(self._tensors[key])[(*(index or ()), ...)].copy()  # of a scalar an array too


def _plain(values: Any) -> dict[str, Any]:
    """The numbers, strings and flags of a mapping; none of anything else."""
    items = values.items() if isinstance(values, Mapping) else ()
    return {str(key): value for key, value in items if isinstance(value, bool | int | float | str)}


def _as_numpy(tensor: Any) -> np.ndarray:
    """A view of a CPU tensor's memory; torch itself refuses bfloat16."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError as e:
        raise CheckpointError(f"{path}: a PyTorch pickle needs torch to be read; pip install 'alm_jax[torch]'") from e
    with path.open("rb") as f:
        zipped = f.read(4) == b"PK\x03\x04"  # only these can be mapped
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as e:  # torch raises half a dozen types for a bad file; each becomes one line that names it
        raise CheckpointError(f"{path}: {_reason(str(e))}") from e


def _reason(message: str) -> str:
    hostile = re.search(r"(?:GLOBAL|global:?|class|function:?|import of)\s+[`'\"]?([\w]+(?:\.[\w]+)+)", message)
    if hostile:
        return f"refused: the pickle calls for '{hostile[1]}'; only tensors and plain containers are read"
    line = message.strip().splitlines()[0] if message.strip() else "unreadable"
    return f"not a readable PyTorch file (truncated or corrupt?): {line}"
