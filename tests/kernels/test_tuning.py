"""Block sizes: the table of measured ones, the default, and what is on trial."""

import json

import pytest

from alm_jax.core.mesh import device_kind
from alm_jax.kernels import tuning

SHAPE = {"width": 64, "slots": 256}
CANDIDATES = [{"slots": 256}, {"slots": 128}]


@pytest.fixture
def table(monkeypatch):
    """Writes `{shape: blocks}` of the kernel `toy` on this device."""

    def write(shapes):
        monkeypatch.setattr(tuning, "table", lambda: {device_kind(): {"toy": shapes}})

    return write


def test_the_first_candidate_unless_another_was_measured(table):
    choose = lambda: tuning.choose("toy", SHAPE, iter(CANDIDATES))
    table({})
    assert choose() == {"slots": 256}
    table({"width=64,slots=256": {"slots": 128}})
    assert choose() == {"slots": 128}
    assert tuning.choose("toy", SHAPE | {"width": 128}, CANDIDATES) == {"slots": 256}
    table({"width=64,slots=256": {"slots": 64}})  # no longer a candidate
    assert choose() == {"slots": 256}
    assert tuning.choose("toy", SHAPE, []) is None


def test_a_trial(table):
    table({"width=64,slots=256": {"slots": 128}})
    with tuning.trial({}) as trial:
        assert tuning.choose("toy", SHAPE, CANDIDATES) == {"slots": 256}
    assert trial.asked == {("toy", "width=64,slots=256"): CANDIDATES}
    with tuning.trial({("toy", "width=64,slots=256"): {"slots": 128}}):
        assert tuning.choose("toy", SHAPE, CANDIDATES) == {"slots": 128}
        assert tuning.choose("other", SHAPE, CANDIDATES) == {"slots": 256}


def test_the_table_is_of_the_expected_form():
    for kernels in json.loads(tuning.TABLE.read_text()).values():
        for shapes in kernels.values():
            assert all(isinstance(size, int) for blocks in shapes.values() for size in blocks.values())
