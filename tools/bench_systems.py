"""LTU's training step and its generation, against the same written with PyTorch: `transformers`' LLaMA and AST, `peft`.

Both sides hold random weights of one shape and read the same numbers. Spectrograms are given: `bench_input.py` has the
front end. On a CPU the models are small and all is float32; on a GPU frozen weights and activations are bfloat16 on
both sides, what trains is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

Run = Callable[[], Any]


@dataclass(frozen=True)
class System:
    """A row of the table: two ways to do a piece of work.

    Attributes:
        name: unique in its bench. work: how much of `unit` a run does.
        ours, theirs: set it up, on the device; the function that they return does the work and waits for its end.
    """

    name: str
    work: int
    unit: str
    ours: Callable[[], Run]
    theirs: Callable[[], Run]


@dataclass(frozen=True)
class Shape:
    """Rows of one clip and some text."""

    decoder: str
    encoder: Any
    rows: int
    text: int

    @property
    def name(self) -> str:
        return f"LTU over {self.decoder}, {self.rows} rows of {self.tokens} tokens"

    @property
    def tokens(self) -> int:
        return self.config.audio_tokens + self.text

    @property
    def config(self) -> Any:
        from alm_jax.models.ltu import LORA, ltu
        from alm_jax.models.registry import named_config

        return ltu(replace(named_config(self.decoder), lora=replace(LORA, dropout=0.0)), self.encoder)


def train_step() -> Iterator[System]:
    """LTU's later stages: encoder, aligner and LoRA train, the language model is frozen."""
    for shape in _shapes(rows=4, text=96):
        work = shape.rows * shape.tokens
        yield System(shape.name, work, "tokens", partial(_our_step, shape), partial(_their_step, shape))


def generation() -> Iterator[System]:
    """Greedy answers of 32 tokens after a clip and a question; the clip is encoded each time."""
    for shape in _shapes(rows=4, text=32):
        ours, theirs = partial(_our_answers, shape), partial(_their_answers, shape)
        yield System(shape.name, shape.rows * NEW, "new tokens", ours, theirs)


NEW = 32


def _shapes(rows: int, text: int) -> list[Shape]:
    import jax

    from alm_jax.models.encoders.cav_mae import CavMaeConfig

    if jax.default_backend() == "cpu":
        return [Shape("smollm2_135m", CavMaeConfig(frames=512, dim=192, heads=3, depth=4), rows, text)]
    return [Shape(name, CavMaeConfig(), rows, text) for name in ("smollm2_135m", "vicuna_7b")]


def _numbers(shape: Shape) -> tuple[Any, Any]:
    """Spectrograms [B, frames, mels] and ids [B, text]."""
    import numpy as np

    rng = np.random.default_rng(0)
    config = shape.config
    audio = rng.standard_normal((shape.rows, config.encoder.frames, config.encoder.mels), np.float32)
    return audio, rng.integers(3, config.decoder.vocab_size, (shape.rows, shape.text))


def _our_model(shape: Shape, trainable: tuple[str, ...]) -> tuple[Any, Any, Any, Any]:
    """(abstract model, trainable, frozen arrays, dtype)."""
    import jax
    import jax.numpy as jnp

    from alm_jax.core import tree
    from alm_jax.models.alm import build

    small = jax.default_backend() == "cpu"
    frozen_dtype = jnp.float32 if small else jnp.bfloat16
    like = tree.abstract(lambda key: build(shape.config, key))
    is_trained = tree.split(tree.flatten(like), trainable)[0].keys()

    @jax.jit
    def make(key: jax.Array):
        arrays = tree.flatten(build(shape.config, key))
        return {path: leaf if path in is_trained else leaf.astype(frozen_dtype) for path, leaf in arrays.items()}

    params, frozen = tree.split(make(jax.random.key(0)), trainable)
    return like, params, frozen, frozen_dtype


def _our_batch(shape: Shape, answers: bool) -> Any:
    import jax.numpy as jnp
    import numpy as np

    from alm_jax.core.sequence import Row, collate

    audio, ids = _numbers(shape)
    heard = np.arange(shape.config.audio_tokens)
    index = np.concatenate([heard, np.full(shape.text, -1)])
    rows = []
    for row in ids:
        tokens = np.concatenate([np.zeros_like(heard), row])
        weight = (index < 0) & answers
        weight[-1] = False  # nothing comes after it
        rows.append(Row(tokens, index, np.full_like(index, -1), np.roll(tokens, -1), weight, index >= 0, (0,)))
    batch = collate(rows, shape.tokens, slots=1, pad="right" if answers else "left")
    batch.audio = jnp.asarray(audio[:, None])
    return batch


