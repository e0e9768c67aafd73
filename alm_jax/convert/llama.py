"""LLaMA checkpoints: `transformers` `LlamaForCausalLM`, with or without LoRA, and llama.cpp's GGUF."""

from __future__ import annotations

from alm_jax.convert.peft import MODULES, lora_rules
from alm_jax.convert.rules import LINEAR, TABLE, VECTOR, Rearrange, Rule, Table, each
from alm_jax.models.decoders.llama import LlamaConfig

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
