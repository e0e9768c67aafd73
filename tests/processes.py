"""Processes that are played by threads of this one, for what they tell each other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax

from alm_jax.core import processes


def played(monkeypatch, function, count=3):
    """What `function(index)` gives, or raises, on each of some processes that `gather`."""
    here, barrier, said = threading.local(), threading.Barrier(count), {}

    def gather(text):
        said[here.index] = text
        barrier.wait(60)
        found = [said[index] for index in range(count)]
        barrier.wait(60)
        return found

    def run(index):
        here.index = index
        try:
            return function(index)
        except Exception as error:
            return error

    with monkeypatch.context() as patched, ThreadPoolExecutor(count) as pool:
        patched.setattr(processes, "gather", gather)
        patched.setattr(jax, "process_count", lambda: count)
        patched.setattr(jax, "process_index", lambda: here.index)
        return list(pool.map(run, range(count)))
