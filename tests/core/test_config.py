"""Overrides by path, the flat view, JSON, and config files, on small configs whose answers can be read off."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from alm_jax.core.config import apply_overrides, check_types, config_types, flat, from_json, load_config_file, to_json
from alm_jax.core.errors import CheckpointError, ConfigError


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True)
class Plain:
    dim: int = 8


@dataclass(frozen=True)
class Heads:
    dim: int = 8
    heads: int = 2

    def __post_init__(self):
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")


@dataclass(frozen=True)
class Optim:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Step:
    name: str
    steps: int = 10
    optim: Optim = field(default_factory=Optim)
    model: dict[str, Any] = field(default_factory=dict)
    trainable: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Run:
    encoder: Plain | Heads | None = field(default_factory=Heads)
    aligner: Plain = field(default_factory=Plain)
    stages: tuple[Step, ...] = (Step("align"), Step("tune", model={"decoder.rank": 4}))
    kind: Literal["live", "cached"] = "live"
    level: Literal[1, 2] = 1
    mode: Mode = Mode.FAST
    resume: bool = False
    clip: float | None = None
    name: str | None = "a"
    anything: Any = None
    spans: tuple[tuple[int, int], ...] = ()
    sources: dict[str, Plain] = field(default_factory=lambda: {"x": Plain(1)})


def names(name: str) -> Any:
    """A registry of two configs."""
    known = {"plain": Plain(32), "heads": Heads(64, 4)}
    if name not in known:
        raise ConfigError(f"unknown model {name!r}")
    return known[name]


def change(path: str, value: Any, config: Any = None) -> Any:
    return apply_overrides(Run() if config is None else config, {path: value}, names)


@pytest.mark.parametrize(
    ("path", "text", "want"),
    [
        ("stages.0.steps", "12", 12),
        ("stages.tune.steps", "1e3", 1000),
        ("stages.0.optim.learning_rate", "1e-4", 1e-4),
        ("stages.0.optim.learning_rate", "2", 2.0),
        ("stages.1.optim.betas", "(0.8, 0.95)", (0.8, 0.95)),
        ("stages.1.optim.betas.1", "0.5", 0.5),
        ("stages.0.trainable", "decoder.*.lora_?, aligner.*", ("decoder.*.lora_?", "aligner.*")),
        ("stages.0.trainable", "('a', 'b')", ("a", "b")),
        ("stages.0.trainable", "()", ()),
        ("kind", "cached", "cached"),
        ("level", "2", 2),
        ("mode", "exact", Mode.EXACT),
        ("mode", "EXACT", Mode.EXACT),
        ("resume", "true", True),
        ("resume", "False", False),
        ("clip", "1", 1.0),
        ("clip", "none", None),
        ("name", "None", None),
        ("name", "12", "12"),
        ("anything", "1e-4", 1e-4),
        ("anything", "(1, 2)", (1, 2)),
        ("anything", "word", "word"),
        ("anything", "true", True),
        ("encoder", "plain", Plain(32)),
        ("encoder", "none", None),
        ("encoder.heads", "4", 4),
        ("anything", "{[]: 1}", "{[]: 1}"),
        ("spans", "(1, 2), (3, 4)", ((1, 2), (3, 4))),
        ("spans", "((1, 2), (3, 4))", ((1, 2), (3, 4))),
        ("spans", "[(1, 2)]", ((1, 2),)),
        ("sources.x.dim", "3", 3),
        ("sources.y", "plain", Plain(32)),
        ("stages.tune.model.decoder.rank", "8", 8),
    ],
)
def test_text_is_read_by_the_annotation(path, text, want):
    got = change(path, text)
    node = got
    for part in path.replace("align", "0").replace("tune", "1").replace("decoder.rank", "decoder/rank").split("."):
        part = part.replace("/", ".")
        node = getattr(node, part) if dataclasses.is_dataclass(node) else node[int(part) if part.isdigit() else part]
    assert node == want and type(node) is type(want)


def test_values_from_python():
    assert change("encoder", Plain(3)).encoder == Plain(3)
    assert change("encoder", None).encoder is None
    assert change("stages", (Step("only"),)).stages == (Step("only"),)
    assert change("stages.0.optim.betas", [0, 1]).stages[0].optim.betas == (0.0, 1.0)
    # A sweep over np.logspace or np.arange gives NumPy scalars; JSON and `repr` want Python's.
    rate = change("stages.0.optim.learning_rate", np.float64(0.1)).stages[0].optim.learning_rate
    steps = change("stages.0.steps", np.int64(7)).stages[0].steps
    assert (type(rate), type(steps)) == (float, int)


def test_the_config_given_is_unchanged_and_all_else_is_kept():
    before = Run()
    after = apply_overrides(before, {"stages.1.steps": 3, "encoder.dim": 4})
    assert before == Run()
    assert after == dataclasses.replace(
        before, encoder=Heads(4, 2), stages=(before.stages[0], dataclasses.replace(before.stages[1], steps=3))
    )


def test_values_that_fit_only_together():
    assert apply_overrides(Run(), {"encoder.dim": "9", "encoder.heads": "3"}).encoder == Heads(9, 3)
    with pytest.raises(ConfigError, match="encoder: dim 9 is not a multiple of heads 2"):
        change("encoder.dim", "9")


def test_a_config_is_set_before_what_is_below_it():
    want = Heads(64, 8)
    assert apply_overrides(Run(), {"encoder": "heads", "encoder.heads": "8"}, names).encoder == want
    assert apply_overrides(Run(), {"encoder.heads": "8", "encoder": "heads"}, names).encoder == want


def test_an_item_by_name_and_by_index_is_one_item():
    stage = apply_overrides(Run(), {"stages.0.steps": 3, "stages.align.optim.learning_rate": 0.5}).stages[0]
    assert (stage.steps, stage.optim.learning_rate) == (3, 0.5)


def test_new_dictionary_keys_may_hold_dots():
    assert change("stages.0.model.decoder.lora.rank", "16").stages[0].model == {"decoder.lora.rank": 16}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages.0.step", 3, r"unknown field 'step' in stages.0 \(Step\): did you mean 'steps'\? It holds name, steps"),
        ("learning_rate", 3, "unknown field 'learning_rate' in Run: did you mean 'stages.0.optim.learning_rate'?"),
        ("stages.9.steps", 3, r"unknown field '9' in stages \(tuple\). It holds 0, 1, align, tune"),
        ("stages.0.steps.x", 3, "cannot set stages.0.steps.x: stages.0.steps is 10, with nothing below it"),
        ("clip.x", 3, "cannot set clip.x: clip is None; set it to a config first"),
        ("", 3, "Run: expected Run, got 3"),
        ("stages.0.steps", "ten", "stages.0.steps: expected int, got 'ten'"),
        ("stages.0.steps", "1.5", "stages.0.steps: expected int, got '1.5'"),
        ("stages.0.steps", 1.5, r"stages.0.steps: expected int, got 1.5 \(float\)"),
        ("stages.0.steps", True, r"stages.0.steps: expected int, got True \(bool\)"),
        ("stages.0.steps", None, r"stages.0.steps: expected int, got None \(NoneType\)"),
        ("resume", "2", "resume: expected bool, got '2'"),
        ("resume", 1, r"resume: expected bool, got 1 \(int\)"),
        ("clip", "x", "clip: expected float or None, got 'x'"),
        ("kind", "dead", "kind: expected one of 'live', 'cached', got 'dead'"),
        ("mode", "slow", "mode: expected one of FAST, EXACT, got 'slow'"),
        ("stages.0.optim.betas", "(1, 2, 3)", r"betas: expected tuple\[float, float\], got '\(1, 2, 3\)'"),
        ("stages.0.trainable", [1], r"stages.0.trainable.0: expected str, got 1 \(int\)"),
        ("aligner", None, r"aligner: expected Plain, got None"),
        ("aligner", Heads(), r"aligner: expected Plain, got Heads\(dim=8, heads=2\) \(Heads\)"),
        ("aligner", "heads", "aligner: expected Plain, got 'heads', which names a Heads"),
        ("aligner", "nothing", "aligner: unknown model 'nothing'"),
        ("sources.x", 3, r"sources.x: expected Plain, got 3 \(int\)"),
    ],
)
def test_mistakes_name_the_path_and_what_fits(path, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        change(path, value)
    assert "\n" not in str(caught.value)


def test_a_name_without_a_registry():
    with pytest.raises(ConfigError, match="aligner: expected Plain, got 'plain'"):
        apply_overrides(Run(), {"aligner": "plain"})


def test_flat():
    config = Run(stages=(Step("a", model={"x.y": 1}),), sources={}, encoder=Plain(), anything=(1, (2, 3)))
    assert flat(config) == {
        "encoder": "Plain",
        "encoder.dim": 8,
        "aligner.dim": 8,
        "stages.0.name": "a",
        "stages.0.steps": 10,
        "stages.0.optim.learning_rate": 1e-3,
        "stages.0.optim.betas": (0.9, 0.999),
        "stages.0.model.x.y": 1,
        "stages.0.trainable": ("*",),
        "kind": "live",
        "level": 1,
        "mode": "FAST",
        "resume": False,
        "clip": None,
        "name": "a",
        "anything": (1, (2, 3)),
        "spans": (),
        "sources": {},
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", "3", r"seed: expected int, got '3' \(str\)"),
        ("precision", "bfloat16", r"precision: expected Precision or None, got 'bfloat16'"),
        ("stages", [], r"stages: expected tuple\[.*Stage, \.\.\.\], got \[\] \(list\)"),
        ("stages.0.trainable", "aligner.*", r"stages.0.trainable: expected tuple\[str, \.\.\.\], got 'aligner"),
        ("stages.0.features", "cache", r"stages.0.features: expected one of 'live', 'cached', got 'cache'"),
        ("stages.0.steps", 2.5, r"stages.0.steps: expected int or None, got 2.5 \(float\)"),
        ("stages.0.optim.betas", (0.9, "0.99"), r"stages.0.optim.betas.1: expected float, got '0.99' \(str\)"),
        ("stages.0.model", {"decoder.lora": "none"}, None),  # of any type
        ("tokenizer", "12", None),
    ],
)
def test_types_of_a_config_made_in_python(path, value, message):
    config = load_config_file("ltu/tiny").get_config()
    node = config
    for name in path.split(".")[:-1]:
        node = node[int(name)] if name.isdigit() else getattr(node, name)
    vars(node)[path.split(".")[-1]] = value  # past the config's own checks
    if message is None:
        check_types(config)
        return
    with pytest.raises(ConfigError, match=message):
        check_types(config)


def test_json_gives_the_config_back():
    config = apply_overrides(
        Run(encoder=None), {"clip": math.pi, "anything": (1, (2.0, "x"), Plain()), "mode": Mode.EXACT, "name": "é\n"}
    )
    text = json.dumps(to_json(config))
    again = from_json(json.loads(text), config_types(Run))
    assert again == config
    assert repr(again) == repr(config)  # 2.0 is not 2, a tuple is not a list


def test_config_types_follow_annotations():
    assert config_types(Run) == {cls.__name__: cls for cls in (Run, Plain, Heads, Step, Optim, Mode)}


@pytest.mark.parametrize("value", [[1], np.zeros(2), len, {1: 2}, {"@type": "x"}, np.float32(1)])
def test_values_that_json_cannot_keep(value):
    with pytest.raises(
        ConfigError, match=r"Run.anything: .*got (list|ndarray|builtin_function_or_method|dict|float32)"
    ):
        to_json(Run(anything=value))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"@type": "Nobody"}, "unknown class 'Nobody'"),
        ({"extra": 1}, r"saved Step does not fit this version: unknown fields \['extra'\], missing \[\]"),
        ({"name": ...}, r"missing \['name'\]"),
    ],
)
def test_json_of_another_version(edit, message):
    data = {key: value for key, value in (to_json(Step("a")) | edit).items() if value is not ...}
    with pytest.raises(CheckpointError, match=message):
        from_json(data, config_types(Run))


def test_json_takes_defaults_of_newer_fields():
    assert from_json({"@type": "Step", "name": "a"}, config_types(Step)) == Step("a")


CONFIG = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Tiny:
    steps: int = 3

def get_config():
    return Tiny()
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_config_file(tmp_path, monkeypatch):
    path = write(tmp_path / "mine" / "tiny.py", CONFIG)
    assert load_config_file(path).get_config().steps == 3
    monkeypatch.chdir(tmp_path)
    assert load_config_file("mine/tiny").get_config().steps == 3
    assert load_config_file("mine/tiny").sweep() == [{}]
    write(path, CONFIG + "def sweep():\n    for n in (1, 2):\n        yield {'steps': n}\n")
    assert load_config_file("mine/tiny.py").sweep() == [{"steps": 1}, {"steps": 2}]


def test_shipped_configs_by_name(tmp_path, monkeypatch):
    write(tmp_path / "ltu" / "tiny.py", CONFIG)
    monkeypatch.setattr("alm_jax.core.config.shipped_configs", lambda: tmp_path)
    monkeypatch.chdir(tmp_path / "ltu")
    for name in ("ltu/tiny", "ltu/tiny.py", "configs/ltu/tiny", "configs/ltu/tiny.py"):
        assert load_config_file(name).get_config().steps == 3
    with pytest.raises(ConfigError, match=r"no config file 'ltu/tny': did you mean 'ltu/tiny'\?"):
        load_config_file("ltu/tny")
    with pytest.raises(ConfigError, match=r"no config file 'other'\. Give a path, or one that is shipped: ltu/tiny"):
        load_config_file("other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import json\nx = json.nothing\n", "bad.py:2: AttributeError: module 'json' has no attribute 'nothing'"),
        ("import no_such_package", "bad.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1\ndef f(:\n", "bad.py:2: SyntaxError: invalid syntax"),
        ("def get_config():\n    return 1 / 0\n", "bad.py:2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    import json\n    return json.loads('{')\n", "bad.py:3: JSONDecodeError: Expecting"),
        ("def get_config():\n    return 3\n", r"bad.py: get_config\(\) must return an experiment, got 3"),
        ("", r"bad.py: defines no get_config\(\)"),
        (CONFIG.replace("Tiny()", "Tiny('3')"), r"bad.py: steps: expected int, got '3' \(str\)"),
        (CONFIG.replace("Tiny()", "Tiny(True)"), r"bad.py: steps: expected int, got True \(bool\)"),
    ],
)
def test_a_config_that_fails_is_one_line_with_its_place(tmp_path, text, message):
    path = write(tmp_path / "bad.py", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config_file(path).get_config()
    assert "\n" not in str(caught.value)


def test_the_line_is_told_of_a_relative_path_too(tmp_path, monkeypatch):
    write(tmp_path / "bad.py", "def get_config():\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    for name in ("bad.py", "bad", "../" + tmp_path.name + "/bad.py"):
        with pytest.raises(ConfigError, match=r"bad.py:2: ZeroDivisionError: division by zero"):
            load_config_file(name).get_config()


def test_a_sweep_that_fails(tmp_path):
    path = write(tmp_path / "bad.py", CONFIG + "def sweep():\n    return [3]\n")
    with pytest.raises(ConfigError, match=r"sweep\(\) gives dictionaries {path: value}, got 3"):
        load_config_file(path).sweep()
    path = write(tmp_path / "bad.py", "def sweep():\n    yield {}\n    raise KeyError('x')\n")
    with pytest.raises(ConfigError, match=r"bad.py:3: KeyError: 'x'"):
        load_config_file(path).sweep()


def test_not_python(tmp_path):
    with pytest.raises(ConfigError, match="a config is a Python file"):
        load_config_file(write(tmp_path / "a.yaml", "x: 1"))
