"""Worker processes: what each does first."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process


def start_worker() -> None:
    """Leave signals to the parent process, which tells its workers what to do, and end when it ends, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def follow_parent() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
