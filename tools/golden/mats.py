"""MATS: a training batch from texts alone, and Santa with the answers that follow from it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.convert import mats as tables
from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.load import load
from alm_jax.core import tree
from alm_jax.core.sequence import Audio, Batch, Row, Text, collate
from alm_jax.data.layout import lay_out
from alm_jax.data.tokenizer import load_tokenizer
from alm_jax.infer.sampling import Sampling
from alm_jax.models import mats, santa
from alm_jax.models.aligners.mapper import Mapper, add_noise
from alm_jax.models.alm import AlmConfig, AudioLanguageModel, build
from alm_jax.models.contrast import unit
from alm_jax.models.features import Features
from golden.apt_llm import answer, ended
from golden.ltu_model import IGNORED_LABEL
from golden.msclap import BEHIND_WAVEFORM
from golden.report import TOLERANCE, Computed, Report

_PLACE = "<SpeechHere>"  # of the clip in a prompt


def check_training(prefix: Path, report: Report) -> None:
    """A fixture of training on text alone."""
    results = _Training(prefix)
    for row, made in enumerate(results.rows):
        report.same(f"row {row} as we lay it out", made.tokens.tolist(), results.without_padding(row))
    report.account(
        results.io, inputs=("clap_input_ids", "clap_attention_mask", "noise"), computed=_COMPUTED, results=results
    )


def check_santa(prefix: Path, report: Report) -> None:
    """A fixture of clips, a memory of texts, and answers."""
    results = _Santa(prefix)
    inputs = ("bank_file", "bank_after_shuffle", "init_center_idx", "noise", "raw_wav_int16")
    report.account(results.io, inputs=inputs, computed=_COMPUTED_SANTA, results=results)


class _Fixture:
    """A fixture's model, and its prompts as the official code pads them: inside the row, behind the clip."""

    def __init__(self, prefix: Path):
        self.sizes = json.loads(Path(f"{prefix}_config.json").read_text())
        self.io = dict(np.load(f"{prefix}_io.npz"))
        file = open_tensors(Path(f"{prefix}.safetensors"))
        config = alm_config(self.sizes, file)
        like = tree.abstract(lambda key: build(config, key))
        self.model = tree.unflatten(like, load(tree.flatten(like), [(file, tables.official(config))]))
        self.words = load_tokenizer(Path(f"{prefix}_tokenizer.model"))
        self.layout = replace(mats.LAYOUT, max_answer_tokens=self.sizes["cfg"]["max_txt_len"])
        self.pad = self.words.vocab_size  # `[PAD]` was added to the vocabulary

    @property
    def pieces(self) -> list[tuple[str, str]]:
        """The text of each prompt before its clip, and behind."""
        return [tuple(prompt.split(_PLACE)) for prompt in self.sizes["prompts"]]

    def ids(self, index: int) -> list[list[int]]:
        return self.words.encode_batch([pieces[index] for pieces in self.pieces])

    def batch(self, texts: list[np.ndarray], masks: list[np.ndarray], audio: Any) -> Batch:
        """BOS, text, clip and further texts [B, n] with their masks; all that is there sees what is not masked."""
        rows, heard = len(texts[0]), self.model.config.audio_tokens
        bos = np.full((rows, 1), self.words.bos_id)
        clip = np.tile(np.arange(heard), (rows, 1))
        columns = [bos, texts[0], 0 * clip, *texts[1:]]
        tokens = np.concatenate(columns, axis=1)
        seen = np.concatenate([np.ones_like(bos), masks[0], np.ones_like(clip), *masks[1:]], axis=1)
        start = 1 + texts[0].shape[1]
        index = np.full(tokens.shape, -1)
        index[:, start : start + heard] = clip
        batch = collate([Row(*np.zeros((6, tokens.shape[1]), int), clips=(0,))] * rows, tokens.shape[1], slots=1)
        return replace(
            batch,
            tokens=tokens.astype(np.int32),
            positions=np.tile(np.arange(tokens.shape[1], dtype=np.int32), (rows, 1)),
            q_segment_ids=np.ones(tokens.shape, np.int32),
            kv_segment_ids=seen.astype(np.int32),
            audio_index=index.astype(np.int32),
            indicator_index=np.full(tokens.shape, -1, np.int32),
            audio=audio,
        )

    def embed(self, batch: Batch) -> jax.Array:
        """Decoder input of a batch whose clips are embeddings [B, dim] that were made before."""
        values = jnp.asarray(batch.audio)[None, :, None]
        tokens = _tokens(self.model, Features(values))
        text = self.model.decoder.embed(jnp.asarray(batch.tokens), jnp.float32)
        index = jnp.asarray(batch.audio_index)[..., None]
        return jnp.where(index >= 0, jnp.take_along_axis(tokens, jnp.maximum(index, 0), axis=1), text)


