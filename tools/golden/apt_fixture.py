"""An APT fixture's model: sizes by its weights, and by its config where weights do not tell them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.convert import apt as tables
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.models.alm import AlmConfig, AudioLanguageModel, build


@dataclass
class Fixture:
    """Config, recorded arrays and model of one fixture."""

    sizes: dict[str, Any]
    io: dict[str, np.ndarray]
    config: AlmConfig
    model: AudioLanguageModel


def read(prefix: Path) -> Fixture:
    """Read a fixture and load its weights through the conversion table."""
    sizes = json.loads(Path(f"{prefix}_config.json").read_text())
    file = open_tensors(Path(f"{prefix}.safetensors"))
    config = with_heads(tables.sizes(file), sizes)
    if not any(key.startswith("llm_model.") for key in file.keys()):
        config = replace(config, decoder=None)
    like = tree.abstract(lambda key: build(config, key))
    arrays = load(tree.flatten(like), [(file, tables.official(config))])
    return Fixture(sizes, dict(np.load(f"{prefix}_io.npz")), config, tree.unflatten(like, arrays))


def with_heads(config: AlmConfig, sizes: dict[str, Any]) -> AlmConfig:
    """The same with the numbers of attention heads, and what else a fixture's config says."""
    encoder = replace(config.encoder, heads=sizes["encoder"]["num_heads"])
    bert = {"heads": sizes["bert"]["heads"], "norm_eps": sizes.get("bert_ln_eps", config.aligner.norm_eps)}
    decoder, llm = config.decoder, sizes.get("llm")
    if decoder is not None:
        decoder = replace(decoder, heads=llm["heads"], kv_heads=llm.get("kv_heads", llm["heads"]))
    return replace(config, encoder=encoder, aligner=replace(config.aligner, **bert), decoder=decoder)
