"""LoRA adapters in PEFT's names, and `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.load import fold
from alm_jax.convert.rules import LINEAR, Rule, each
from alm_jax.convert.sizes import json_beside, shape_of
from alm_jax.core.errors import CheckpointError
from alm_jax.core.tree import Arrays
from alm_jax.models.decoders.llama import Lora

# The layers of a LLaMA block: ours, theirs.
MODULES = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
# Settings under which an adapter computes something else than y = Wx + alpha/rank * B(A(x)) in every layer.
_UNSUPPORTED = (
    "alpha_pattern",
    "exclude_modules",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
)


def lora_rules(path: str, pattern: str, layers: range) -> tuple[Rule, Rule]:
    """Rules of the adapter of one stacked layer, e.g. `blocks.attn.q`, `model.layers.{i}.self_attn.q_proj`."""
    return (
        Rule(f"{path}.lora_a", each(f"{pattern}.lora_A.weight", layers), LINEAR),
        Rule(f"{path}.lora_b", each(f"{pattern}.lora_B.weight", layers), LINEAR),
    )


def from_adapter_config(config: Mapping[str, Any], modules: Mapping[str, str] = MODULES) -> Lora:
    """The adapter that an `adapter_config.json` describes, over blocks with these layers.

    Raises:
        CheckpointError: it is no LoRA, or has settings or target modules that have no counterpart; all are listed.
    """
    targets = config.get("target_modules") or []
    targets = {targets} if isinstance(targets, str) else set(targets)
    known = {path: theirs.rpartition(".")[2] for path, theirs in modules.items()}
    kind, bias = config.get("peft_type", "LORA"), config.get("bias", "none")
    problems = [f"{name}={config[name]!r}" for name in _UNSUPPORTED if config.get(name)]
    unknown = sorted(targets - set(known.values()) - set(modules.values()))
    problems += [f"target module {name!r} (known: {', '.join(dict.fromkeys(known.values()))})" for name in unknown]
    problems += [f"peft_type={kind!r}"] if kind != "LORA" else []
    problems += [f"bias={bias!r}"] if bias != "none" else []
    problems += [f"{name} is missing" for name in ("r", "lora_alpha") if name not in config]
    if problems or not targets:
        raise CheckpointError(f"adapter_config.json: not supported: {'; '.join(problems) or 'no target_modules'}")
    return Lora(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout", 0.0)),
        targets=tuple(path for path, name in known.items() if name in targets or modules[path] in targets),
    )


def adapter_of(file: TensorFile, modules: Mapping[str, str] = MODULES) -> Lora | None:
    """The adapter that `adapter_config.json` beside a file describes; None if there is none."""
    config = json_beside(file, "adapter_config.json")
    return None if config is None else from_adapter_config(config, modules)


def lora_of(file: TensorFile, modules: Mapping[str, str] = MODULES, usual: Lora = Lora()) -> Lora | None:
    """The adapter whose tensors a file holds: by `adapter_config.json`, or by their ranks and places and `usual`."""
    keys, rank = list(file.keys()), shape_of(file, r"\.lora_A\.(?:\w+\.)?weight$", 2)
    targets = tuple(ours for ours, theirs in modules.items() if any(f".{theirs}.lora_A." in key for key in keys))
    if not targets or rank is None:
        return None
    return adapter_of(file, modules) or replace(usual, rank=rank[0], targets=targets)


def to_adapter_config(
    lora: Lora, base_model: str | None = None, modules: Mapping[str, str] = MODULES
) -> dict[str, Any]:
    """The content of `adapter_config.json` for an adapter over the checkpoint `base_model`."""
    short = lambda path: modules[path].rpartition(".")[2]
    others = {short(path) for path in modules if not lora.at(path)}  # GPT-2 has two layers named `c_proj`
    names = {modules[path] if short(path) in others else short(path) for path in modules if lora.at(path)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(names),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


@dataclass(frozen=True)
class Folded:
    """A kernel with an adapter added to it, computed in float32 a layer at a time: kernel + scale * a @ b.

    Attributes:
        kernel: [..., in, out]. a: [..., in, rank]. b: [..., rank, out]; arrays, or `convert.stream.Stored`.
        dtype: of the result.
    """

    kernel: Any
    a: Any
    b: Any
    scale: float
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return tuple(self.kernel.shape)

    def __getitem__(self, layer: int) -> np.ndarray:
        return self._fold(self.kernel[layer], self.a[layer], self.b[layer])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self._fold(self.kernel, self.a, self.b)
        return values if dtype is None else values.astype(dtype, copy=False)

    def _fold(self, *parts: Any) -> np.ndarray:
        kernel, a, b = (np.asarray(part).astype(np.float32) for part in parts)
        return (kernel + np.float32(self.scale) * (a @ b)).astype(self.dtype)


def is_adapter(path: str) -> bool:
    """Whether a parameter is one of an adapter."""
    return path.endswith((".lora_a", ".lora_b"))


def merge(arrays: Mapping[str, Any], lora: Lora, dtype: Any = None) -> Arrays:
    """Parameters without adapters, these added to the kernels that they stand beside.

    Args:
        arrays: `{path: array}` with `*.kernel`, `*.lora_a` and `*.lora_b`. lora: the adapters' rank and alpha.
        dtype: of the kernels that change; None keeps theirs. In float32 nothing is lost but the last bit of the sum.

    Raises:
        CheckpointError: an adapter stands beside no kernel, or lacks a half; all of them are listed.
    """
    return _folded(arrays, {path: leaf for path, leaf in arrays.items() if is_adapter(path)}, lora, 1, dtype)


def unmerge(arrays: Mapping[str, Any], adapter: Mapping[str, Any], lora: Lora, dtype: Any = None) -> Arrays:
    """The parameters that `merge` with these adapters made `arrays` of, to the last bits of a float32 sum.

    Args:
        adapter: `{path: array}` of `*.lora_a` and `*.lora_b`. The others are as for `merge`.
    """
    return _folded(arrays, adapter, lora, -1, dtype)


def _folded(arrays: Mapping[str, Any], adapter: Mapping[str, Any], lora: Lora, sign: int, dtype: Any) -> Arrays:
    layers = dict.fromkeys(path.rpartition(".")[0] for path in adapter)
    wanted = {f"{layer}.{name}": held for layer in layers
              for name, held in (("kernel", arrays), ("lora_a", adapter), ("lora_b", adapter))}  # fmt: skip
    if absent := [path for path, held in wanted.items() if path not in held]:
        raise CheckpointError(f"adapters cannot be added to the base: {', '.join(fold(absent))} missing")
    ranks = {f"{layer}.lora_a": adapter[f"{layer}.lora_a"].shape[-1] for layer in layers}
    if odd := [path for path, rank in ranks.items() if rank != lora.rank]:
        raise CheckpointError(
            f"adapters cannot be scaled: rank {lora.rank} is told, but it is {ranks[odd[0]]} in {', '.join(fold(odd))}"
        )
    result = {path: leaf for path, leaf in arrays.items() if not is_adapter(path)}
    scale = sign * lora.alpha / lora.rank
    for layer in layers:
        kernel, a, b = arrays[f"{layer}.kernel"], adapter[f"{layer}.lora_a"], adapter[f"{layer}.lora_b"]
        result[f"{layer}.kernel"] = Folded(kernel, a, b, scale, np.dtype(dtype or kernel.dtype))
    return result
