"""What the time of a run went to, by a clock that the test sets."""

import json

import pytest

from alm_jax.train.goodput import Goodput


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_each_second_counts_once(tmp_path):
    clock = Clock()
    run = Goodput(tmp_path / "goodput.json", clock)
    clock.now += 2  # setup
    with run.spending("steps"):
        clock.now += 5
        with run.spending("data"):
            clock.now += 1
        clock.now += 1
        with pytest.raises(KeyError), run.spending("checkpoints"):
            clock.now += 3
            raise KeyError
    assert run.seconds == {"steps": 6, "checkpoints": 3, "setup": 2, "data": 1} and run.share == 0.5
    assert str(run) == "steps 50.0%, checkpoints 25.0%, setup 16.7%, data 8.3% of 12 s"
    run.save()
    clock.now += 30  # killed, and started again
    again = Goodput(tmp_path / "goodput.json", clock)
    with again.spending("steps"):
        clock.now += 4
    assert again.seconds == {"away": 30, "steps": 10, "checkpoints": 3, "setup": 2, "data": 1}
    assert again.share == 10 / 16
    again.save()
    assert json.loads((tmp_path / "goodput.json").read_text())["goodput"] == 0.625


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"seconds": 3, "until": 0}', '{"seconds": {"steps": "x"}, "until": 1}']
)
def test_a_damaged_file_begins_anew(tmp_path, text):
    path = tmp_path / "goodput.json"
    path.write_text(text)
    assert Goodput(path, Clock()).seconds == {"setup": 0}


def test_a_clock_that_is_set_back_takes_nothing_away():
    clock = Clock()
    run = Goodput(None, clock)
    clock.now += 2
    assert run.seconds == {"setup": 2}
    clock.now -= 1
    assert run.seconds == {"setup": 2}
    run.save()
