"""Short runs of `ltu/tiny`, here or (`python -m tests.train.runs OUT STAGES JSON [--resume]`) in their own process."""

import json
import sys
from dataclasses import replace

from alm_jax.core.config import apply_overrides, load_config_file
from alm_jax.core.errors import AlmError
from alm_jax.train.config import Experiment

EXACT = ("stage", "step", "loss", "learning_rate", "grad_norm", "validation_loss")


def short(stages: int = 2, **overrides) -> Experiment:
    """Two stages of six steps on sixteen scenes of two seconds, saved every other step, with dropout."""
    base = load_config_file("ltu/tiny").get_config()
    settings = {
        "loop.checkpoint_every": 2,
        "loop.tensorboard": False,
        "model.encoder.frames": 192,
        "model.frontend.frames": 192,
        "model.aligner.grid": (8, 12),
    }
    for i in range(2):
        scenes = {"n": 16, "scene.seconds": 2.0, "scene.event_seconds": 1.0}
        settings |= {f"stages.{i}.data.sources.0.{k}": v for k, v in scenes.items()}
        settings |= {f"stages.{i}.validation.data.sources.0.{k}": v for k, v in (scenes | {"n": 4}).items()}
        settings |= {f"stages.{i}.steps": 6, f"stages.{i}.validation.every": 3, f"stages.{i}.optim.warmup_steps": 2}
    # Fields that only fit together are changed at once, the others one after the other.
    experiment = apply_overrides(apply_overrides(base, settings), overrides)
    return replace(experiment, stages=experiment.stages[:stages])


def exact(rows):
    """What has to be the same however often a run was interrupted; the rest is timing."""
    return [{name: row[name] for name in EXACT if name in row} for row in rows]


def main(out: str, stages: str, overrides: str, *flags: str) -> int:
    from alm_jax.train.curriculum import train  # data workers import this module, too

    try:
        train(short(int(stages), **json.loads(overrides)), out, resume="--resume" in flags)
    except AlmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
