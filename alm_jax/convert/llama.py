"""LLaMA checkpoints: `transformers` `LlamaForCausalLM`, with or without LoRA, and llama.cpp's GGUF."""

from __future__ import annotations

import re
from dataclasses import replace

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.peft import MODULES, adapter_of, lora_rules
from alm_jax.convert.rules import LINEAR, TABLE, VECTOR, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, heads_of, number, settings_of, shape_of
from alm_jax.models.decoders.llama import LlamaConfig, Lora
from alm_jax.models.ltu import LORA

_HEAD_WIDTH = 128  # of LLaMA 7B to 65B, where nothing tells it

_GGUF_MODULES = {
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def hf(config: LlamaConfig) -> Table:
    """`model.layers.{i}.self_attn.q_proj.weight`, ...; LoRA keys under any of the seven linear layers of a block."""
    layers, prefix = range(config.depth), "model.layers.{i}."
    rules = [
        Rule("embed.embedding", "model.embed_tokens.weight", TABLE),
        Rule("norm.scale", "model.norm.weight", VECTOR),
        Rule("blocks.attn_norm.scale", each(prefix + "input_layernorm.weight", layers), VECTOR),
        Rule("blocks.mlp_norm.scale", each(prefix + "post_attention_layernorm.weight", layers), VECTOR),
    ]
    for ours, theirs in MODULES.items():
        rules.append(Rule(f"blocks.{ours}.kernel", each(f"{prefix}{theirs}.weight", layers), LINEAR))
        rules += lora_rules(f"blocks.{ours}", prefix + theirs, layers)
    return Table(
        rules=(*rules, *_head(config, "lm_head.weight")),
        dead=each(
            prefix + "self_attn.rotary_emb.inv_freq", layers
        ),  # a function of rope_theta, written by old versions
        tied=(("lm_head.weight", "model.embed_tokens.weight"),) if config.tie_embeddings else (),
        bare=("model.",),
    )


def gguf(config: LlamaConfig) -> Table:
    """`blk.{i}.attn_q.weight`, ...

    llama.cpp rotates neighbouring coordinates (2i, 2i + 1) of a head where the original weights rotate
    (i, i + width / 2), and stores query and key rows of each head in the order that makes both equal (`permute` in
    convert_hf_to_gguf.py).
    """
    layers, prefix = range(config.depth), "blk.{i}."
    rules = [
        Rule("embed.embedding", "token_embd.weight", TABLE),
        Rule("norm.scale", "output_norm.weight", VECTOR),
        Rule("blocks.attn_norm.scale", each(prefix + "attn_norm.weight", layers), VECTOR),
        Rule("blocks.mlp_norm.scale", each(prefix + "ffn_norm.weight", layers), VECTOR),
    ]
    for name, heads in (("q", config.heads), ("k", config.kv_heads)):
        permuted = Rearrange("(h pair half) i -> i (h half pair)", h=heads, half=2)
        rules.append(Rule(f"blocks.attn.{name}.kernel", each(f"{prefix}attn_{name}.weight", layers), permuted))
    for ours, theirs in _GGUF_MODULES.items():
        rules.append(Rule(f"blocks.{ours}.kernel", each(f"{prefix}{theirs}.weight", layers), LINEAR))
    return Table(
        rules=(*rules, *_head(config, "output.weight")),
        dead=("rope_freqs.weight",),
        tied=(("output.weight", "token_embd.weight"),) if config.tie_embeddings else (),
    )


def _head(config: LlamaConfig, key: str) -> tuple[Rule, ...]:
    return () if config.tie_embeddings else (Rule("head.kernel", key, LINEAR),)


def sizes(file: TensorFile) -> LlamaConfig:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide `dim`."""
    keys, told, default = list(file.keys()), settings_of(file), LlamaConfig()
    embed = shape_of(file, r"(?:embed_tokens|^token_embd)\.weight$", 2)
    gate = shape_of(file, r"(?:layers\.0\.mlp\.gate_proj|^blk\.0\.ffn_gate)\.(?:base_layer\.)?weight$", 2)
    key = shape_of(file, r"(?:layers\.0\.self_attn\.k_proj|^blk\.0\.attn_k)\.(?:base_layer\.)?weight$", 2)
    adapter = shape_of(file, r"self_attn\.[qkv]_proj\.lora_A\.(?:\w+\.)?weight$", 2)
    dim = embed[1] if embed else adapter[1] if adapter else default.dim
    heads = number(file, told, "num_attention_heads", int, heads_of(dim, _HEAD_WIDTH))
    grouped = key[0] * heads // dim if key else heads
    rope = told.get("rope_parameters") if isinstance(told.get("rope_parameters"), dict) else {}
    return LlamaConfig(
        vocab_size=embed[0] if embed else default.vocab_size,
        dim=dim,
        depth=count(keys, r"(?<!encoder\.)(?:layers|blk)\.(\d+)\.") or default.depth,
        heads=heads,
        kv_heads=number(file, told, "num_key_value_heads", int, grouped),
        mlp_dim=gate[0] if gate else default.mlp_dim,
        rope_theta=number(file, rope | told, "rope_theta", float, default.rope_theta),
        norm_eps=number(file, told, "rms_norm_eps", float, default.norm_eps),
        tie_embeddings=embed is not None and not any(re.search(r"(lm_head|^output)\.weight$", key) for key in keys),
        lora=_lora(file, keys),
    )


def _lora(file: TensorFile, keys: list[str]) -> Lora | None:
    """Rank and places of the adapter by its tensors; alpha 16, as LTU and LTU-AS were published, unless it is told."""
    found = {match[1] for key in keys if (match := re.search(r"\.((?:self_attn|mlp)\.\w+_proj)\.lora_A\.", key))}
    rank = shape_of(file, r"\.lora_A\.(?:\w+\.)?weight$", 2)
    if not found or rank is None:
        return None
    targets = tuple(ours for ours, theirs in MODULES.items() if theirs in found)
    return adapter_of(file) or replace(LORA, rank=rank[0], targets=targets)
