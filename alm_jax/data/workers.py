"""Worker processes: what each does first, and work shared out to them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import parent_process
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def start_worker() -> None:
    """Leave signals to the parent process, which tells its workers what to do, and end when it ends, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def follow_parent() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def each(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """Each item with what the function gives for it, in any order, on so many processes (with 1, in this one).

    Raises:
        BrokenExecutor: a process died. Whatever the function raises.
    """
    if workers == 1 or len(items) < 2:
        for item in items:
            yield item, function(item)
        return
    # A fork of a process that runs JAX may hang, so fresh processes are started.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        running = {pool.submit(function, item): item for item in items}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those in the works are finished
            raise
