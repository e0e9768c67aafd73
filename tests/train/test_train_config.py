"""Experiments: what is refused before anything runs, and what a run's config.json gives back."""

import json
from dataclasses import replace

import config_text
import pytest
from jax.sharding import AbstractMesh

from alm_jax.core.config import apply_overrides, load_config_file, shipped_configs
from alm_jax.core.errors import CheckpointError, ConfigError
from alm_jax.core.mesh import MESH_AXES, make_mesh
from alm_jax.core.precision import FLOAT32
from alm_jax.data.composed import Scenes
from alm_jax.train.config import Experiment, Stage, Weights, check_same, experiment_of, run_config
from alm_jax.train.weights import StageModel

SHIPPED = sorted(path.relative_to(shipped_configs()).as_posix() for path in shipped_configs().rglob("*.py"))


def tiny() -> Experiment:
    return load_config_file("ltu/tiny").get_config()


def model_of(experiment: Experiment, stage: Stage) -> StageModel:
    return StageModel(experiment.stage_model(stage), stage, make_mesh(experiment.mesh), experiment.stage_precision())


@pytest.mark.parametrize("name", config_text.names())
def test_shipped_configs_are_as_recorded_and_come_back_from_json(name):
    experiment = load_config_file(name).get_config()
    stored = json.loads(json.dumps(run_config(experiment)))
    assert experiment_of(stored, "run") == experiment
    tables = config_text.tables(experiment)
    for lines in tables.values():
        assert {line[0] for line in lines} == {" ", "*"}, "nothing trains, or everything"
    recorded = config_text.path_of(name).read_text()
    assert config_text.text_of(experiment, tables) == recorded, "python tools/config_text.py, and read the diff"


@pytest.mark.parametrize("name", SHIPPED)
def test_variants_of_shipped_configs_make_models(name):
    file = load_config_file(name)
    for overrides in file.sweep():
        experiment = apply_overrides(file.get_config(), overrides)
        assert all(model_of(experiment, stage).trained for stage in experiment.stages)


def test_published_sizes():
    """Trainable parameters that LTU's README and LTU-AS's give (less norms of LTU that are never used), and those of
    MATS's code."""
    for name, stage, published, dead in (
        ("ltu/vicuna_7b", 0, 3_149_824, 0),
        # 11 blocks with norm{1,2}_{a,v} and one with norm{1,2} and norm{1,2}_v: 48 norms of 2 x 768 values.
        ("ltu/vicuna_7b", 1, 93_065_216, 48 * 2 * 768),
        ("ltu_as/vicuna_7b", 1, 48_793_600, 0),
        # MATS's mapper, projection and LoRA (its checkpoint has 2 x 1024 values of a norm that is never used).
        ("mats/vicuna_7b", 0, 109_199_360 + 4_198_400 + 4_194_304, 0),
        ("mats/audio", 0, 109_199_360 + 4_198_400 + 4_194_304, 0),
    ):
        experiment = load_config_file(name).get_config()
        model = model_of(experiment, experiment.stages[stage])
        assert sum(model.target[path].size for path in model.trained) == published - dead


def test_what_does_not_fit_together_is_refused():
    experiment = tiny()
    stage = experiment.stages[0]
    with pytest.raises(ConfigError, match="give steps or epochs, one of the two"):
        replace(stage, epochs=1.0)
    with pytest.raises(ConfigError, match="'read': steps is -3, epochs None; expected more than 0"):
        replace(stage, steps=-3)
    with pytest.raises(ConfigError, match=r"'read': steps is None, epochs 0.0; expected more than 0"):
        replace(stage, steps=None, epochs=0.0)
    for size in (0, 3, -8):
        with pytest.raises(ConfigError, match=f"'read': micro_batch {size} has to divide data.batch_size 8"):
            replace(stage, micro_batch=size)
        with pytest.raises(ConfigError, match=f"'read': loss_group {size} has to divide data.batch_size 8"):
            replace(stage, loss_group=size)
    with pytest.raises(ConfigError, match=r"validation.every is 0; expected at least 1 step"):
        replace(stage.validation, every=0)
    with pytest.raises(ConfigError, match="objective 'clap'; expected next_token"):
        replace(stage, objective="clap")
    with pytest.raises(ConfigError, match="each with its own name"):
        replace(experiment, stages=(stage, stage))
    with pytest.raises(ConfigError, match="weights name 'previous'"):
        replace(experiment, weights=(Weights("*", "previous"),))
    with pytest.raises(ConfigError, match="trainable is empty"):
        replace(stage, trainable=())
    with pytest.raises(ConfigError, match="clap; expected some of"):
        Scenes(3, kinds=("clap",))
    with pytest.raises(ConfigError, match=r"Scenes.n is 0; expected at least 1 scene"):
        Scenes(0)
    with pytest.raises(ConfigError, match=r"Scenes.seed is -1; expected 0 or more"):
        Scenes(1, seed=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("warmup_steps", -1),
        ("first_rate", 1.0),
        ("final_rate", -1e-9),
        ("epoch_steps", 0),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("clip_norm", 0.0),
    ],
)
def test_optimiser_values_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"optim\.{name} is .*; expected "):
        replace(tiny().stages[0].optim, **{name: value})


