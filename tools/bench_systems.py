"""LTU's training step and its generation, against the same written with PyTorch: `transformers`' LLaMA and AST, `peft`.

Both sides hold random weights of one shape and read the same numbers. Spectrograms are given: `bench_parts.py` has the
front end. On a CPU the models are small and all is float32; on a GPU frozen weights and activations are bfloat16 on
both sides, what trains is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bench_cases import on_cpu

TRAINED = ("encoder.*", "aligner.*", "*.lora_?")


@dataclass(frozen=True)
class Side:
    """A way to do a piece of work, set up on the device.

    Attributes:
        run: does it and waits for its end; gives the seconds of its parts, or None where all its time counts.
        bytes: the most memory that a run takes, asked after the last; None where that cannot be told.
        flops: that a run has to do; None where they are not counted.
    """

    run: Callable[[], dict[str, float] | None]
    bytes: Callable[[], int | None] = lambda: None
    flops: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class System:
    """Two ways to do a piece of work: a row of the table for each of its parts.

    Attributes:
        name: unique in its bench. ours, theirs: set a side up.
        work: how much of `unit` a run does; without a unit the report has no rates.
        note: what a reader has to know beside the name.
    """

    name: str
    ours: Callable[[], Side]
    theirs: Callable[[], Side]
    work: int = 1
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Shape:
    """Rows of one clip and some text, in LTU over a decoder that has a name in tables."""

    name: str
    decoder: Any
    encoder: Any
    rows: int
    text: int

    @property
    def title(self) -> str:
        return f"LTU over {self.name}, {self.rows} rows of {self.tokens} tokens"

    @property
    def tokens(self) -> int:
        return self.config.audio_tokens + self.text

    @property
    def config(self) -> Any:
        from alm_jax.models.ltu import LORA, ltu

        return ltu(replace(self.decoder, lora=replace(LORA, dropout=0.0)), self.encoder)


def train_step() -> Iterator[System]:
    """LTU's later stages: encoder, aligner and LoRA train, the language model is frozen."""
    for shape in shapes(rows=4 if on_cpu() else 16, text=96):
        sides = partial(_our_training, shape), partial(_their_training, shape)
        yield System(shape.title, *sides, shape.rows * shape.tokens, "tokens")


def generation() -> Iterator[System]:
    """Greedy answers of 32 tokens after a clip and a question; the clip is encoded each time."""
    for shape in shapes(rows=4, text=32):
        sides = partial(_our_answers, shape), partial(_their_answers, shape)
        yield System(shape.title, *sides, shape.rows * NEW, "new tokens")


NEW = 32


def shapes(rows: int, text: int) -> list[Shape]:
    """Of LTU, small ones on a CPU."""
    from alm_jax.models.encoders.cav_mae import CavMaeConfig
    from alm_jax.models.registry import named_config

    small = on_cpu()
    names = ("smollm2_135m", "smollm2_360m") if small else ("smollm2_135m", "tinyllama_1.1b", "vicuna_7b")
    encoder = CavMaeConfig(frames=512, dim=192, heads=3, depth=4) if small else CavMaeConfig()
    return [Shape(name, named_config(name), encoder, rows, text) for name in names]


def _numbers(shape: Shape) -> tuple[Any, Any]:
    """Spectrograms [B, frames, mels] and ids [B, text]."""
    import numpy as np

    rng = np.random.default_rng(0)
    config = shape.config
    audio = rng.standard_normal((shape.rows, config.encoder.frames, config.encoder.mels), np.float32)
    return audio, rng.integers(3, config.decoder.vocab_size, (shape.rows, shape.text))


def _compute() -> str:
    """Dtype of activations and frozen weights."""
    return "float32" if on_cpu() else "bfloat16"


def _our_model(shape: Shape, trainable: tuple[str, ...]) -> tuple[Any, Callable[[], tuple[Any, Any]]]:
    """(abstract model, function that makes its trained and its frozen arrays)."""
    like, (trained, frozen) = abstract_model(shape, trainable)
    return like, lambda: (drawn(trained, "float32"), drawn(frozen, _compute()))


def abstract_model(shape: Shape, trainable: tuple[str, ...]) -> tuple[Any, tuple[Any, Any]]:
    """(model, its trained and its frozen leaves by path), from shapes alone."""
    from alm_jax.core import tree
    from alm_jax.models.alm import build

    like = tree.abstract(lambda key: build(shape.config, key))
    return like, tree.split(tree.flatten(like), trainable)


