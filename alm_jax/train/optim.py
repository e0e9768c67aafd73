"""Optimisers and learning-rate schedules, with the semantics of PyTorch and the Hugging Face trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alm_jax.core.errors import ConfigError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with clipping by global norm; defaults are LTU's (finetune.py, LTU stages 2 to 4).

    Attributes:
        learning_rate: the base rate, reached after the warm-up.
        schedule: after the warm-up `linear` decay to `final_rate`, half a `cosine`, or `constant`.
        warmup_steps: updates over which the rate grows linearly from `first_rate`, that of the first update.
        first_rate, final_rate: where the warm-up begins and the decay ends.
        epoch_steps: None decays at each update after the warm-up; else the rate falls every so many updates, by the
            share of all steps, warm-up included, that is done, and stands still between (LAVIS's
            `linear_warmup_cosine`; with 1, MATS's).
        betas, eps, weight_decay: AdamW; the decay is decoupled. no_decay: patterns of parameters that it spares.
        clip_norm: gradients are scaled down to this global norm; None leaves them.
        lr_scale: `{path pattern: factor}` on the learning rate; the first pattern that fits a path counts.
    """

    learning_rate: float = 1e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 100
    first_rate: float = 0.0
    final_rate: float = 0.0
    epoch_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = ()
    clip_norm: float | None = 1.0
    lr_scale: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        expected = {
            "learning_rate": ("a number of 0 or more", self.learning_rate >= 0),
            "warmup_steps": ("0 or more", self.warmup_steps >= 0),
            "first_rate": ("from 0 to learning_rate", 0 <= self.first_rate <= self.learning_rate),
            "final_rate": ("from 0 to learning_rate", 0 <= self.final_rate <= self.learning_rate),
            "epoch_steps": ("None, or at least 1", self.epoch_steps is None or self.epoch_steps >= 1),
            "betas": ("two numbers from 0 to below 1", all(0 <= beta < 1 for beta in self.betas)),
            "eps": ("a number above 0", self.eps > 0),
            "weight_decay": ("a number of 0 or more", self.weight_decay >= 0),
            "clip_norm": ("a number above 0, or None", self.clip_norm is None or self.clip_norm > 0),
        }
        for name, (wanted, right) in expected.items():
            if not right:
                raise ConfigError(f"optim.{name} is {getattr(self, name)!r}; expected {wanted}")


class Optimizer(NamedTuple):
    """`transform` updates `{path: array}`; `schedule(updates done)` is the base rate of the next update."""

    transform: optax.GradientTransformation
    schedule: Callable[[jax.Array], jax.Array]


def make_optimizer(config: OptimConfig, total_steps: int) -> Optimizer:
    """The optimiser of a stage of `total_steps` updates; its trees are flat `{path: array}` dictionaries."""
    schedule = make_schedule(config, total_steps)
    b1, b2 = config.betas
    parts = [
        optax.scale_by_adam(b1, b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=_decayed(config.no_decay) if config.no_decay else None),
        optax.scale_by_learning_rate(schedule),
    ]
    if config.clip_norm is not None:
        parts.insert(0, clip_by_global_norm(config.clip_norm))
    if config.lr_scale:
        parts.append(_scale_by_path(config.lr_scale))
    return Optimizer(optax.chain(*parts), schedule)


def make_schedule(config: OptimConfig, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Rate of update k = 0, 1, ...: linear growth to the base over the warm-up, then the decay, which ends at T.

    By default as in `transformers.get_scheduler`, with `epoch_steps` as in LAVIS (`common/optims.py`).

    Raises:
        ConfigError: an unknown schedule.
    """
    warmup, base = config.warmup_steps, config.learning_rate
    begin, every = (warmup, 1) if config.epoch_steps is None else (0, config.epoch_steps)
    decays = {
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
        "constant": jnp.ones_like,
    }
    if config.schedule not in decays:
        raise ConfigError(f"optim.schedule is {config.schedule!r}; expected one of {', '.join(decays)}")
    decay = decays[config.schedule]

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((count - begin) // every * every / max(1, total_steps - begin), 0.0, 1.0)
        growing = config.first_rate + (base - config.first_rate) * count / max(1, warmup)
        falling = config.final_rate + (base - config.final_rate) * decay(progress)
        return jnp.where(count < warmup, growing, falling)

    return schedule


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`torch.nn.utils.clip_grad_norm_`: scale by min(1, max_norm / (norm + 1e-6)); optax's has no 1e-6."""

    def clip(updates, params=None):
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * scale, updates)

    return optax.stateless(clip)


def _decayed(spared: tuple[str, ...]) -> Callable[[dict[str, jax.Array]], dict[str, bool]]:
    return lambda params: {path: not any(fnmatchcase(path, pattern) for pattern in spared) for path in params}


def _scale_by_path(factors: dict[str, float]) -> optax.GradientTransformation:
    def update(updates, params=None):
        del params
        idle = [pattern for pattern in factors if not any(fnmatchcase(path, pattern) for path in updates)]
        if idle:
            raise ConfigError(f"optim.lr_scale patterns {idle} fit no trained parameter; trained are {_some(updates)}")
        return {path: leaf * _factor(path, factors) for path, leaf in updates.items()}

    return optax.stateless(update)


def _factor(path: str, factors: dict[str, float]) -> float:
    return next((factor for pattern, factor in factors.items() if fnmatchcase(path, pattern)), 1.0)


def _some(paths: Iterable[str], limit: int = 8) -> str:
    paths = list(paths)
    return ", ".join(paths[:limit]) + (" ..." if len(paths) > limit else "")
