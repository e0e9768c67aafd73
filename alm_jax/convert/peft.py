"""LoRA adapters in PEFT's names, and `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, Rule, each
from alm_jax.convert.sizes import json_beside
from alm_jax.core.errors import CheckpointError
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


def from_adapter_config(config: Mapping[str, Any]) -> Lora:
    """The adapter that an `adapter_config.json` describes.

    Raises:
        CheckpointError: it is no LoRA, or has settings or target modules that have no counterpart; all are listed.
    """
    targets = config.get("target_modules") or []
    targets = {targets} if isinstance(targets, str) else set(targets)
    ours = {theirs.rpartition(".")[2]: path for path, theirs in MODULES.items()}
    kind, bias = config.get("peft_type", "LORA"), config.get("bias", "none")
    problems = [f"{name}={config[name]!r}" for name in _UNSUPPORTED if config.get(name)]
    problems += [f"target module {name!r} (known: {', '.join(ours)})" for name in sorted(targets - set(ours))]
    problems += [f"peft_type={kind!r}"] if kind != "LORA" else []
    problems += [f"bias={bias!r}"] if bias != "none" else []
    problems += [f"{name} is missing" for name in ("r", "lora_alpha") if name not in config]
    if problems or not targets:
        raise CheckpointError(f"adapter_config.json: not supported: {'; '.join(problems) or 'no target_modules'}")
    return Lora(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout", 0.0)),
        targets=tuple(path for name, path in ours.items() if name in targets),
    )


def adapter_of(file: TensorFile) -> Lora | None:
    """The adapter that `adapter_config.json` beside a file describes; None if there is none."""
    config = json_beside(file, "adapter_config.json")
    return None if config is None else from_adapter_config(config)


def to_adapter_config(lora: Lora, base_model: str | None = None) -> dict[str, Any]:
    """The content of `adapter_config.json` for an adapter over the checkpoint `base_model`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(theirs.rpartition(".")[2] for path, theirs in MODULES.items() if lora.at(path)),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
