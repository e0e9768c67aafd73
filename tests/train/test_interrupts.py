"""Signals become a question that the loop asks between steps."""

import signal

import pytest

from alm_jax.train.interrupts import Interrupts


def test_the_first_asks_and_a_second_ctrl_c_leaves_at_once():
    said = []
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(said.append) as interrupts:
        assert not interrupts.requested(1)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested(2)
        assert said == ["SIGINT: stopping after this step, with a checkpoint (again: stop at once)"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_twice_is_still_one_stop():
    said = []
    with Interrupts(said.append) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested()
    assert len(said) == 1