def test_patterns_that_fit_nothing_and_cached_training_encoders_are_refused():
    experiment = tiny()
    stage = replace(experiment.stages[1], trainable=("enc.*",))
    with pytest.raises(ConfigError, match=r"stage 'all', trainable: patterns \['enc.\*'\] fit no parameter"):
        _ = model_of(experiment, stage).target
    stage = replace(experiment.stages[1], features="cached")
    with pytest.raises(ConfigError, match=r"stage 'all' caches encoder features but trains encoder\.blocks"):
        _ = model_of(experiment, stage).target


@pytest.mark.parametrize(
    ("sizes", "changes", "match"),
    [
        ((3, 1, 1, 1), {}, "data.batch_size 8 is not a multiple of the 3 devices along data and fsdp: set it to"),
        ((2, 4, 1, 1), {"stages.read.micro_batch": 4}, "'read': micro_batch 4 is not a multiple of the 8 devices"),
        ((4, 1, 1, 1), {"stages.read.validation.data.batch_size": 6}, "'read': validation.data.batch_size 6 is not"),
        ((1, 1, 5, 1), {}, r"mesh.context 5 does not divide rows of 112 positions \(data.buckets\): set buckets to m"),
        ((1, 1, 1, 8), {}, "'read': mesh.tensor 8 does not divide model.decoder.heads 4: set mesh.tensor to a divisor"),
        ((1, 1, 1, 2), {"model.decoder.vocab_size": 511}, "does not divide .*decoder.head.kernel .* take mesh.fsdp"),
    ],
)
def test_meshes_that_divide_no_batch_no_heads_or_no_parameter_are_refused(sizes, changes, match):
    experiment = apply_overrides(tiny(), changes)
    stage = experiment.stages[0]
    model = StageModel(experiment.stage_model(stage), stage, AbstractMesh(sizes, MESH_AXES), FLOAT32)
    with pytest.raises(ConfigError, match=match):
        model.check_batches()
        _ = model.target


def test_objectives_over_the_batch_take_it_whole():
    stage = replace(tiny().stages[0], loss_group="batch", objective="audio_text_alignment")
    assert replace(stage, loss_group=8, micro_batch=2)
    with pytest.raises(ConfigError, match=r"compares all 8 rows of a batch; loss_group is 4: leave it out"):
        replace(stage, loss_group=4)
    with pytest.raises(ConfigError, match=r"needs data.batch_size 2 or more"):
        replace(stage, data=replace(stage.data, batch_size=1))


def test_text_for_the_aligner_and_its_tokenizer_go_together():
    experiment = tiny()
    with pytest.raises(ConfigError, match=r"asks for text for the aligner, and aligner_tokenizer is None"):
        replace(experiment, layout=replace(experiment.layout, aligner_text_tokens=8))
    with pytest.raises(ConfigError, match=r"aligner_tokenizer is given, and layout.aligner_text_tokens is 0"):
        replace(experiment, aligner_tokenizer="bert")


def test_steps_come_from_epochs():
    stage = replace(tiny().stages[0], steps=None, epochs=1.5)
    assert stage.total_steps(10) == 15
    assert replace(stage, epochs=0.01).total_steps(10) == 1


def test_stage_overrides_change_the_model_of_that_stage_alone():
    experiment = tiny()
    first, second = map(experiment.stage_model, experiment.stages)
    assert first.decoder.lora is None and second.decoder.lora is not None


def test_a_resumed_run_has_the_same_experiment():
    experiment = tiny()
    free = {"loop.keep": 5, "mesh.fsdp": 2, "stages.read.data.workers": 3}
    check_same(experiment, apply_overrides(experiment, free))
    changed = apply_overrides(experiment, {"stages.read.steps": 7, "stages.all.optim.learning_rate": 1.0})
    with pytest.raises(ConfigError, match=r"stages.0.steps was 60, is 7; stages.1.optim.learning_rate was 0.001, is 1"):
        check_same(experiment, changed)


def test_configs_of_a_later_version_say_what_they_hold():
    stored = run_config(tiny())
    stored["experiment"]["@type"] = "Hyperexperiment"
    with pytest.raises(CheckpointError, match="unknown class 'Hyperexperiment'"):
        experiment_of(stored, "run")
    with pytest.raises(CheckpointError, match=r"config.json holds no experiment"):
        experiment_of({}, "run")
    stored = run_config(tiny())
    stored["experiment"]["model"]["decoder"]["dim"] = 32
    with pytest.raises(
        CheckpointError, match=r"run: config.json does not fit together: .* differs from decoder.dim 32"
    ):
        experiment_of(stored, "run")
