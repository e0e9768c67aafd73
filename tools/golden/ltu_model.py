"""An LTU fixture's model: our config from its sizes, our parameters from its weights, and the official batch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.audio.frontend import KaldiFbank
from alm_jax.convert import ltu as tables
from alm_jax.convert.formats import open_tensors
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.core.sequence import Batch
from alm_jax.layers.dense import Lora
from alm_jax.models.aligners.pooled_linear import PooledLinearConfig
from alm_jax.models.alm import AlmConfig, AudioLanguageModel, build
from alm_jax.models.decoders.llama import LlamaConfig
from alm_jax.models.encoders.cav_mae import CavMaeConfig

IGNORED_LABEL = -100
_TOTAL_BLOCKS = 12  # CAVMAEFTAudio has this many in all: `modality_specific_depth` blocks_a, the rest blocks_u


@dataclass
class Fixture:
    """Config, arrays and model of one fixture."""

    path: Path
    sizes: dict[str, Any]
    io: dict[str, np.ndarray]
    config: AlmConfig
    arrays: tree.Arrays

    @property
    def model(self) -> AudioLanguageModel:
        """Our model with the official weights."""
        return self.assemble(self.arrays)

    @cached_property
    def like(self) -> AudioLanguageModel:
        """The abstract model."""
        return tree.abstract(lambda key: build(self.config, key))

    def assemble(self, arrays: tree.Arrays) -> AudioLanguageModel:
        """The model of this fixture's config that holds `arrays`."""
        return tree.unflatten(self.like, arrays)


def read(prefix: Path) -> Fixture:
    """Read a fixture and load its weights through the conversion table."""
    sizes = json.loads(Path(f"{prefix}_config.json").read_text())
    config = alm_config(sizes)
    shapes = tree.flatten(tree.abstract(lambda key: build(config, key)))
    arrays = load(shapes, [(open_tensors(Path(f"{prefix}.safetensors")), tables.official(config))])
    return Fixture(prefix, sizes, dict(np.load(f"{prefix}_io.npz")), config, arrays)


def alm_config(c: dict[str, Any]) -> AlmConfig:
    """Our config of a fixture's sizes."""
    own = c.get("audio_blocks_a", c["audio_modality_specific_depth"])
    joint = c.get("audio_blocks_u", _TOTAL_BLOCKS - own)
    patch = c.get("audio_patch", 16)
    grid = (c.get("audio_freq_patches", 8), c.get("audio_time_patches", 64))
    norm_eps = c.get("audio_layernorm_eps", 1e-5)
    encoder = CavMaeConfig(
        frames=grid[1] * patch,
        mels=grid[0] * patch,
        patch=patch,
        dim=c["audio_embed_dim"],
        heads=c["audio_num_heads"],
        depth=own + joint,
        joint_depth=joint,
        mlp_ratio=c["audio_mlp_ratio"],
        norm_eps=norm_eps,
    )
    targets = tuple(f"attn.{name.removesuffix('_proj')}" for name in c.get("lora_targets", ("q_proj", "v_proj")))
    decoder = LlamaConfig(
        vocab_size=c["vocab_size"],
        dim=c["hidden_size"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        kv_heads=c.get("num_key_value_heads", c["num_attention_heads"]),
        mlp_dim=c["intermediate_size"],
        rope_theta=c.get("rope_theta", 10000.0),
        norm_eps=c["rms_norm_eps"],
        lora=Lora(c["lora_r"], c["lora_alpha"], c.get("lora_dropout", 0.0), targets),
    )
    aligner = PooledLinearConfig(
        dim=encoder.dim,
        out_dim=decoder.dim,
        grid=grid,
        time_pool=grid[1] // c.get("audio_tokens", grid[1] // 2),
        divisor=c["audio_div"],
        norm_eps=norm_eps,
    )
    return AlmConfig(KaldiFbank(frames=encoder.frames, num_mels=encoder.mels), encoder, aligner, decoder)


def official_batch(
    ids: np.ndarray,
    mask: np.ndarray,
    *,
    audio: np.ndarray | None = None,
    audio_tokens: int = 0,
    labels: np.ndarray | None = None,
    length: int | None = None,
) -> Batch:
    """LTU's own batch: audio first, then ids [B, T] with their padding inside; every query attends by the key mask.

    Positions are 0.. regardless of padding. The logits of the last audio position are cut off before the loss.

    Args:
        mask: [B, T] over the text, or [B, audio_tokens + T]. audio: [B, frames, mels] or None.
        labels: [B, T], -100 where nothing is learnt. length: pad to it on the right with positions nobody sees.
    """
    rows, text = ids.shape
    heard = 0 if audio is None else audio_tokens
    total = length or heard + text

    def put(start: int, values: Any, fill: int = 0) -> np.ndarray:
        out = np.full((rows, total), fill, np.int32)
        out[:, start : start + np.shape(values)[-1]] = values
        return out

    seen = np.asarray(mask)[:, -text:]
    following = np.full((rows, text), IGNORED_LABEL)
    if labels is not None:
        following[:, :-1] = labels[:, 1:]
    return Batch(
        tokens=put(heard, ids),
        positions=np.tile(np.arange(total, dtype=np.int32), (rows, 1)),
        q_segment_ids=put(0, np.ones(heard + text)),
        kv_segment_ids=put(0, np.concatenate([np.ones((rows, heard)), seen], axis=1)),
        targets=put(heard, np.maximum(following, 0)),
        loss_weight=put(heard, following != IGNORED_LABEL).astype(np.float32),
        audio_index=put(0, np.arange(heard), fill=-1),
        indicator_index=put(0, np.zeros((rows, 0)), fill=-1),
        penalty_mask=put(heard, np.ones((rows, text))).astype(bool),
        audio=None if audio is None else np.asarray(audio, np.float32)[:, None],
        audio_clip=None if audio is None else np.zeros((rows, 1), np.int32),
    )


@jax.jit
def logits(model: AudioLanguageModel, batch: Batch) -> jax.Array:
    """Logits [B, L, V] of all positions."""
    return model.logits(model.hidden(batch))


def text_logits(model: AudioLanguageModel, batch: Batch) -> jax.Array:
    """Logits [B, T, V] of the text positions."""
    heard = 0 if batch.audio is None else model.config.audio_tokens
    return logits(model, batch)[:, heard:]


def mean_loss(model: AudioLanguageModel, batch: Batch) -> jax.Array:
    """Token mean of the negative log-likelihood over a batch."""
    return _mean(logits(model, batch), batch)


@jax.jit
def _mean(logits: jax.Array, batch: Batch) -> jax.Array:
    logp = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(logp, batch.targets[..., None], axis=-1)[..., 0]
    return -(picked * batch.loss_weight).sum() / batch.loss_weight.sum()
