"""Q-Formers: APT's, named as BLIP-2's (official `Qformer.py`, `lam_qformer.py`, `lam_vicuna_instruct.py`), and those of
BLIP-2 and InstructBLIP in `transformers` and in LAVIS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.load import Beginning
from alm_jax.convert.rules import LINEAR, SCALAR, TABLE, VECTOR, Rearrange, Rule, Table, each
from alm_jax.convert.sizes import count, from_settings, heads_of, number, settings_of, shape_of, to_settings
from alm_jax.models.aligners.qformer import PretrainingConfig, QFormerConfig

_HEAD_WIDTH = 64  # of every published BERT, where nothing tells it
_WORDS = "Qformer.cls.predictions."
_CROSS_KEY = r"crossattention\.(?:self|attention)\.key\.weight"

_SETTINGS = {
    "dim": "encoder_hidden_size",
    "hidden": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "cross_every": "cross_attention_frequency",
    "vocab_size": "vocab_size",
    "positions": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
}

# Of a block, but for attention: ours, theirs.
_TEXT_FEED_FORWARD = {
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_QUERY_FEED_FORWARD = {
    "query_mlp.up": "intermediate_query.dense",
    "query_mlp.down": "output_query.dense",
    "query_mlp_norm": "output_query.LayerNorm",
}
# Of the alignment stage, but for the words' head and the temperature.
_HEADS = {"audio_proj": "audio_proj", "text_proj": "text_proj", "match": "itm_head"}


def official(config: QFormerConfig, norm: str = "ln_audio") -> Table:
    """`query_tokens`, `ln_audio`, `Qformer.bert.*`, and what the config has of `llm_proj` and the alignment stage.

    `norm` is what the norm of the features is called: `ln_vision` in LAVIS's BLIP-2 and InstructBLIP.
    """
    table = Table(
        rules=(
            *_transformer(config, "Qformer.bert.", attention="self", norm="embeddings.LayerNorm"),
            *_pair("audio_norm", norm),
            *(() if config.out_dim is None else _pair("proj", "llm_proj")),
        ),
        dead=("Qformer.bert.embeddings.position_ids",),
    )
    return table + (_no_heads() if config.pretraining is None else _heads())


def from_bert(config: QFormerConfig) -> Beginning:
    """What a Q-Former begins with of a BERT of its sizes (LAVIS `init_Qformer`, official `lam_qformer.py`).

    Embeddings but for token types, self-attention, the text's feed-forwards and copies of them for the queries, and the
    words' head. Queries, cross-attention and the words that were added (`[DEC]`) begin at random.
    """
    layers, bert = range(config.depth), "bert.encoder.layer.{i}."
    attention = {f"attn.{name[0]}": f"attention.self.{name}" for name in ("query", "key", "value")}
    attention |= {"attn.o": "attention.output.dense", "attn_norm": "attention.output.LayerNorm"}
    rules = [
        Rule("embed.embedding", "bert.embeddings.word_embeddings.weight", TABLE),
        Rule("pos_embed", "bert.embeddings.position_embeddings.weight", TABLE),
        *_pair("norm", "bert.embeddings.LayerNorm"),
        *_stacked("blocks.", bert, attention | _TEXT_FEED_FORWARD, layers),
    ]
    unused = ("bert.embeddings.token_type_embeddings.*", "bert.embeddings.*_ids", "bert.pooler.*")
    lacks = ("queries", "audio_norm.*", "cross.*", "proj.*", "heads.*")
    if config.pretraining is None:
        unused += ("cls.*",)
    else:
        rules += [
            *_pair("heads.transform", "cls.predictions.transform.dense"),
            *_pair("heads.norm", "cls.predictions.transform.LayerNorm"),
            Rule("heads.word_bias", "cls.predictions.bias", VECTOR),
        ]
        unused += ("cls.seq_relationship.*", "cls.predictions.decoder.*")
    queries = {ours: _TEXT_FEED_FORWARD[ours.removeprefix("query_")] for ours in _QUERY_FEED_FORWARD}
    copies = Table(_stacked("blocks.", bert, queries, layers), ignored=("*",), bare=("bert.",))
    table = Table(tuple(rules), ignored=unused, bare=("bert.",))
    return Beginning((table, copies), lacks, ("embed.embedding", "heads.word_bias"))


def hf(config: QFormerConfig) -> Table:
    """The same part of `InstructBlipForConditionalGeneration` of `transformers`, whose features are an image's, and of
    `Blip2ForConditionalGeneration` if the Q-Former reads no text."""
    norm = "embeddings.layernorm" if config.reads_text else "layernorm"
    return Table(
        rules=(
            *_transformer(config, "qformer.", attention="attention", norm=norm),
            *_pair("audio_norm", "vision_model.post_layernorm"),
            *_pair("proj", "language_projection"),
        ),
        dead=("qformer.embeddings.position_ids",),  # a constant, written by old versions
    )


def _transformer(config: QFormerConfig, prefix: str, *, attention: str, norm: str) -> tuple[Rule, ...]:
    """Query tokens, embeddings and blocks; `attention` and `norm` are names that differ between implementations."""
    layer = prefix + "encoder.layer.{i}."

    def reads(path: str, key: str) -> dict[str, str]:
        inner = {f"{path}.{name[0]}": f"{key}.{attention}.{name}" for name in ("query", "key", "value")}
        return inner | {f"{path}.o": f"{key}.output.dense"}

    block = reads("attn", "attention") | {"attn_norm": "attention.output.LayerNorm"} | _QUERY_FEED_FORWARD
    cross = reads("attn", "crossattention") | {"norm": "crossattention.output.LayerNorm"}
    text: tuple[Rule, ...] = ()
    if config.reads_text:
        block |= _TEXT_FEED_FORWARD
        text = (
            Rule("embed.embedding", prefix + "embeddings.word_embeddings.weight", TABLE),
            Rule("pos_embed", prefix + "embeddings.position_embeddings.weight", TABLE),
        )
    return (
        Rule("queries", "query_tokens", Rearrange("1 n d -> n d")),
        *text,
        *_pair("norm", prefix + norm),
        *_stacked("blocks.", layer, block, range(config.depth)),
        *_stacked("cross.", layer, cross, range(0, config.depth, config.cross_every)),
    )


def _heads() -> Table:
    embedding = "Qformer.bert.embeddings.word_embeddings.weight"
    return Table(
        rules=(
            *(rule for ours, theirs in _HEADS.items() for rule in _pair(f"heads.{ours}", theirs)),
            *_pair("heads.transform", _WORDS + "transform.dense"),
            *_pair("heads.norm", _WORDS + "transform.LayerNorm"),
            Rule("heads.word_bias", _WORDS + "bias", VECTOR),
            Rule("heads.temperature", "temp", SCALAR),
        ),
        tied=((_WORDS + "decoder.weight", embedding), (_WORDS + "decoder.bias", _WORDS + "bias")),
    )


def _no_heads() -> Table:
    return Table(ignored=("Qformer.cls.*", "temp", *(f"{theirs}.*" for theirs in _HEADS.values())))


def _pair(path: str, key: str) -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer or a norm."""
    return _weight(path, f"{key}.weight"), Rule(f"{path}.bias", f"{key}.bias", VECTOR)