def _our_step(shape: Shape) -> Run:
    import jax

    from alm_jax.core.precision import Precision
    from alm_jax.train.optim import OptimConfig, make_optimizer
    from alm_jax.train.state import create_state
    from alm_jax.train.step import make_step

    like, params, frozen, dtype = _our_model(shape, ("encoder.*", "aligner.*", "*.lora_?"))
    optimizer = make_optimizer(OptimConfig(1e-4, "constant"), 100)
    held = {"state": create_state(params, optimizer, jax.random.key(1))}
    step = make_step(like, optimizer, Precision(compute=str(jax.numpy.dtype(dtype))))
    batch = jax.device_put(_our_batch(shape, answers=True))

    def run() -> float:
        held["state"], metrics = step(held["state"], frozen, batch)
        return float(metrics["loss"])

    return run


def _our_answers(shape: Shape) -> Run:
    from alm_jax.core import tree
    from alm_jax.infer.generate import generate

    like, params, frozen, dtype = _our_model(shape, ())
    model = tree.unflatten(like, {**frozen, **params})
    batch = _our_batch(shape, answers=False)
    return lambda: generate(model, batch, max_new_tokens=NEW, dtype=dtype)


def _their_model(shape: Shape) -> tuple[Any, Any, Any]:
    """(encoder and aligner, LLaMA with LoRA, device)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import ASTConfig, ASTModel, AutoModelForCausalLM, LlamaConfig

    from alm_jax.convert.llama import to_hf_config

    config, encoder = shape.config, shape.config.encoder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"hidden_size": encoder.dim, "num_hidden_layers": encoder.depth, "num_attention_heads": encoder.heads}
    strides = {"patch_size": 16, "frequency_stride": 16, "time_stride": 16}
    lengths = {"max_length": encoder.frames, "num_mel_bins": encoder.mels, "intermediate_size": 4 * encoder.dim}

    class Listener(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = ASTModel(ASTConfig(**sizes, **strides, **lengths))
            self.norm = torch.nn.LayerNorm(encoder.dim, elementwise_affine=False)
            self.proj = torch.nn.Linear(encoder.dim, config.decoder.dim)

        def forward(self, audio):
            mels, steps = encoder.grid
            x = self.encoder(audio).last_hidden_state[:, 2:].unflatten(1, (mels, steps)).mean(1)
            x = x.unflatten(1, (config.audio_tokens, -1)).mean(2)
            return self.proj(self.norm(x / 50))

    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        decoder = AutoModelForCausalLM.from_config(LlamaConfig(**to_hf_config(config.decoder)), dtype=dtype)
        listener = Listener()
    lora = config.decoder.lora
    targets = [f"{target.removeprefix('attn.')}_proj" for target in lora.targets]
    adapted = get_peft_model(decoder, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets))
    return listener, adapted, device


def _their_batch(shape: Shape, device: str) -> tuple[Any, Any]:
    import torch

    audio, ids = _numbers(shape)
    return torch.from_numpy(audio).to(device), torch.from_numpy(ids).to(device)


def _their_step(shape: Shape) -> Run:
    import torch

    listener, decoder, device = _their_model(shape)
    audio, ids = _their_batch(shape, device)
    silent = torch.full((shape.rows, shape.tokens - shape.text), -100, device=device)
    labels = torch.cat([silent, ids], 1)
    trained = [p for model in (listener, decoder) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)

    def run() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            text = decoder.get_input_embeddings()(ids)
            loss = decoder(inputs_embeds=torch.cat([listener(audio).to(text.dtype), text], 1), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def _their_answers(shape: Shape) -> Run:
    import torch

    listener, decoder, device = _their_model(shape)
    audio, ids = _their_batch(shape, device)
    lengths = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False}

    @torch.inference_mode()
    def run() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            text = decoder.get_input_embeddings()(ids)
            embeddings = torch.cat([listener(audio).to(text.dtype), text], 1)
            mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=device)
            return decoder.generate(inputs_embeds=embeddings, attention_mask=mask, **lengths).tolist()

    return run


SYSTEMS: dict[str, Callable[[], Iterator[System]]] = {"train_step": train_step, "generation": generation}
