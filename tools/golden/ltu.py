"""LTU fixtures: `ltu_tiny` (model, gradients, generation) and `ltu_tiny_c` (text pipeline and trainer)."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.convert import ltu as tables
from alm_jax.convert.names import PUBLISHED
from alm_jax.convert.save import export
from alm_jax.core import tree
from alm_jax.infer.generate import steps
from alm_jax.infer.sampling import LTU_SAMPLING, Sampling, warp
from alm_jax.models.alm import AudioLanguageModel
from golden import ltu_training
from golden.ltu_model import Fixture, mean_loss, official_batch, read, text_logits
from golden.report import GRADIENT, TOLERANCE, Computed, Report

_INPUTS = ("fbank", "input_ids", "text_attention_mask", "attention_mask", "labels*", "gen_prompt_*")
_PATCH_STRIDE = 73  # of probes that hold some patches only


def check_training(prefix: Path, report: Report) -> None:
    """A fixture with text, collator and trainer."""
    ltu_training.check(read(prefix), report)


def check_model(prefix: Path, report: Report) -> None:
    """A fixture of the model alone."""
    fixture = read(prefix)
    results = _Results(fixture)
    report.account(fixture.io, inputs=_INPUTS, computed=_COMPUTED, results=results)
    results.compare_gradient_norms(report)


class _Results:
    """Our side of every recorded array; each method's pattern stands in `_COMPUTED`."""

    def __init__(self, fixture: Fixture):
        self.io, self.sizes, self.config = fixture.io, fixture.sizes, fixture.config
        self.fixture, self.model = fixture, fixture.model
        self.generated: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        self.official_gradients: dict[str, np.ndarray] | None = None

    def batch(self, **changes: Any):
        """The recorded batch, with some of its parts replaced."""
        io = self.io
        parts = {"ids": io["input_ids"], "mask": io["attention_mask"], "audio": io["fbank"], "labels": io["labels"]}
        parts |= changes
        return official_batch(parts.pop("ids"), parts.pop("mask"), audio_tokens=self.config.audio_tokens, **parts)

    @cached_property
    def heard(self) -> dict[str, jax.Array]:
        """What the recorded clips become, and behind them a clip of zeros."""
        frames = self.io["fbank"]
        return _heard(self.model, np.concatenate([frames, np.zeros_like(frames[:1])]))

    def enc_out(self):
        return self.heard["features"][:-1]

    def enc_zero(self):
        return self.heard["features"][-1:, ::_PATCH_STRIDE]

    def blocks(self):
        return self.heard["streams"][:, :-1, ::_PATCH_STRIDE]

    def patches(self):
        return self.heard["patches"][:-1, ::_PATCH_STRIDE]

    def pooled(self):
        return self.heard["pooled"][:-1]

    def divided(self):
        return self.pooled() / self.config.aligner.divisor

    def normalised(self):
        return self.heard["normalised"][:-1]

    def audio_tokens(self):
        return self.heard["tokens"][:-1]

    def logits(self):
        return text_logits(self.model, self.batch())

    def logits_text_only(self):
        return text_logits(self.model, self.batch(audio=None, mask=self.io["text_attention_mask"]))

    def logits_without_mask(self, row: str):
        rows = slice(int(row), int(row) + 1)
        ids = self.io["input_ids"][rows]
        return text_logits(
            self.model, self.batch(ids=ids, mask=np.ones_like(ids), audio=self.io["fbank"][rows], labels=None)
        )

    def loss(self, suffix: str | None):
        return mean_loss(self.model, self.batch(labels=self.io["labels" + (suffix or "")]))

    def layers(self):
        """Every decoder layer's output at positions 0, 31, 32 and the last, one block at a time."""
        from alm_jax.kernels.attention import attention

        batch, decoder = self.batch(), self.model.decoder
        ids = {"q_segment_ids": jnp.asarray(batch.q_segment_ids), "kv_segment_ids": jnp.asarray(batch.kv_segment_ids)}
        x, place = decoder.begin(jax.jit(AudioLanguageModel.embed)(self.model, batch), jnp.asarray(batch.positions))
        run = jax.jit(lambda block, x: block(x, place, lambda q, k, v: attention(q, k, v, causal=True, **ids))[0])
        kept = []
        for i in range(self.config.decoder.depth):
            block = jax.tree.map(lambda leaf: leaf[i], decoder.blocks)  # noqa: B023
            x = run(block, x)
            audio = self.config.audio_tokens
            kept.append(x[:, jnp.array([0, audio - 1, audio, -1])])
        return jnp.stack(kept)

    def gradients(self) -> dict[str, np.ndarray]:
        """Gradients of the recorded loss under official names; tensors that are never used have none."""
        if self.official_gradients is None:
            like, batch = self.model, self.batch()
            loss = lambda arrays: mean_loss(tree.unflatten(like, arrays), batch)
            grads = jax.jit(jax.grad(loss))(self.fixture.arrays)
            self.official_gradients = dict(export(grads, tables.official(self.config), PUBLISHED))
        return self.official_gradients

    def gradient(self, short: str):
        key = _official_key(short)
        return self.gradients()[key] if key in self.gradients() else np.zeros(self.io["grad_" + short].shape)

    def compare_gradient_norms(self, report: Report) -> None:
        """The norms of all trainable gradients, which stand in the config."""
        norms = self.sizes.get("grad_norms")
        if not norms:
            return
        grads = self.gradients()
        ours = [float(np.linalg.norm(grads[key])) if key in grads else 0.0 for key in norms]
        report.compare(f"config: {len(norms)} gradient norms", ours, list(norms.values()), GRADIENT)

    def generation(self, row: str, penalty: str | None = None, heard: bool = True):
        """(ids [n], logits [n, V] before the penalty) of greedy generation after a recorded prompt."""
        case = (row, penalty, heard)
        if case not in self.generated:
            ids = self.io[f"gen_prompt_{row}"][None]
            audio = self.io["fbank"][int(row)][None] if heard else None
            batch = self.batch(ids=ids, mask=np.ones_like(ids), audio=audio, labels=None)
            name = f"gen_ids{'' if heard else '_textonly'}{f'_rep{penalty}' if penalty else ''}_{row}"
            sampling = Sampling(repetition_penalty=int(penalty) / 100 if penalty else 1.0)
            made = list(steps(self.model, batch, max_new_tokens=len(self.io[name]), sampling=sampling))
            self.generated[case] = (np.array([i[0] for i, _, _ in made]), np.stack([x[0] for _, _, x in made]))
        return self.generated[case]

    def warped(self, step: str, row: str):
        """Filtered scores of LTU's sampler: the penalty sees the prompt and what was generated before."""
        ids, logits = self.generation(row)
        before = np.concatenate([self.io[f"gen_prompt_{row}"], ids[: int(step)]])
        seen = jnp.zeros((1, logits.shape[-1]), bool).at[0, before].set(True)
        return warp(jnp.asarray(logits[int(step)][None]), seen, LTU_SAMPLING)


