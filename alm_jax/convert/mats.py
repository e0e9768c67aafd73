"""MATS checkpoints: CLAP, mapper, projection, and LLaMA with LoRA (official `audiofree_salmonn.py`, `mats.py`).

Published checkpoints leave out what was frozen: LLaMA, and of CLAP all but the running statistics of its batch norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from alm_jax.convert import clap, gpt2, htsat, llama
from alm_jax.convert.formats import Below, TensorFile
from alm_jax.convert.names import Style
from alm_jax.convert.rules import LINEAR, TABLE, VECTOR, Part, Rule, Table, each
from alm_jax.convert.sizes import count, shape_of
from alm_jax.models.aligners.mapper import MapperConfig
from alm_jax.models.alm import AlmConfig
from alm_jax.models.clap import ClapConfig
from alm_jax.models.encoders.clap import ClapEncoderConfig
from alm_jax.models.mats import LORA, mats

_TOWERS = {"audio": "audio_encoder.", "text": "clap_text_encoder."}
_DECODER = "llama_model."
_MAPPER = "audio_mapper."
PUBLISHED = Style(peft=_DECODER, adapter="default")

_NORMS = {"norm1": "norm1", "norm2": "norm2"}
_LAYERS = {"attn.o": "attn.project", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}


def official(config: AlmConfig) -> Table:
    """The whole model; keys of the tower that does not listen are another model's, the norm `ln_audio` is not used."""
    return (
        towers(config.encoder)
        + mapper(config.aligner).under("aligner.")
        + llama.hf(config.decoder).under("decoder.", _DECODER)
        + Table(dead=("ln_audio.weight", "ln_audio.bias"))
    )


def towers(config: ClapEncoderConfig | None) -> Table:
    """The towers of CLAP that are there."""
    if config is None:
        return Table(ignored=tuple(f"{key}*" for key in _TOWERS.values()))
    return _towers(config, _TOWERS).under("encoder.")


def clap_encoder(config: ClapEncoderConfig) -> Table:
    """Towers in a checkpoint of MS-CLAP itself, where the text tower is called the caption encoder."""
    keys = {"audio": "audio_encoder.", "text": "caption_encoder."}
    return _towers(config, keys) + Table(ignored=("logit_scale",))


def _towers(config: ClapEncoderConfig, keys: Mapping[str, str]) -> Table:
    table = Table()
    for name, make in (("audio", clap.audio_tower), ("text", clap.text_tower)):
        there = config.towers in (name, "both")
        table += make(config.clap).under(f"{name}.", keys[name]) if there else Table(ignored=(f"{keys[name]}*",))
    return table


def mapper(config: MapperConfig) -> Table:
    """`audio_mapper.*` and `audio_llama_proj.*`."""
    layers, block = range(config.depth), _MAPPER + "transformer.layers.{i}."
    rules = [Rule("prefix", _MAPPER + "prefix_const", TABLE)]
    for ours, theirs in {"linear": _MAPPER + "linear", "proj": "audio_llama_proj"}.items():
        rules += [Rule(f"{ours}.kernel", f"{theirs}.weight", LINEAR), Rule(f"{ours}.bias", f"{theirs}.bias", VECTOR)]
    rules.append(Rule("blocks.attn.q.kernel", each(f"{block}attn.to_queries.weight", layers), LINEAR))
    packed = each(f"{block}attn.to_keys_values.weight", layers)
    rules += [Rule(f"blocks.attn.{name}.kernel", packed, LINEAR, Part(i, 2)) for i, name in enumerate("kv")]
    for names, leaf, arrange in ((_NORMS, "scale", VECTOR), (_LAYERS, "kernel", LINEAR)):
        for ours, theirs in names.items():
            rules.append(Rule(f"blocks.{ours}.{leaf}", each(f"{block}{theirs}.weight", layers), arrange))
            rules.append(Rule(f"blocks.{ours}.bias", each(f"{block}{theirs}.bias", layers), VECTOR))
    return Table(tuple(rules))


def sizes(file: TensorFile) -> AlmConfig:
    """Sizes of all parts, read off a file; CLAP is the published one where it is not there."""
    decoder = llama.sizes(Below(file, _DECODER))
    if decoder.lora is not None:  # its scaling is not in the file
        scaling = LORA.alpha / LORA.rank
        decoder = replace(decoder, lora=replace(decoder.lora, alpha=scaling * decoder.lora.rank, dropout=LORA.dropout))
    return mats(decoder, _encoder(file), mapper_sizes(file))


def mapper_sizes(file: TensorFile) -> MapperConfig:
    """Sizes of the mapper; its number of heads is the published one."""
    usual = MapperConfig()
    linear = shape_of(file, r"audio_mapper\.linear\.weight$", 2) or (usual.clip_tokens * usual.width, usual.dim)
    tokens, width = shape_of(file, r"audio_mapper\.prefix_const$", 2) or (usual.tokens, usual.width)
    hidden = shape_of(file, r"audio_mapper\.transformer\.layers\.0\.mlp\.fc1\.weight$", 2)
    out = shape_of(file, r"audio_llama_proj\.weight$", 2)
    return MapperConfig(
        dim=linear[1],
        out_dim=out[0] if out else usual.out_dim,
        clip_tokens=linear[0] // width,
        tokens=tokens,
        width=width,
        depth=count(list(file.keys()), r"audio_mapper\.transformer\.layers\.(\d+)\.") or usual.depth,
        mlp_ratio=hidden[0] / width if hidden else usual.mlp_ratio,
    )


def _encoder(file: TensorFile) -> ClapEncoderConfig:
    towers = {name: Below(file, key) for name, key in _TOWERS.items()}
    heard = {name: shape_of(tower, r"projection\.linear1\.weight$", 2) for name, tower in towers.items()}
    if all(heard.values()):
        sizes = ClapConfig(htsat.sizes(towers["audio"]), gpt2.sizes(towers["text"]), heard["audio"][0])
        return ClapEncoderConfig(sizes, "both")
    if heard["audio"]:
        return ClapEncoderConfig(ClapConfig(audio=htsat.sizes(towers["audio"]), dim=heard["audio"][0]))
    if heard["text"]:
        return ClapEncoderConfig(ClapConfig(text=gpt2.sizes(towers["text"]), dim=heard["text"][0]), "text")
    return ClapEncoderConfig(ClapConfig(dim=mapper_sizes(file).dim))
