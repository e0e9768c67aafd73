"""Where a stage's parameters come from: a run, the stage before, pretrained sources, or random numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alm_jax.convert import hub
from alm_jax.convert.formats import TensorFile, open_tensors
from alm_jax.convert.layouts import LAYOUTS, detect, kind_of
from alm_jax.convert.load import Beginning, fold, load, shapes_in
from alm_jax.core import mesh as meshes
from alm_jax.core import tree
from alm_jax.core.errors import CheckpointError, ConfigError
from alm_jax.core.precision import Precision
from alm_jax.core.tree import Arrays
from alm_jax.models.alm import AlmConfig, build
from alm_jax.models.clap_training import clap_config, is_clap, training_path
from alm_jax.models.quantized import quantize, quantized
from alm_jax.models.registry import PARTS
from alm_jax.train.batches import check_rows
from alm_jax.train.checkpoint import RunFolder, Source, StageFolder
from alm_jax.train.config import PREVIOUS, Experiment, Stage, Weights, experiment_of


@dataclass(frozen=True)
class StageModel:
    """A stage's whole model, encoder included, before any memory is taken for it.

    Attributes:
        config: its parts. stage: which parameters train. mesh, precision: where and as what they are held.
    """

    config: AlmConfig
    stage: Stage
    mesh: Mesh
    precision: Precision

    @cached_property
    def plain(self) -> Any:
        """The abstract module before anything of it is quantised."""
        return tree.abstract(lambda key: build(self.config, key))

    @cached_property
    def like(self) -> Any:
        """The abstract module, its kernels as they are held.

        Raises:
            ConfigError: they cannot be held so.
        """
        if not self.quantized:
            return self.plain
        return jax.eval_shape(lambda module: quantized(module, self.quantized, self.precision.decoder), self.plain)

    @cached_property
    def quantized(self) -> tuple[str, ...]:
        """Paths of the kernels that are held in fewer bits: what does not train in the decoder's blocks."""
        if self.precision.decoder is None:
            return ()
        kernels = [path for path in tree.variables(self.plain) if fnmatchcase(path, "decoder.blocks.*.kernel")]
        return tuple(path for path in kernels if path not in self.trained)

    @cached_property
    def trained(self) -> frozenset[str]:
        """Paths that train: those that fit the stage's patterns; constant tables never do.

        Raises:
            ConfigError: a pattern fits nothing, or cached features and a training encoder are asked for.
        """
        learnable = {path: v for path, v in tree.variables(self.plain).items() if isinstance(v, nnx.Param)}
        try:
            chosen, _ = tree.split(learnable, self.stage.trainable)
        except ConfigError as error:
            raise ConfigError(f"stage {self.stage.name!r}, trainable: {error}") from error
        if self.stage.features == "cached" and (clash := [path for path in chosen if path.startswith("encoder.")]):
            raise ConfigError(
                f"stage {self.stage.name!r} caches encoder features but trains {', '.join(fold(clash)[:4])}: "
                "set features='live', or leave the encoder out of trainable"
            )
        return frozenset(chosen)

    @cached_property
    def given(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, dtype and sharding of every parameter as sources give it: what trains is float32, the rest as the
        precision says; nothing is quantised.

        Raises:
            ConfigError: the mesh does not divide the parameters or the decoder's heads.
        """
        self._check_heads()
        return self._described(self.plain)

    def _check_heads(self) -> None:
        tensor = self.mesh.shape[meshes.TENSOR]
        for name in ("heads", "kv_heads"):
            if (heads := getattr(self.config.decoder, name, tensor)) % tensor:
                raise ConfigError(
                    f"stage {self.stage.name!r}: mesh.tensor {tensor} does not divide model.decoder.{name} {heads}: "
                    "set mesh.tensor to a divisor"
                )

    def check_batches(self) -> None:
        """
        Raises:
            ConfigError: the mesh does not divide the rows of a batch or their lengths.
        """
        stage, context = f"stage {self.stage.name!r}", self.mesh.shape[meshes.CONTEXT]
        held_out = self.stage.validation
        for name, data in [("data", self.stage.data)] + ([("validation.data", held_out.data)] if held_out else []):
            check_rows(self.mesh, f"{stage}: {name}.batch_size", data.batch_size)
            if odd := [length for length in data.buckets if length % context]:
                raise ConfigError(
                    f"{stage}: mesh.context {context} does not divide rows of {odd[0]} positions ({name}.buckets): set "
                    f"buckets to multiples of {context}, or mesh.context to a divisor"
                )
        if self.stage.micro_batch is not None:
            check_rows(self.mesh, f"{stage}: micro_batch", self.stage.micro_batch)

    @cached_property
    def target(self) -> dict[str, jax.ShapeDtypeStruct]:
        """As `given`, of parameters as they are held: `X.kernel.codes` and `X.kernel.scale` where quantised."""
        return self._described(self.like) if self.quantized else self.given

    def _described(self, module: Any) -> dict[str, jax.ShapeDtypeStruct]:
        places, result = meshes.shardings(module, self.mesh), {}
        for path, leaf in tree.flatten(module).items():
            as_it_is = not jnp.issubdtype(leaf.dtype, jnp.floating) or path.rpartition(".")[0] in self.quantized
            dtype = jnp.float32 if path in self.trained else (leaf.dtype if as_it_is else self.precision.frozen)
            result[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=places[path])
        return result

    def hold(self, path: str, leaf: Any) -> Any:
        """A parameter in the dtype that is `given`; of one that is quantised its `{"codes", "scale"}`."""
        if isinstance(leaf, dict):
            return leaf
        wanted = self.given[path]
        leaf = leaf if leaf.dtype == wanted.dtype else leaf.astype(wanted.dtype)
        if path not in self.quantized:
            return leaf
        places = {name: self.target[f"{path}.{name}"].sharding for name in ("codes", "scale")}
        return jax.jit(quantize, static_argnums=1, out_shardings=places)(leaf, self.precision.decoder)

    @property
    def shardings(self) -> dict[str, NamedSharding]:
        """Of every parameter."""
        return {path: leaf.sharding for path, leaf in self.target.items()}

    def reader(self) -> StageModel:
        """The same without its encoder, for batches that hold features."""
        return replace(self, config=replace(self.config, encoder=None))


@dataclass
class Start:
    """Parameters at the start of a stage.

    Attributes:
        params: what trains. frozen: the rest. carried: those of the rest that no pretrained source holds, in the
            precision that they came in. sources: of the others.
        origin: where each parameter came from, in words.
    """

    params: Arrays = field(default_factory=dict)
    frozen: Arrays = field(default_factory=dict)
    carried: Arrays = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)


def begin(experiment: Experiment, index: int, run: RunFolder, model: StageModel) -> Start:
    """The parameters before the first step: each from the first of the stage's and the experiment's sources that has
    it, else random.

    Raises:
        ConfigError: a previous stage's or run's parameter has no place here and is not dropped.
        CheckpointError: a source cannot be found, read or fitted.
    """
    stage, start, arrays = experiment.stages[index], Start(), {}
    for weights in (*stage.init_from, *experiment.weights):
        source = None
        if weights.source == PREVIOUS:
            if index == 0:
                continue
            before = experiment.stages[index - 1]
            name, given = f"stage {before.name}", _handed_over(run.stage(index - 1, before.name), weights, stage, model)
        elif (Path(weights.source).expanduser() / "config.json").is_file() and _is_run(weights.source):
            name, given = weights.source, _handed_over(_last_stage(Path(weights.source)), weights, stage, model)
        else:
            name = weights.source
            given, source = _pretrained(weights, model, lacking=model.given.keys() - arrays.keys())
            start.sources += [source] if source else []
        fresh = {path: leaf for path, leaf in given.items() if path not in arrays}
        if source is None:
            start.carried |= {path: leaf for path, leaf in fresh.items() if path not in model.trained}
        start.origin |= {path: name for path in fresh}
        arrays |= fresh
    short = [p for p, leaf in arrays.items() if not isinstance(leaf, dict) and leaf.shape != model.given[p].shape]
    scratch = random_values(experiment, model, [path for path in model.given if path not in arrays] + short)
    start.origin |= {path: "random" for path in scratch if path not in arrays}
    for path in short:  # what was added to a vocabulary
        scratch[path] = scratch[path].at[: len(arrays[path])].set(arrays[path].astype(scratch[path].dtype))
    start.carried |= {path: leaf for path, leaf in scratch.items() if path not in model.trained}
    return _divide(start, arrays | scratch, model)


def restore(experiment: Experiment, index: int, folder: StageFolder, model: StageModel) -> Start:
    """The frozen parameters of a stage that has begun: carried ones, and the rest from its pretrained sources.

    Raises:
        CheckpointError: a source is not what it was when the stage began.
    """
    start = Start()
    names = set(folder.carried_names())
    arrays = folder.carried({path: model.given[path] for path in names if path in model.given})
    known = {source.name: source for source in folder.sources()}
    done = arrays.keys() | model.trained
    for weights in (*experiment.stages[index].init_from, *experiment.weights):
        if weights.source not in known:
            continue
        given, source = _pretrained(weights, model, lacking=model.given.keys() - done)
        if source and source.sha256 != known[weights.source].sha256:
            raise CheckpointError(
                f"{weights.source} has changed since the run began ({folder.path / 'sources.json'}); restore the files "
                "that it names, or start a new run"
            )
        arrays |= {path: leaf for path, leaf in given.items() if path not in done}
        done = done | given.keys()
    if missing := [path for path in model.given if path not in done]:
        raise CheckpointError(f"{folder.path} does not hold {', '.join(fold(missing))}, and no source does")
    return _divide(start, arrays, model)


def _divide(start: Start, arrays: Arrays, model: StageModel) -> Start:
    """Parameters as they are held; `arrays` is emptied meanwhile, so that what was quantised is let go of."""
    for path in model.given:
        if path in arrays:
            held = model.hold(path, arrays.pop(path))
            if isinstance(held, dict):
                start.frozen |= {f"{path}.{name}": part for name, part in held.items()}
            else:
                (start.params if path in model.trained else start.frozen)[path] = held
    return start


def _handed_over(folder: StageFolder, weights: Weights, stage: Stage, model: StageModel) -> Arrays:
    """What a stage trained or carried, as far as `weights.path` asks for it."""
    step = folder.steps()[-1] if folder.steps() else None
    if step is None:
        raise CheckpointError(f"{folder.path} has no checkpoint to begin from; finish that stage first")
    trained, carried = folder.weight_names(step), folder.carried_names()
    called = {name: ours for name in (*trained, *carried) if (ours := _renamed(name, weights.names)) is not None}
    called = {name: ours for name, ours in called.items() if fnmatchcase(ours, weights.path)}
    homeless = [n for n, ours in called.items() if ours not in model.given and not tree.matches(ours, stage.drop)]
    if homeless:
        raise ConfigError(
            f"stage {stage.name!r}: {', '.join(fold(homeless))} of {folder.path} have no place in its model; name them "
            "in the stage's drop to leave them behind"
        )
    wanted = {}
    for name, ours in called.items():
        if ours in model.given and not tree.matches(ours, stage.drop):
            leaf = model.given[ours]
            wanted[name] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)
    first = {name: leaf for name, leaf in wanted.items() if name in set(trained)}
    given = folder.weights(step, first) | folder.carried({n: leaf for n, leaf in wanted.items() if n not in first})
    return {called[name]: leaf for name, leaf in given.items()}


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str | None:
    """What a parameter of a run is called here; None if it is not asked for."""
    if not names:
        return name
    return next((ours + name.removeprefix(theirs) for theirs, ours in names if name.startswith(theirs)), None)


def _is_run(path: str) -> bool:
    try:
        content = json.loads((Path(path).expanduser() / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "format" in content and "experiment" in content


def _last_stage(path: Path) -> StageFolder:
    run = RunFolder.open(path)
    stages = experiment_of(run.config(), path).stages
    folders = [run.stage(i, stage.name) for i, stage in enumerate(stages)]
    begun = [folder for folder in folders if folder.steps()]
    return begun[-1] if begun else folders[0]


def _pretrained(weights: Weights, model: StageModel, lacking: Iterable[str]) -> tuple[Arrays, Source | None]:
    """The parameters that a checkpoint fills; nothing is read if none of them is lacking."""
    lacking = set(lacking)
    mine = [path for path in model.given if fnmatchcase(path, weights.path)]
    if not mine:
        raise ConfigError(f"weights {weights.path!r} from {weights.source} fit no parameter of the model")
    if not any(path in lacking and not tree.matches(path, weights.init) for path in mine):
        return {}, None
    found = hub.resolve(weights.source)
    file = open_tensors(found.path)
    part, config = _part_of(model, weights.path)
    prefix = f"{part}." if part else ""
    given = _beginning(weights, file, config)
    sources = [(file, table) for table in given.tables]
    target = {path.removeprefix(prefix): model.given[path] for path in mine}
    held = shapes_in(file, given.tables[0]) if given.grows else {}
    for path in given.grows:
        if path in target and path in held and held[path].shape[0] < target[path].shape[0]:
            alike = NamedSharding(model.mesh, PartitionSpec())
            target[path] = jax.ShapeDtypeStruct(held[path].shape, target[path].dtype, sharding=alike)
    places = {path: leaf.sharding for path, leaf in target.items()}
    init = [*given.lacks, *(pattern.removeprefix(prefix) for pattern in weights.init)]
    hold = lambda path, leaf: model.hold(prefix + path, leaf) if prefix + path in model.quantized else leaf
    arrays = load(target, sources, shardings=places, init=init, hold=hold)
    source = Source(weights.source, found.revision or "", hub.hashes(file.path), (weights.path,))
    return {prefix + path: leaf for path, leaf in arrays.items()}, source


def _part_of(model: StageModel, pattern: str) -> tuple[str, Any]:
    """Path and config of the innermost part that a pattern of parameters names: `aligner.text.encoder.*`, `*`."""
    part, config, module, names = "", model.config, model.plain, pattern.split(".")
    for depth, name in enumerate(names[:-1], start=1):
        module = getattr(module, name, None)
        if type(own := getattr(module, "config", None)) in PARTS:
            part, config = ".".join(names[:depth]), own
    return part, config


def _beginning(weights: Weights, file: TensorFile, config: Any) -> Beginning:
    """How the tensors of a checkpoint make the parameters of the part with a config."""
    layout, whole = detect(file.keys()), detect(file.keys(), whole=True)
    listens = LAYOUTS[whole].listens
    if listens is not None and isinstance(config, listens[0]):  # one tower of a CLAP
        return Beginning((listens[1](config),))
    if (begins := LAYOUTS[layout].begins) is not None and isinstance(config, begins[0]):
        return begins[1](config)
    if is_clap(config) and isinstance(clap := clap_config(config), kind_of(whole)):
        table = LAYOUTS[whole].table(clap)
        rules = tuple(replace(rule, path=training_path(rule.path)) for rule in table.rules)
        return Beginning((replace(table, rules=rules),))
    if isinstance(config, kind_of(layout)):
        return Beginning((LAYOUTS[layout].table(config),))
    raise CheckpointError(
        f"{weights.source} has layout {layout}, which fits a {kind_of(layout).__name__}; {weights.path!r} is a "
        f"{type(config).__name__}"
    )


def random_values(experiment: Experiment, model: StageModel, paths: Sequence[str]) -> Arrays:
    """Fresh values `{path: array}` of some parameters, made where they lie; the same in every stage and on any mesh."""
    if not paths:
        return {}
    wanted = set(paths)

    def make(key: jax.Array) -> Arrays:
        return {path: leaf for path, leaf in tree.flatten(build(model.config, key)).items() if path in wanted}

    places = {path: leaf.sharding for path, leaf in model.given.items() if path in wanted}
    # Run once: on CPU, compiling is nearly all that it costs.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(make, out_shardings=places, compiler_options=options)(jax.random.key(experiment.seed))