class _Training(_Fixture):
    """Our side of a training batch."""

    @cached_property
    def rows(self) -> list[Row]:
        """Our own rows, which hold no padding."""
        texts = zip(self.pieces, self.sizes["samples"]["output"])
        parts = [[Text(a), Audio(0), Text(b), Text(answer, loss=True)] for (a, b), answer in texts]
        heard = self.model.config.audio_tokens
        return [lay_out(p, self.layout, self.words, audio_tokens=heard) for p in parts]

    def without_padding(self, row: int) -> list[int]:
        """Ids of the recorded row, 0 where its clip stands."""
        io, heard = self.io, self.model.config.audio_tokens
        kept = lambda name: io[f"{name}_ids"][row][io[f"{name}_mask"][row] == 1].tolist()
        before = io["prompt_before_ids"][row].tolist()
        return [self.words.bos_id, *before, *[0] * heard, *kept("prompt_after"), *kept("target")]

    @cached_property
    def targets(self) -> list[list[int]]:
        """The ids of the answers as we lay them out."""
        return [row.targets[row.loss_weight > 0].tolist() for row in self.rows]

    def padded(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask) of one piece of all rows, padded on the right."""
        rows = {"prompt_before": self.ids(0), "prompt_after": self.ids(1), "target": self.targets}[what]
        return pad(rows, self.pad)

    @cached_property
    def heard(self) -> jax.Array:
        """Embeddings of the texts that stand for clips, with the recorded noise."""
        embedded = unit(self.text_embedding)
        return add_noise(embedded, jnp.asarray(self.io["noise"]), self.sizes["cfg"]["noise_variance"])

    @cached_property
    def whole(self) -> Batch:
        pieces = [self.padded(what) for what in ("prompt_before", "prompt_after", "target")]
        batch = self.batch([ids for ids, _ in pieces], [mask for _, mask in pieces], self.heard)
        learnt = np.pad(pieces[-1][1], ((0, 0), (batch.shape[1] - pieces[-1][1].shape[1], 0)))[:, 1:]
        return replace(
            batch,
            targets=np.pad(batch.tokens[:, 1:], ((0, 0), (0, 1))),
            loss_weight=np.pad(learnt, ((0, 0), (0, 1))).astype(np.float32),
        )

    def labels(self):
        learnt = np.where(self.whole.loss_weight > 0, self.whole.targets, IGNORED_LABEL)[:, :-1]
        return np.pad(learnt, ((0, 0), (1, 0)), constant_values=IGNORED_LABEL)

    @cached_property
    def text_embedding(self):
        return _embedding(self.model, self.io["clap_input_ids"])

    def layer(self, index: str):
        aligner = self.model.aligner
        x = aligner.begin(self.heard)
        for i in range(int(index) + 1):
            x = jax.tree.map(lambda leaf: leaf[i], aligner.blocks)(x)  # noqa: B023
        return x

    @cached_property
    def mapped(self):
        return jax.jit(Mapper.map)(self.model.aligner, self.heard)

    @cached_property
    def embeddings(self):
        return self.embed(self.whole)

    @cached_property
    def logits(self):
        return _logits(self.model, self.embeddings, self.whole)

    def loss(self):
        logp = jax.nn.log_softmax(self.logits)
        picked = jnp.take_along_axis(logp, jnp.asarray(self.whole.targets)[..., None], axis=-1)[..., 0]
        return -(picked * self.whole.loss_weight).sum() / self.whole.loss_weight.sum()

    def accuracy(self):
        right = np.asarray(self.logits.argmax(-1)) == self.whole.targets
        return (right * self.whole.loss_weight).sum() / self.whole.loss_weight.sum()


class _Santa(_Fixture):
    """Our side of clips' embeddings, what Santa makes of them, and the answers."""

    def __init__(self, prefix: Path):
        super().__init__(prefix)
        told = self.sizes["memory"]
        self.config = santa.SantaConfig(
            memory=told["M"],
            clusters=told["K"],
            iterations=told["iters"],
            neighbours=told["L"],
            share=told["lam"],
            temperature=told["temperature_multiplier"],
            noise_variance=self.sizes["cfg"]["noise_variance"],
        )

    @cached_property
    def embedding(self):
        waves = self.io["raw_wav_int16"].astype(np.float32) / np.float32(32767)
        frames = np.stack([self.model.config.frontend.numpy(wave) for wave in waves])
        return _embedding(self.model, frames)

    @cached_property
    def memory(self) -> santa.Memory:
        return santa.cluster(
            jnp.asarray(self.io["bank_used"]), jnp.asarray(self.io["init_center_idx"]), self.config.iterations
        )

    @cached_property
    def found(self) -> santa.Retrieved:
        clips, noise = jnp.asarray(self.io["clap_audio_embed"]), jnp.asarray(self.io["noise"])
        return santa.retrieve(clips, self.memory, self.config, noise)

    def bank(self):
        return unit(jnp.asarray(self.io["bank_after_shuffle"]))[: self.config.memory]

    def indices(self):
        """Rows that are the same tie: the recorded index stands for ours where it leads to the same row."""
        recorded = self.io["topk_indices"]
        ours = np.full(recorded.shape, -1)
        for b, own in enumerate(np.asarray(self.found.cluster)):
            rows = self.io["bank_used"][np.asarray(self.memory.assigned) == own][recorded[b]]
            same = np.isclose(rows, self.found.neighbours[b], atol=1e-6).all(-1)
            ours[b] = np.where(same, recorded[b], -1)
        return ours

    def sizes_of_clusters(self):
        return np.bincount(np.asarray(self.memory.assigned), minlength=self.config.clusters)

    def connector(self):
        return _tokens(self.model, Features(self.found.embeddings[None, :, None]))

    @cached_property
    def prompts(self) -> Batch:
        pieces = [pad(self.ids(0), self.pad), pad(self.ids(1), self.pad, left=True)]
        return self.batch([ids for ids, _ in pieces], [mask for _, mask in pieces], self.found.embeddings)

    def answers(self, beams: str):
        told, recorded = self.sizes["generation"], self.io[f"gen_beam{beams}_ids"]
        sampling = Sampling(
            beams=int(beams),
            repetition_penalty=told["repetition_penalty"],
            no_repeat_ngram=told["no_repeat_ngram_size"],
        )
        prompt, eos = (self.io["gen_inputs_embeds"], self.io["gen_attention_mask"]), self.words.eos_id
        return ended(answer(self.model.decoder, *prompt, recorded, sampling, eos), recorded, (eos, self.pad, 0))


