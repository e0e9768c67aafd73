"""Whisper's audio encoder: checkpoints of `transformers`, OpenAI and CTranslate2, whose text decoder is ignored."""

from __future__ import annotations

from alm_jax.convert.formats import TensorFile
from alm_jax.convert.rules import CONV1D, LINEAR, TABLE, VECTOR, Part, Rule, Table, each
from alm_jax.convert.sizes import count, heads_of, number, settings_of, shape_of
from alm_jax.models.encoders.whisper import WhisperConfig

_HEAD_WIDTH = 64  # of every Whisper, where nothing tells it

# Layers of a block: ours, theirs.
_OPENAI = {
    "norm1": "attn_ln",
    "norm2": "mlp_ln",
    "attn.q": "attn.query",
    "attn.k": "attn.key",
    "attn.v": "attn.value",
    "attn.o": "attn.out",
    "mlp.up": "mlp.0",
    "mlp.down": "mlp.2",
}
_HF = {
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.out_proj",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
_CT2 = {"attn.o": "self_attention/linear_1", "mlp.up": "ffn/linear_0", "mlp.down": "ffn/linear_1"}


def hf(config: WhisperConfig) -> Table:
    """`model.encoder.layers.{i}.self_attn.q_proj.weight`, ... (`WhisperForConditionalGeneration` and its parts)."""
    block = _block("blocks.", "layers.{i}.", _HF, range(config.depth))
    encoder = Table((*_stem("embed_positions.weight", "layer_norm"), *block)).under(theirs="model.encoder.")
    return encoder + Table(ignored=("model.decoder.*", "proj_out.*"), bare=("model.", "model.encoder."))


def openai(config: WhisperConfig) -> Table:
    """`encoder.blocks.{i}.attn.query.weight`, ... (the `model_state_dict` of a `.pt` file)."""
    block = _block("blocks.", "blocks.{i}.", _OPENAI, range(config.depth))
    encoder = Table((*_stem("positional_embedding", "ln_post"), *block)).under(theirs="encoder.")
    return encoder + Table(ignored=("decoder.*",), bare=("encoder.",))


def ctranslate2(config: WhisperConfig) -> Table:
    """`encoder/layer_{i}/self_attention/linear_0/weight`, ...: query, key and value in one matrix."""
    layers = range(config.depth)

    def keys(name: str) -> tuple[str, ...]:
        return each("encoder/layer_{i}/" + name, layers)

    rules = [
        *(Rule(f"{conv}.kernel", f"encoder/{conv}/weight", CONV1D) for conv in ("conv1", "conv2")),
        *(Rule(f"{conv}.bias", f"encoder/{conv}/bias", VECTOR) for conv in ("conv1", "conv2")),
        Rule("pos_embed", "encoder/position_encodings/encodings", TABLE),
        Rule("norm.scale", "encoder/layer_norm/gamma", VECTOR),
        Rule("norm.bias", "encoder/layer_norm/beta", VECTOR),
    ]
    for ours, theirs in (("norm1", "self_attention"), ("norm2", "ffn")):
        rules.append(Rule(f"blocks.{ours}.scale", keys(f"{theirs}/layer_norm/gamma"), VECTOR))
        rules.append(Rule(f"blocks.{ours}.bias", keys(f"{theirs}/layer_norm/beta"), VECTOR))
    for index, name in enumerate("qkv"):
        part = Part(index, 3)
        rules.append(Rule(f"blocks.attn.{name}.kernel", keys("self_attention/linear_0/weight"), LINEAR, part))
        bias = None if name == "k" else f"blocks.attn.{name}.bias"
        rules.append(Rule(bias, keys("self_attention/linear_0/bias"), VECTOR, part))
    for ours, theirs in _CT2.items():
        rules.append(Rule(f"blocks.{ours}.kernel", keys(f"{theirs}/weight"), LINEAR))
        rules.append(Rule(f"blocks.{ours}.bias", keys(f"{theirs}/bias"), VECTOR))
    return Table(tuple(rules), ignored=("decoder/*",))


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


def _block(path: str, pattern: str, names: dict[str, str], layers: range | None) -> tuple[Rule, ...]:
    def keys(name: str) -> str | tuple[str, ...]:
        return pattern + name if layers is None else each(pattern + name, layers)

    rules = []
    for ours, theirs in names.items():
        weight = ("scale", VECTOR) if ours.startswith("norm") else ("kernel", LINEAR)
        rules.append(Rule(f"{path}{ours}.{weight[0]}", keys(f"{theirs}.weight"), weight[1]))
        if ours != "attn.k":  # the key projection has no bias
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
        heads=number(file, settings_of(file), "encoder_attention_heads", int, heads_of(conv[0], _HEAD_WIDTH)),
        depth=count(keys, r"(?:^|encoder[./])(?:layers\.|blocks\.|layer_)(\d+)[./]"),
        positions=places[0] if places else default.positions,
    )
