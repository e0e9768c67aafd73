"""Key styles: the same tensor is named differently by each way of saving a PyTorch model.

Tables are written in canonical names: plain `transformers` ones, with LoRA as `...q_proj.lora_A.weight`. A `Style` is
the difference between these and the names of a file, in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Set
from dataclasses import dataclass

from alm_jax.convert.rules import Table
from alm_jax.core.errors import CheckpointError

_PEFT = "base_model.model."
_PARALLEL = "module."
_BASE = ".base_layer."
_LORA = re.compile(r"\.(lora_[AB])(?:\.([^.]+))?\.weight$")
_GAMMA = re.compile(r"LayerNorm\.(gamma|beta)$")
_MODERN = {"gamma": "weight", "beta": "bias"}
_TENSORFLOW = {modern: name for name, modern in _MODERN.items()}


@dataclass(frozen=True)
class Style:
    """How a file's keys differ from canonical ones.

    Attributes:
        prefix: put before every key (`module.` by DataParallel).
        bare: canonical prefix that the file leaves off (`model.` in a dump of the inner model).
        peft: canonical prefix of the model that PEFT wraps, "" for the whole; None without PEFT. `base_model.model.`
            follows it.
        adapter: name that stands in LoRA keys inside a model (`lora_A.default.weight`); "" in adapter files.
        base_layer: weights that LoRA wraps are named `q_proj.base_layer.weight` (PEFT >= 0.6).
        tied: tensors that a tied model shares are written out under each name.
        gamma: weight and bias of norms are named `LayerNorm.gamma` and `.beta`, as TensorFlow did (BERT as published).
    """

    prefix: str = ""
    bare: str = ""
    peft: str | None = None
    adapter: str = ""
    base_layer: bool = False
    tied: bool = False
    gamma: bool = False

    def canonical(self, key: str) -> str:
        """Canonical name of a file's key."""
        key = key.removeprefix(self.prefix)
        if self.peft is not None and key.startswith(self.peft + _PEFT):
            key = self.peft + key[len(self.peft + _PEFT) :]
        key = _LORA.sub(r".\1.weight", key)
        if self.gamma:
            key = _GAMMA.sub(lambda match: f"LayerNorm.{_MODERN[match[1]]}", key)
        return self.bare + (key.replace(_BASE, ".") if self.base_layer else key)

    def name(self, key: str, wrapped: Set[str] = frozenset()) -> str:
        """The file's name of a canonical key.

        Args:
            key: canonical.
            wrapped: canonical names of the modules that LoRA wraps (`modules_with_lora`).

        Raises:
            CheckpointError: the style leaves off a prefix that the key does not have.
        """
        if not key.startswith(self.bare):
            raise CheckpointError(
                f"{key} cannot be written in a style without the prefix {self.bare!r}: export the part"
            )
        key = key[len(self.bare) :]
        module, _, leaf = key.rpartition(".")
        if self.gamma and module.endswith("LayerNorm"):
            key = f"{module}.{_TENSORFLOW[leaf]}"
        if self.base_layer and self.bare + module in wrapped:
            key = f"{module}{_BASE}{leaf}"
        if self.adapter:
            key = _LORA.sub(lambda match: f".{match[1]}.{self.adapter}.weight", key)
        if self.peft is not None and key.startswith(self.peft):
            key = self.peft + _PEFT + key[len(self.peft) :]
        return self.prefix + key


PLAIN = Style()
TIED = Style(tied=True)  # BEATs, whose code loads no file that lacks a copy
PUBLISHED = Style(peft="", adapter="default")  # ltu_ori_paper.bin: the PEFT 0.3 model's own state dict
ADAPTER = Style(peft="")  # adapter_model.safetensors


def modules_with_lora(keys: Collection[str]) -> frozenset[str]:
    """Canonical names of the modules that have LoRA among canonical `keys`."""
    return frozenset(key[: match.start()] for key in keys if (match := _LORA.search(key)))


def style_of(keys: Collection[str], table: Table) -> Style:
    """The style of a file with these keys, read as `table`.

    Raises:
        CheckpointError: the file holds more than one LoRA adapter.
    """
    prefix = _PARALLEL if keys and all(key.startswith(_PARALLEL) for key in keys) else ""
    keys = [key.removeprefix(prefix) for key in keys]
    roots = sorted({key[: key.index(_PEFT)] for key in keys if _PEFT in key}, key=len)
    adapters = sorted({match[2] or "" for key in keys if (match := _LORA.search(key))})
    if len(adapters) > 1:
        raise CheckpointError(f"the file holds {len(adapters)} LoRA adapters ({', '.join(adapters)}); expected one")
    style = Style(
        prefix=prefix,
        peft=roots[0] if roots else None,
        adapter=adapters[0] if adapters else "",
        base_layer=any(_BASE in key for key in keys),
        gamma=any(_GAMMA.search(key) for key in keys),
    )
    known = {key for names in table.packs for key in names}
    stripped = [style.canonical(prefix + key) for key in keys]
    bare = max(("", *table.bare), key=lambda start: sum(start + key in known for key in stripped))
    present = {bare + key for key in stripped}
    return Style(**vars(style) | {"bare": bare, "tied": any(alias in present for alias, _ in table.tied)})
