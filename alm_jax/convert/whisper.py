"""Whisper in the layouts of `transformers`, OpenAI and CTranslate2: the audio encoder alone, or the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import CONV1D, LINEAR, TABLE, VECTOR, Part, Rule, Table, each
from alm_jax.convert.sizes import count, from_settings, heads_of, number, settings_of, shape_of, to_settings
from alm_jax.models.decoders.whisper import WhisperDecoderConfig, WhisperSeq2SeqConfig
from alm_jax.models.encoders.whisper import WhisperConfig

_HEAD_WIDTH = 64  # of every Whisper, where nothing tells it
_SETTINGS = {
    "mels": "num_mel_bins",
    "dim": "d_model",
    "heads": "encoder_attention_heads",
    "depth": "encoder_layers",
    "positions": "max_source_positions",
}
_DECODER_SETTINGS = {
    "vocab_size": "vocab_size",
    "dim": "d_model",
    "heads": "decoder_attention_heads",
    "depth": "decoder_layers",
    "positions": "max_target_positions",
}
_ATTENTION = {
    "openai": {"q": "query", "k": "key", "v": "value", "o": "out"},
    "hf": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"},
}


def _attention(ours: str, theirs: str, style: str) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}.{key}" for name, key in _ATTENTION[style].items()}


# Layers of a block: ours, theirs.
_OPENAI = {
    "norm1": "attn_ln",
    "norm2": "mlp_ln",
    "mlp.up": "mlp.0",
    "mlp.down": "mlp.2",
} | _attention("attn", "attn", "openai")
_HF = {
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
} | _attention("attn", "self_attn", "hf")
_OPENAI_DECODER = (
    {
        "attn_norm": "attn_ln",
        "cross_norm": "cross_attn_ln",
        "mlp_norm": "mlp_ln",
        "mlp.up": "mlp.0",
        "mlp.down": "mlp.2",
    }
    | _attention("attn", "attn", "openai")
    | _attention("cross", "cross_attn", "openai")
)
_HF_DECODER = (
    {
        "attn_norm": "self_attn_layer_norm",
        "cross_norm": "encoder_attn_layer_norm",
        "mlp_norm": "final_layer_norm",
        "mlp.up": "fc1",
        "mlp.down": "fc2",
    }
    | _attention("attn", "self_attn", "hf")
    | _attention("cross", "encoder_attn", "hf")
)


def hf(config: WhisperConfig) -> Table:
    """`model.encoder.layers.{i}.self_attn.q_proj.weight`, ... (`WhisperForConditionalGeneration` and its parts)."""
    decoder = Table(ignored=("model.decoder.*", "proj_out.*"), bare=("model.", "model.encoder."))
    return _hf_encoder(config) + decoder


def hf_seq2seq(config: WhisperSeq2SeqConfig) -> Table:
    """The same with `model.decoder.layers.{i}.encoder_attn.q_proj.weight`, ...; the head is the embedding."""
    block = _block("blocks.", "layers.{i}.", _HF_DECODER, range(config.decoder.depth))
    decoder = Table((*_text("embed_tokens.weight", "embed_positions.weight", "layer_norm"), *block))
    tied = (("proj_out.weight", "model.decoder.embed_tokens.weight"),)
    whole = _hf_encoder(config.encoder).under("encoder.") + decoder.under("decoder.", "model.decoder.")
    return whole + Table(tied=tied, bare=("model.",))


def _hf_encoder(config: WhisperConfig) -> Table:
    block = _block("blocks.", "layers.{i}.", _HF, range(config.depth))
    return Table((*_stem("embed_positions.weight", "layer_norm"), *block)).under(theirs="model.encoder.")


def openai(config: WhisperConfig) -> Table:
    """`encoder.blocks.{i}.attn.query.weight`, ... (the `model_state_dict` of a `.pt` file)."""
    return _openai_encoder(config) + Table(ignored=("decoder.*",), bare=("encoder.",))


def openai_seq2seq(config: WhisperSeq2SeqConfig) -> Table:
    """The same with `decoder.blocks.{i}.cross_attn.query.weight`, ..."""
    block = _block("blocks.", "blocks.{i}.", _OPENAI_DECODER, range(config.decoder.depth))
    decoder = Table((*_text("token_embedding.weight", "positional_embedding", "ln"), *block))
    return _openai_encoder(config.encoder).under("encoder.") + decoder.under("decoder.", "decoder.")


def _openai_encoder(config: WhisperConfig) -> Table:
    block = _block("blocks.", "blocks.{i}.", _OPENAI, range(config.depth))
    return Table((*_stem("positional_embedding", "ln_post"), *block)).under(theirs="encoder.")


def ctranslate2(config: WhisperConfig) -> Table:
    """`encoder/layer_{i}/self_attention/linear_0/weight`, ...: query, key and value in one matrix."""
    return _ct2_encoder(config) + Table(ignored=("decoder/*",))


def ctranslate2_seq2seq(config: WhisperSeq2SeqConfig) -> Table:
    """The same with `decoder/layer_{i}/attention/linear_1/weight`, ...: key and value over the audio in one matrix."""
    layers = range(config.decoder.depth)

    def keys(name: str) -> tuple[str, ...]:
        return each("layer_{i}/" + name, layers)

    rules = [
        Rule("embedding.embedding", "embeddings/weight", TABLE),
        Rule("pos_embed", "position_encodings/encodings", TABLE),
        *_ct2_norm("norm", "layer_norm"),
        *(rule for norm, theirs in (("attn_norm", "self_attention"), ("cross_norm", "attention"), ("mlp_norm", "ffn"))
          for rule in _ct2_norm(f"blocks.{norm}", keys(f"{theirs}/layer_norm"))),
        *_ct2_dense("blocks.attn", "qkv", keys("self_attention/linear_0")),
        *_ct2_dense("blocks.attn", "o", keys("self_attention/linear_1")),
        *_ct2_dense("blocks.cross", "q", keys("attention/linear_0")),
        *_ct2_dense("blocks.cross", "kv", keys("attention/linear_1")),
        *_ct2_dense("blocks.cross", "o", keys("attention/linear_2")),
        *_ct2_dense("blocks.mlp", ("up",), keys("ffn/linear_0")),
        *_ct2_dense("blocks.mlp", ("down",), keys("ffn/linear_1")),
    ]  # fmt: skip
    tied = (("projection/weight", "embeddings/weight"),)
    decoder = Table(tuple(rules), tied=tied).under("decoder.", "decoder/")
    return _ct2_encoder(config.encoder).under("encoder.") + decoder


def _ct2_encoder(config: WhisperConfig) -> Table:
    layers = range(config.depth)

    def keys(name: str) -> tuple[str, ...]:
        return each("layer_{i}/" + name, layers)

    rules = [
        *(Rule(f"{conv}.kernel", f"{conv}/weight", CONV1D) for conv in ("conv1", "conv2")),
        *(Rule(f"{conv}.bias", f"{conv}/bias", VECTOR) for conv in ("conv1", "conv2")),
        Rule("pos_embed", "position_encodings/encodings", TABLE),
        *_ct2_norm("norm", "layer_norm"),
        *_ct2_norm("blocks.norm1", keys("self_attention/layer_norm")),
        *_ct2_norm("blocks.norm2", keys("ffn/layer_norm")),
        *_ct2_dense("blocks.attn", "qkv", keys("self_attention/linear_0")),
        *_ct2_dense("blocks.attn", "o", keys("self_attention/linear_1")),
        *_ct2_dense("blocks.mlp", ("up",), keys("ffn/linear_0")),
        *_ct2_dense("blocks.mlp", ("down",), keys("ffn/linear_1")),
    ]
    return Table(tuple(rules)).under(theirs="encoder/")


def _ct2_norm(path: str, keys: str | tuple[str, ...]) -> tuple[Rule, Rule]:
    return (
        Rule(f"{path}.scale", _ending(keys, "/gamma"), VECTOR),
        Rule(f"{path}.bias", _ending(keys, "/beta"), VECTOR),
    )


def _ct2_dense(path: str, names: Sequence[str], keys: tuple[str, ...]) -> Iterator[Rule]:
    """Rules of the layers `names` (ours) that one matrix holds; a key projection has no bias, its part is zero."""
    for index, name in enumerate(names):
        part = Part(index, len(names)) if len(names) > 1 else None
        yield Rule(f"{path}.{name}.kernel", _ending(keys, "/weight"), LINEAR, part)
        yield Rule(None if name == "k" else f"{path}.{name}.bias", _ending(keys, "/bias"), VECTOR, part)


def _ending(keys: str | tuple[str, ...], name: str) -> str | tuple[str, ...]:
    return keys + name if isinstance(keys, str) else tuple(key + name for key in keys)


def openai_block(path: str, key: str) -> tuple[Rule, ...]:
    """Rules of one Whisper block that is not stacked, in OpenAI's names."""
    return _block(path, key, _OPENAI, None)