@jax.jit
def _heard(model: AudioLanguageModel, x: jax.Array) -> dict[str, jax.Array]:
    """What frames [B, frames, mels] become, in one program."""
    features = model.encode(x)
    pooled = model.aligner.pool(features)
    return {
        "patches": model.encoder.embed(x),
        "streams": model.encoder(x, tuple(range(1, model.config.encoder.depth + 1))).values,
        "features": features.values[0],
        "pooled": pooled,
        "normalised": model.aligner.normalise(pooled),
        "tokens": model.audio_tokens(x[:, None]),
    }


def _official_key(short: str) -> str:
    """Official name of a gradient array: `l0_q_lora_A`, `a0_qkv_b`, `u0_norm1_a_w`, `audio_proj_w`, `modality_a`."""
    inner = "base_model.model.model."
    if found := re.fullmatch(r"l(\d+)_([qkvo])_(lora_[AB])", short):
        layer, name, half = found.groups()
        return f"{inner}layers.{layer}.self_attn.{name}_proj.{half}.default.weight"
    modules = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    leaves = {"w": "weight", "b": "bias"}
    if found := re.fullmatch(r"([au])(\d+)_(.+)_([wb])", short):
        family, block, name, leaf = found.groups()
        return f"{inner}audio_encoder.blocks_{family}.{block}.{modules.get(name, name)}.{leaves[leaf]}"
    if found := re.fullmatch(r"(audio_proj|patch_embed|patch_embed_a|norm_a)_([wb])", short):
        name = {"audio_proj": "audio_proj.1", "norm_a": "audio_encoder.norm_a"}.get(
            found[1], "audio_encoder.patch_embed_a.proj"
        )
        return f"{inner}{name}.{leaves[found[2]]}"
    return f"{inner}audio_encoder.{short}"


_COMPUTED: list[Computed] = [
    (r"enc_out", _Results.enc_out, TOLERANCE),
    (r"enc_zero_fbank_probe", _Results.enc_zero, TOLERANCE),
    (r"enc_block_probe", _Results.blocks, TOLERANCE),
    (r"patch_embed_probe", _Results.patches, TOLERANCE),
    (r"pooled", _Results.pooled, TOLERANCE),
    (r"pooled_div\d+", _Results.divided, TOLERANCE),
    (r"pooled_layernorm", _Results.normalised, TOLERANCE),
    (r"audio_tokens", _Results.audio_tokens, TOLERANCE),
    (r"logits", _Results.logits, TOLERANCE),
    (r"logits_textonly", _Results.logits_text_only, TOLERANCE),
    (r"logits_nomask_row(\d+)", _Results.logits_without_mask, TOLERANCE),
    (r"loss(_\w+)?", _Results.loss, TOLERANCE),
    (r"llama_layer_probe", _Results.layers, TOLERANCE),
    (r"grad_(\w+)", _Results.gradient, GRADIENT),
    (r"gen_ids_(\d+)", lambda r, row: r.generation(row)[0], None),
    (r"gen_step_(\d+)_logits", lambda r, row: r.generation(row)[1], TOLERANCE),
    (r"gen_ids_rep(\d+)_(\d+)", lambda r, penalty, row: r.generation(row, penalty)[0], None),
    (r"gen_step_rep(\d+)_(\d+)_logits", lambda r, penalty, row: r.generation(row, penalty)[1], TOLERANCE),
    (r"gen_ids_textonly_(\d+)", lambda r, row: r.generation(row, heard=False)[0], None),
    (r"warped_scores_step(\d+)_prompt(\d+)", _Results.warped, TOLERANCE),
]