def drawn(leaves: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Small normal numbers, around 1 for scales of norms; a whole model's initializers would take long to compile."""
    import jax

    values = {}
    for path, key in zip(leaves, jax.random.split(jax.random.key(0), len(leaves))):
        value = 0.02 * jax.random.normal(key, leaves[path].shape, dtype)
        values[path] = 1 + value if path.endswith("scale") else value
    return values


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


def our_step(shape: Shape) -> tuple[Any, Callable[[], tuple[Any, Any, Any]]]:
    """(compile-on-call training step as runs have it, function that makes its state, frozen weights and batch)."""
    import jax

    from alm_jax.core.precision import Precision
    from alm_jax.train.optim import OptimConfig, make_optimizer
    from alm_jax.train.state import create_state
    from alm_jax.train.step import make_step

    like, make = _our_model(shape, TRAINED)
    optimizer = make_optimizer(OptimConfig(1e-4, "constant"), 100)

    def arguments() -> tuple[Any, Any, Any]:
        params, frozen = make()
        return create_state(params, optimizer, jax.random.key(1)), frozen, _our_batch(shape, answers=True)

    return make_step(like, optimizer, Precision(compute=_compute())), arguments


def _our_training(shape: Shape) -> Side:
    import jax

    from alm_jax.train.traced import work

    step, make = our_step(shape)
    state, frozen, batch = jax.device_put(make())
    held = {"state": state}

    def run() -> None:
        held["state"], metrics = step(held["state"], frozen, batch)
        float(metrics["loss"])

    def planned() -> int:
        return bytes_of(step.lower(held["state"], frozen, batch).compile().memory_analysis())

    return Side(run, planned, lambda: work(step.trace(held["state"], frozen, batch).jaxpr.jaxpr).flops)


def bytes_of(memory: Any) -> int:
    """Arguments, results and temporaries that a compiled function takes, as its compiler plans."""
    kinds = ("argument", "output", "temp")
    return sum(getattr(memory, f"{kind}_size_in_bytes") for kind in kinds) - memory.alias_size_in_bytes


def _our_answers(shape: Shape) -> Side:
    import jax

    from alm_jax.core import tree
    from alm_jax.infer.generate import generate

    like, make = _our_model(shape, ())
    model = tree.unflatten(like, make()[1])
    batch = _our_batch(shape, answers=False)

    def run() -> None:
        generate(model, batch, max_new_tokens=NEW, dtype=jax.numpy.dtype(_compute()))

    return Side(run)


def torch_device() -> str:
    """Where PyTorch computes what JAX computes on its own device.

    Raises:
        UsageError: it has no such device.
    """
    import jax
    import torch

    from alm_jax.core.errors import UsageError

    if on_cpu():
        return "cpu"
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise UsageError(
        f"JAX computes on {jax.devices()[0].device_kind}, which this PyTorch does not: set JAX_PLATFORMS=cpu or "
        "install a PyTorch for it"
    )


def _their_model(shape: Shape) -> tuple[Any, Any, Any]:
    """(encoder and aligner, LLaMA with LoRA, device)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import ASTConfig, ASTModel, AutoModelForCausalLM, LlamaConfig

    from alm_jax.convert.llama import to_hf_config

    config, encoder = shape.config, shape.config.encoder
    device = torch_device()
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


def their_step(shape: Shape) -> tuple[Callable[[], Any], str]:
    """(function that does a training step and gives its loss, on a GPU before it is done; the device)."""
    import torch

    listener, decoder, device = _their_model(shape)
    audio, ids = _their_batch(shape, device)
    silent = torch.full((shape.rows, shape.tokens - shape.text), -100, device=device)
    labels = torch.cat([silent, ids], 1)
    trained = [p for model in (listener, decoder) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)

    def step() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            text = decoder.get_input_embeddings()(ids)
            embeddings = torch.cat([listener(audio).to(text.dtype), text], 1)
            loss = decoder(inputs_embeds=embeddings, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step, device


def _their_training(shape: Shape) -> Side:
    import torch

    step, device = their_step(shape)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def run() -> None:
        step().item()

    return Side(run, torch.cuda.max_memory_allocated if device == "cuda" else lambda: None)


def _their_answers(shape: Shape) -> Side:
    import torch

    listener, decoder, device = _their_model(shape)
    audio, ids = _their_batch(shape, device)
    lengths = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False}

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            text = decoder.get_input_embeddings()(ids)
            embeddings = torch.cat([listener(audio).to(text.dtype), text], 1)
            mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=device)
            decoder.generate(inputs_embeds=embeddings, attention_mask=mask, **lengths).tolist()

    return Side(run)


SYSTEMS = {"train_step": train_step, "generation": generation}