def _stacked(path: str, pattern: str, names: dict[str, str], layers: range) -> tuple[Rule, ...]:
    rules = []
    for ours, theirs in names.items():
        rules.append(_weight(path + ours, each(f"{pattern}{theirs}.weight", layers)))
        rules.append(Rule(f"{path}{ours}.bias", each(f"{pattern}{theirs}.bias", layers), VECTOR))
    return tuple(rules)


def _weight(path: str, keys: str | tuple[str, ...]) -> Rule:
    return Rule(f"{path}.scale", keys, VECTOR) if path.endswith("norm") else Rule(f"{path}.kernel", keys, LINEAR)


def from_hf_config(settings: Mapping[str, Any], **others: Any) -> QFormerConfig:
    """The Q-Former that `qformer_config` of `transformers` describes (`InstructBlipQFormerConfig`,
    `Blip2QFormerConfig`); `others` are fields that it does not hold.

    Raises:
        CheckpointError: settings are missing or have no counterpart; all are listed.
    """
    told = from_settings(settings, _SETTINGS, {"hidden_act": "gelu"})
    reads_text = settings.get("model_type") == "instructblip_qformer" or settings.get("use_qformer_text_input", False)
    return QFormerConfig(**told, reads_text=reads_text, **others)


def to_hf_config(config: QFormerConfig) -> dict[str, Any]:
    """The content of `qformer_config` (`InstructBlipQFormerConfig`, or `Blip2QFormerConfig` if it reads no text)."""
    kind = "instructblip_qformer" if config.reads_text else "blip_2_qformer"
    return {"model_type": kind, "hidden_act": "gelu"} | to_settings(config, _SETTINGS)


def sizes(file: TensorFile) -> QFormerConfig:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide."""
    keys, default = list(file.keys()), QFormerConfig()
    queries = shape_of(file, r"query_tokens$", 3) or (1, default.queries, default.hidden)
    words = shape_of(file, r"word_embeddings\.weight$", 2)
    positions = shape_of(file, r"position_embeddings\.weight$", 2)
    features = shape_of(file, rf"{_CROSS_KEY}$", 2)
    hidden = shape_of(file, r"intermediate_query\.dense\.weight$", 2)
    out = shape_of(file, r"(?:llm_proj|language_projection)\.weight$", 2)
    compared = shape_of(file, r"(?:^|\.)text_proj\.weight$", 2)
    depth = count(keys, r"[Qq]former\.(?:bert\.)?encoder\.layer\.(\d+)\.") or default.depth
    last = count(keys, r"layer\.(\d+)\.crossattention\.") - 1
    groups = sum(bool(re.search(rf"{_CROSS_KEY}$", key)) for key in keys)
    return QFormerConfig(
        dim=features[1] if features else default.dim,
        out_dim=out[0] if out else None,
        queries=queries[1],
        hidden=queries[2],
        depth=depth,
        heads=number(file, settings_of(file), "qformer_num_heads", int, heads_of(queries[2], _HEAD_WIDTH)),
        mlp_dim=hidden[0] if hidden else default.mlp_dim,
        cross_every=last // (groups - 1) if groups > 1 else depth,
        reads_text=words is not None,
        vocab_size=words[0] if words else default.vocab_size,
        positions=positions[0] if positions else default.positions,
        pretraining=PretrainingConfig(compared[0]) if compared else None,
    )
