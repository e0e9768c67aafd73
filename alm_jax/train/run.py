"""Reading a run: the model that a training came to, complete."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError
from alm_jax.core.mesh import MeshConfig, make_mesh
from alm_jax.core.precision import Precision, default_precision
from alm_jax.core.tree import Arrays
from alm_jax.models.alm import AlmConfig
from alm_jax.train.checkpoint import RunFolder, Source
from alm_jax.train.config import Experiment, Stage, experiment_of
from alm_jax.train.weights import StageModel, random_values, restore


@dataclass(frozen=True)
class Run:
    """A run's model.

    Attributes:
        path: the run's folder; `path / "tokenizer"` holds the tokenizer.
        experiment, stage: what was trained, and the stage whose checkpoint this is. step: of the checkpoint.
        model: the parts, encoder included. arrays: `{path: array}` of all parameters: trained, carried and pretrained.
        sources: where the pretrained ones came from.
    """

    path: Path
    experiment: Experiment
    stage: Stage
    step: int
    model: AlmConfig
    arrays: Arrays
    sources: tuple[Source, ...]


def untrained(run: Run) -> Run:
    """The run's model before its first step: what any stage trains is as random as it was then."""
    patterns = [pattern for stage in run.experiment.stages for pattern in stage.trainable]
    paths = [path for path in run.arrays if tree.matches(path, patterns)]
    model = StageModel(run.model, run.stage, make_mesh(MeshConfig()), Precision("float32", "float32"))
    return replace(run, arrays=run.arrays | random_values(run.experiment, model, paths))


def load_run(
    path: str | Path,
    which: Literal["last", "best"] = "last",
    *,
    mesh: MeshConfig = MeshConfig(),
    precision: Precision | None = None,
) -> Run:
    """The model of the latest stage that has a checkpoint.

    Args:
        which: the latest checkpoint, or the one with the lowest validation loss (the latest if none was validated).
        mesh, precision: where and as what the parameters are held; trained ones are float32.

    Raises:
        CheckpointError: no run, nothing trained yet, damaged, or a source that cannot be found.
    """
    run = RunFolder.open(Path(path))
    experiment = experiment_of(run.config(), run.path)
    folders = [run.stage(index, stage.name) for index, stage in enumerate(experiment.stages)]
    trained = [index for index, folder in enumerate(folders) if folder.begun and folder.steps()]
    if not trained:
        raise CheckpointError(f"{run.path} has no checkpoint yet: train it further")
    index = trained[-1]
    folder, stage = folders[index], experiment.stages[index]
    best = folder.best() if which == "best" else None
    step = folder.steps()[-1] if best is None else best
    config = experiment.stage_model(stage)
    model = StageModel(config, stage, make_mesh(mesh), precision or default_precision())
    weights = folder.weights(step, {path: leaf for path, leaf in model.target.items() if path in model.trained})
    arrays = restore(experiment, index, folder, model).frozen | weights
    return Run(run.path, experiment, stage, step, config, arrays, tuple(folder.sources()))
