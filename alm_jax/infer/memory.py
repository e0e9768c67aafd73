"""Memory banks: files of text embeddings that Santa draws clips towards (MATS, section 3.4; official `load_memory`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from alm_jax.convert.formats import open_tensors
from alm_jax.convert.formats.safetensors import Safetensors, Tensor, write_safetensors
from alm_jax.core.errors import CheckpointError, DataError, UsageError
from alm_jax.core.files import new_file
from alm_jax.data.rows import RowSet
from alm_jax.models.santa import Memory, SantaConfig, build_memory, noise_variance

FORMAT = "alm_memory_1"
PAIRS = 30  # of clips and captions, from which the paper takes the noise's variance
_BATCH = 64
_TOWERS = ("audio", "text")
_STATISTICS = (".mean", ".var")  # of batch norms, which published checkpoints carry on


class Embeds(Protocol):
    """A CLAP, by itself or as a model's encoder: embeddings [N, dim] of length 1."""

    def embed_audio(self, clips: Sequence[Any]) -> np.ndarray: ...

    def embed_text(self, texts: Sequence[str]) -> np.ndarray: ...

    @property
    def towers(self) -> Mapping[str, Any]:
        """`{path: array}` of the towers that are there: `audio.*`, `text.*`."""


@dataclass(frozen=True)
class Bank:
    """A memory bank as it is kept.

    Attributes:
        embeddings: float32 [M, dim], of length 1.
        texts: sha256 of the texts that they were drawn from; count: how many those were. seed: of the draw.
        clap: sha256 of each tower of the CLAP (`identity`).
    """

    embeddings: np.ndarray
    texts: str
    count: int
    seed: int
    clap: Mapping[str, str]

    def save(self, path: Path) -> None:
        """Write the file; it appears whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        told = {"format": FORMAT, "texts": self.texts, "count": str(self.count), "seed": str(self.seed)}
        told |= {f"clap_{tower}": digest for tower, digest in self.clap.items()}
        tensor = Tensor("bank", self.embeddings.shape, self.embeddings.dtype, lambda: iter([self.embeddings]))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as partial:
                write_safetensors(partial, [tensor], told)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error}") from error

    @classmethod
    def open(cls, path: str | Path) -> Bank:
        """Read what `save` wrote.

        Raises:
            CheckpointError: there is no such file, it is damaged, or no memory bank.
        """
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: no such memory bank; make it with alm memory build")
        file = open_tensors(path)
        told = file.metadata if isinstance(file, Safetensors) else {}
        if told.get("format") != FORMAT or "bank" not in file.keys() or len(file.shape("bank")) != 2:
            raise CheckpointError(f"{path}: not a memory bank of this version; make it with alm memory build")
        clap = {tower: told[f"clap_{tower}"] for tower in _TOWERS if f"clap_{tower}" in told}
        return cls(file.read("bank"), told["texts"], int(told["count"]), int(told["seed"]), clap)


def build_bank(
    model: Embeds,
    texts: Sequence[str],
    *,
    size: int = SantaConfig().memory,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Bank:
    """The bank of some texts: clean embeddings of `size` of them, drawn by `seed` and in their order, or of all.

    A text that occurs again counts once. (The official code draws with a fault: about half of its rows are others
    again.)

    Raises:
        DataError: there is no text. UsageError: the size is below 1, or the model reads no text.
    """
    if size < 1 or seed < 0:
        raise UsageError(f"a memory of {size} texts, drawn by seed {seed}: expected 1 or more, and a seed of 0 or more")
    given = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not given:
        raise DataError("no texts to remember: give one a line, or rows with captions")
    chosen = given
    if len(given) > size:
        order = np.random.Philox(np.random.SeedSequence((seed, len(given)))).random_raw(len(given))
        chosen = [given[i] for i in np.sort(np.argsort(order, kind="stable")[:size])]
    parts = []
    for start in range(0, len(chosen), _BATCH):
        progress(start, len(chosen))
        parts.append(np.asarray(model.embed_text(chosen[start : start + _BATCH]), np.float32))
    progress(len(chosen), len(chosen))
    digest = hashlib.sha256("\n".join(given).encode()).hexdigest()
    return Bank(np.concatenate(parts), digest, len(given), seed, identity(model))


def memory_of(bank: Bank, model: Embeds, config: SantaConfig, name: str = "the memory") -> Memory:
    """A bank's clustered memory for a model: all of the bank, whatever `config.memory` would draw of texts.

    Raises:
        CheckpointError: it was made with another CLAP than the model's. ConfigError: it is too small for `config`.
    """
    own = identity(model)
    common = own.keys() & bank.clap.keys()
    if not common or any(own[tower] != bank.clap[tower] for tower in common):
        raise CheckpointError(
            f"{name} was made with another CLAP than this model's: build one with this model (alm memory build TEXTS "
            "--model MODEL --out FILE)"
        )
    return build_memory(jnp.asarray(bank.embeddings), replace(config, memory=max(1, len(bank.embeddings))))


def identity(model: Embeds) -> dict[str, str]:
    """sha256 of the parameters of each tower, rounded to bfloat16, in which accelerators hold what is frozen; without
    running statistics."""
    digests = {}
    for path, leaf in sorted(model.towers.items()):
        if path.endswith(_STATISTICS) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        digest = digests.setdefault(path.split(".")[0], hashlib.sha256())
        digest.update(path.encode() + np.asarray(leaf).astype(ml_dtypes.bfloat16).tobytes())
    return {tower: digest.hexdigest() for tower, digest in digests.items()}


def gap_variance(model: Embeds, rows: RowSet, pairs: int = PAIRS, seed: int = 0) -> float:
    """The variance of training's noise by the paper's rule (`models.santa.noise_variance`), from rows of one clip with
    its caption, of which some are drawn.

    Raises:
        DataError: no row has both. AudioError: a clip cannot be used.
    """
    found = {row.clips[0]: row.captions[0] for row in rows.rows if len(row.clips) == len(row.captions) == 1}
    if not found:
        raise DataError("no row has both a clip (audio_id) and its caption")
    order = np.random.Philox(np.random.SeedSequence((seed, len(found)))).random_raw(len(found))
    drawn = [list(found.items())[i] for i in np.argsort(order, kind="stable")[:pairs]]
    clips = [rows.clip_path(clip) for clip, _ in drawn]
    return noise_variance(model.embed_audio(clips), model.embed_text([text for _, text in drawn]))