def _stem(positions: str, norm: str) -> tuple[Rule, ...]:
    return (
        *(Rule(f"{conv}.kernel", f"{conv}.weight", CONV1D) for conv in ("conv1", "conv2")),
        *(Rule(f"{conv}.bias", f"{conv}.bias", VECTOR) for conv in ("conv1", "conv2")),
        Rule("pos_embed", positions, TABLE),
        Rule("norm.scale", f"{norm}.weight", VECTOR),
        Rule("norm.bias", f"{norm}.bias", VECTOR),
    )


def _text(tokens: str, positions: str, norm: str) -> tuple[Rule, ...]:
    return (
        Rule("embedding.embedding", tokens, TABLE),
        Rule("pos_embed", positions, TABLE),
        Rule("norm.scale", f"{norm}.weight", VECTOR),
        Rule("norm.bias", f"{norm}.bias", VECTOR),
    )


def _block(path: str, pattern: str, names: dict[str, str], layers: range | None) -> tuple[Rule, ...]:
    def keys(name: str) -> str | tuple[str, ...]:
        return pattern + name if layers is None else each(pattern + name, layers)

    rules = []
    for ours, theirs in names.items():
        weight = ("scale", VECTOR) if "norm" in ours else ("kernel", LINEAR)
        rules.append(Rule(f"{path}{ours}.{weight[0]}", keys(f"{theirs}.weight"), weight[1]))
        if not ours.endswith(".k"):  # the key projection has no bias
            rules.append(Rule(f"{path}{ours}.bias", keys(f"{theirs}.bias"), VECTOR))
    return tuple(rules)