@jax.jit
def _embedding(model: AudioLanguageModel, x: jax.Array) -> jax.Array:
    """Clips or ids of texts -> [B, dim] of the common space."""
    return model.encoder(x).values[0, :, 0]


@jax.jit
def _tokens(model: AudioLanguageModel, features: Features) -> jax.Array:
    return model.aligner(features)[0]


@jax.jit
def _logits(model: AudioLanguageModel, x: jax.Array, batch: Batch) -> jax.Array:
    """Decoder input [B, L, D] -> [B, L, V]."""
    return model.logits(model.decoder(x, batch.positions, batch.q_segment_ids, batch.kv_segment_ids))


def alm_config(c: dict[str, Any], file: TensorFile) -> AlmConfig:
    """Our config of a fixture: sizes by its weights, and by its config where weights do not tell them."""
    told = tables.sizes(file)
    heads, layout = c["llm"]["heads"], c["cfg"]
    lora = replace(told.decoder.lora, alpha=float(layout["lora_alpha"]), dropout=layout["lora_dropout"])
    decoder = replace(told.decoder, heads=heads, kv_heads=c["llm"].get("kv_heads", heads), lora=lora)
    encoder, aligner = told.encoder, replace(told.aligner, noise_variance=layout["noise_variance"])
    if encoder.towers == "text":
        text = replace(encoder.clap.text, heads=c["gpt2_heads"])
        encoder = replace(encoder, clap=replace(encoder.clap, text=text))
    if "mapper" in c:
        aligner = replace(aligner, heads=c["mapper"]["heads"])
    return mats.mats(decoder, encoder, aligner)


