"""Shared fixtures: CPU platform, the optional folder of recorded fixtures."""

import os
import signal
import sys
from pathlib import Path

from tests.devices import FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # files run beside each other

import jax
import pytest

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"recorded fixtures not present: {'/'.join(('../shared', *parts))}")
    return path


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of all recorded outputs of official code; the test is skipped where it is absent."""
    return _shared("golden")


@pytest.fixture(scope="session")
def golden_ltu() -> Path:
    """Folder of recorded outputs of the official LTU code; the test is skipped where it is absent."""
    return _shared("golden", "ltu")


@pytest.fixture(scope="session")
def shared_sounds() -> Path:
    """Folder of labelled recordings (with `manifest.csv`); the test is skipped where it is absent."""
    return _shared("sounds")


@pytest.fixture(autouse=True)
def _same_weights():
    """PyTorch's models begin with the same weights whatever ran before: rounding turns a ReLU near 0 now and then."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled():
    """Compiled functions are shared by the modules of a process until they come to gigabytes."""
    yield
    if _resident() > 2.5 * 2**30:
        jax.clear_caches()


def _resident() -> float:
    """Bytes of memory that this process holds, where that can be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("inf")
