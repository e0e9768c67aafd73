"""A stall shows where every thread stands."""

import threading
import time

import pytest

from alm_jax.core.errors import ConfigError
from alm_jax.train.config import LoopConfig
from alm_jax.train.watchdog import Watchdog


def wait_for(read, text, times=1):
    """What `read` has given once `text` is in it as often."""
    found = ""
    end = time.monotonic() + 60
    while found.count(text) < times and time.monotonic() < end:
        time.sleep(0.02)
        found += read()
    return found


def test_a_stall_is_told_once_with_the_stacks_of_all_threads(capfd):
    read = lambda: capfd.readouterr().err
    released = threading.Event()

    def stuck_in_a_collective():
        released.wait()

    thread = threading.Thread(target=stuck_in_a_collective)
    thread.start()
    with Watchdog(0.1) as watchdog:
        watchdog.beat("step 3 of stage read")
        found = wait_for(read, "in test_a_stall_is_told_once")
        assert "alm: stalled: process 0 of 1 (" in found
        assert "has done nothing for 0.1 s since step 3 of stage read; its threads:" in found
        assert "in stuck_in_a_collective" in found
        time.sleep(0.3)  # several of its looks
        assert "stalled" not in read()
        watchdog.beat("step 4 of stage read")
        assert "since step 4" in wait_for(read, "alm: stalled")
    released.set()
    thread.join()


def test_nothing_is_told_while_something_is_done(capfd):
    with Watchdog(3600) as watchdog:
        watchdog.beat("step 1")
    assert capfd.readouterr().err == ""
    with pytest.raises(ConfigError, match=r"loop.stall_seconds is 0; expected more than 0"):
        LoopConfig(stall_seconds=0)