def pad(rows: list[list[int]], fill: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) [B, n] of rows of different lengths."""
    longest = max(map(len, rows))
    fillers = [[fill] * (longest - len(row)) for row in rows]
    ids = [f + r if left else r + f for r, f in zip(rows, fillers)]
    mask = [[0] * len(f) + [1] * len(r) if left else [1] * len(r) + [0] * len(f) for r, f in zip(rows, fillers)]
    return np.array(ids), np.array(mask)


_COMPUTED: list[Computed] = [
    (r"clap_text_embed", lambda r: r.text_embedding, TOLERANCE),
    (r"mapper_in", lambda r: r.heard, TOLERANCE),
    (r"mapper_layer(\d+)_out", _Training.layer, TOLERANCE),
    (r"mapper_out", lambda r: r.mapped, TOLERANCE),
    (r"audio_llama_proj_out", lambda r: r.model.aligner.proj(r.mapped), TOLERANCE),
    (r"inputs_embeds", lambda r: r.embeddings, TOLERANCE),
    (r"attention_mask", lambda r: r.whole.kv_segment_ids, None),
    (r"labels", _Training.labels, None),
    (r"logits", lambda r: r.logits, TOLERANCE),
    (r"loss", _Training.loss, TOLERANCE),
    (r"acc", _Training.accuracy, TOLERANCE),
    (r"(prompt_before|prompt_after|target)_ids", lambda r, what: r.padded(what)[0], None),
    (r"(prompt_before|prompt_after|target)_mask", lambda r, what: r.padded(what)[1], None),
]
_COMPUTED_SANTA: list[Computed] = [
    (r"bank_used", _Santa.bank, TOLERANCE),
    (r"means", lambda r: r.memory.means, TOLERANCE),
    (r"assign", lambda r: r.memory.assigned, None),
    (r"cluster_sizes", _Santa.sizes_of_clusters, None),
    (r"clap_audio_embed", lambda r: r.embedding, BEHIND_WAVEFORM),
    (r"clap_audio_embed_norm", lambda r: jnp.linalg.norm(r.embedding, axis=-1), BEHIND_WAVEFORM),
    (r"closest_cluster", lambda r: r.found.cluster, None),
    (r"topk_indices", _Santa.indices, None),
    (r"topk_values", lambda r: r.found.distances, TOLERANCE),
    (r"softmax_logits", lambda r: r.found.similarities, TOLERANCE),
    (r"softmax_weights", lambda r: r.found.weights, TOLERANCE),
    (r"santa_out", lambda r: r.found.embeddings, TOLERANCE),
    (r"connector_embeds", _Santa.connector, TOLERANCE),
    (r"gen_inputs_embeds", lambda r: r.embed(r.prompts), TOLERANCE),
    (r"gen_attention_mask", lambda r: r.prompts.kv_segment_ids, None),
    (r"gen_beam(\d+)_ids", _Santa.answers, None),
]
