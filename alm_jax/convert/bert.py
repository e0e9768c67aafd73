"""BERT and RoBERTa checkpoints: `transformers` `BertModel` and `RobertaModel`, and models with heads over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import LINEAR, TABLE, VECTOR, Rule, Table, each
from alm_jax.convert.sizes import (
    ACTIVATIONS,
    activation_of,
    count,
    from_settings,
    heads_of,
    settings_of,
    shape_of,
    to_settings,
    told_by,
)
from alm_jax.models.text.bert import BertConfig

_SETTINGS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
}
_FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
_ROBERTA_OFFSET = 2  # ids of padding and so positions begin after 1
# Layers of a block: ours, theirs.
_BLOCK = {
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_HEADS = ("cls.*", "lm_head.*", "classifier.*", "qa_outputs.*")  # of models for a task


def hf(config: BertConfig) -> Table:
    """`bert.encoder.layer.{i}.attention.self.query.weight`, ..., or `roberta.`; an encoder alone lacks these."""
    base = "roberta." if config.position_offset else "bert."
    return model(config).under(theirs=base) + Table(ignored=_HEADS, bare=(base,))


def classifier(config: BertConfig) -> Table:
    """`encoder.encoder.layer.{i}...`, `clf.weight`: FENSE's `BERTFlatClassifier`."""
    return model(config).under("bert.", "encoder.") + Table(_layer("head", "clf"))


def model(config: BertConfig) -> Table:
    """`encoder.layer.{i}.attention.self.query.weight`, ...: the names inside `BertModel`."""
    embeddings = "embeddings."
    rules = [
        Rule("embed.words.embedding", embeddings + "word_embeddings.weight", TABLE),
        Rule("embed.positions", embeddings + "position_embeddings.weight", TABLE),
        Rule("embed.token_types", embeddings + "token_type_embeddings.weight", TABLE),
        *_layer("embed.norm", embeddings + "LayerNorm"),
    ]
    for ours, theirs in _BLOCK.items():
        rules += _layer(f"blocks.{ours}", each(f"encoder.layer.{{i}}.{theirs}", range(config.depth)))
    dead = (embeddings + "position_ids", embeddings + "token_type_ids")  # constants, written by some versions
    if config.pooler:
        return Table((*rules, *_layer("pooler", "pooler.dense")), dead=dead)
    return Table(tuple(rules), dead=dead, ignored=("pooler.*",))


def _layer(path: str, keys: str | tuple[str, ...]) -> tuple[Rule, Rule]:
    """Rules of a norm or of a linear layer, by its name."""
    name, arrange = ("scale", VECTOR) if path.endswith("norm") else ("kernel", LINEAR)
    ending = lambda leaf: keys + leaf if isinstance(keys, str) else tuple(key + leaf for key in keys)
    return Rule(f"{path}.{name}", ending(".weight"), arrange), Rule(f"{path}.bias", ending(".bias"), VECTOR)


def from_hf_config(settings: Mapping[str, Any]) -> BertConfig:
    """The encoder that a `config.json` of `transformers` describes (`BertConfig`, `RobertaConfig`).

    Raises:
        CheckpointError: settings are missing or have no counterpart; all are listed.
    """
    told = {name: value for name, value in settings.items() if value is not None}
    kind = told.get("model_type", "bert")
    activation, problems = activation_of(told, "hidden_act", "gelu")
    if kind not in ("bert", "roberta"):
        problems.append(f"model_type is {kind!r}; expected bert or roberta")
    usual = {"type_vocab_size": 2, "layer_norm_eps": 1e-12}
    return BertConfig(
        **from_settings(usual | told, _SETTINGS, _FIXED, problems),
        position_offset=told.get("pad_token_id", _ROBERTA_OFFSET - 1) + 1 if kind == "roberta" else 0,
        activation=activation,
    )


def to_hf_config(config: BertConfig) -> dict[str, Any]:
    """The content of `config.json`."""
    offset = config.position_offset
    return {
        "architectures": ["RobertaModel" if offset else "BertModel"],
        "model_type": "roberta" if offset else "bert",
        **to_settings(config, _SETTINGS),
        "hidden_act": ACTIVATIONS[config.activation][0],
        "pad_token_id": max(0, offset - 1),
    }


def sizes(file: TensorFile) -> BertConfig:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide `dim`.

    Raises:
        CheckpointError: `config.json` beside it tells what has no counterpart.
    """
    keys, usual = list(file.keys()), to_settings(BertConfig(), _SETTINGS)
    words, places, types = (
        shape_of(file, rf"{name}_embeddings\.weight$", 2) for name in ("word", "position", "token_type")
    )
    up = shape_of(file, r"layer\.0\.intermediate\.dense\.weight$", 2)
    dim = words[1] if words else usual["hidden_size"]
    found = {
        "vocab_size": words[0] if words else usual["vocab_size"],
        "hidden_size": dim,
        "num_hidden_layers": count(keys, r"encoder\.layer\.(\d+)\.") or usual["num_hidden_layers"],
        "intermediate_size": up[0] if up else 4 * dim,
        "max_position_embeddings": places[0] if places else usual["max_position_embeddings"],
        "type_vocab_size": types[0] if types else usual["type_vocab_size"],
    }
    told = settings_of(file)
    if not told and types and types[0] == 1:  # RoBERTa has one type
        told = {"model_type": "roberta", "layer_norm_eps": 1e-5}
    guess = heads_of(dim, 32 if dim == 384 else 64)  # MiniLM's; Google's and Facebook's
    config = told_by(file, from_hf_config, {"num_attention_heads": guess or 1} | told | found)
    heads = config.heads if told.get("num_attention_heads") or guess else 0
    return replace(config, heads=heads, pooler=any("pooler.dense." in key for key in keys))