def sizes(file: TensorFile) -> WhisperConfig:
    """Sizes read off a file; `heads` is 0 where nothing tells them and heads of the usual width do not divide `dim`."""
    keys, default = list(file.keys()), WhisperConfig()
    conv = shape_of(file, r"conv1[./]weight$", 3) or (default.dim, default.mels, 3)
    names = r"embed_positions\.weight|positional_embedding|position_encodings/encodings"
    places = shape_of(file, rf"(?<!decoder[./])(?:{names})$", 2)
    return WhisperConfig(
        mels=conv[1],
        dim=conv[0],
        heads=_heads(file, "encoder", conv[0]),
        depth=count(keys, r"(?:^|encoder[./])(?:layers\.|blocks\.|layer_)(\d+)[./]"),
        positions=places[0] if places else default.positions,
    )


def seq2seq_sizes(file: TensorFile) -> WhisperSeq2SeqConfig:
    """The same of both parts."""
    encoder, default = sizes(file), WhisperDecoderConfig()
    table = shape_of(file, r"decoder[./](?:embed_tokens\.|token_embedding\.|embeddings/)weight$", 2)
    names = r"embed_positions\.weight|positional_embedding|position_encodings/encodings"
    places = shape_of(file, rf"decoder[./](?:{names})$", 2)
    decoder = WhisperDecoderConfig(
        vocab_size=table[0] if table else default.vocab_size,
        dim=encoder.dim,
        heads=_heads(file, "decoder", encoder.dim),
        depth=count(list(file.keys()), r"decoder[./](?:layers\.|blocks\.|layer_)(\d+)[./]"),
        positions=places[0] if places else default.positions,
    )
    return WhisperSeq2SeqConfig(encoder, decoder)


def _heads(file: TensorFile, part: str, dim: int) -> int:
    """By `config.json`, by CTranslate2's own settings, or by the usual width."""
    told = file.metadata.get("attributes", {}).get(f"{part}/num_heads", heads_of(dim, _HEAD_WIDTH))
    return number(file, settings_of(file), f"{part}_attention_heads", int, told)


def from_hf_config(settings: Mapping[str, Any]) -> WhisperSeq2SeqConfig:
    """The model that a `config.json` of `transformers` describes (`WhisperConfig`); its encoder alone is `.encoder`.

    Raises:
        CheckpointError: settings are missing or have no counterpart; all are listed.
    """
    hidden = 4 * settings.get("d_model", 0)
    fixed = {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True}
    encoder = from_settings(settings, _SETTINGS, fixed | {"encoder_ffn_dim": hidden, "decoder_ffn_dim": hidden})
    decoder = from_settings(settings, _DECODER_SETTINGS)
    return WhisperSeq2SeqConfig(WhisperConfig(**encoder), WhisperDecoderConfig(**decoder))


def to_hf_config(config: WhisperConfig) -> dict[str, Any]:
    """The content of `config.json` for an encoder alone (`WhisperEncoder`)."""
    told = {"architectures": ["WhisperEncoder"], "model_type": "whisper", "encoder_ffn_dim": 4 * config.dim}
    return told | to_settings(config, _SETTINGS)


def seq2seq_to_hf_config(config: WhisperSeq2SeqConfig) -> dict[str, Any]:
    """The content of `config.json` for the whole model (`WhisperForConditionalGeneration`)."""
    told = {"architectures": ["WhisperForConditionalGeneration"], "decoder_ffn_dim": 4 * config.decoder.dim}
    return to_hf_config(config.encoder) | told | to_settings(config.decoder, _DECODER_SETTINGS)
