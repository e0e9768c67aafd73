"""The processes that work on one thing together: how they meet, what has to be the same on them, how one leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from alm_jax.core.errors import AlmError, ConfigError, UsageError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables by which a process is told of the others: host:port of the first, how many, which it is."""

_CLUSTERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")  # how many, where a cluster starts us
_CLOCKS = 60.0  # seconds that clocks may be apart
_GONE = re.compile(r"Gloo|NCCL|[Cc]oordination|[Bb]arrier|[Hh]eartbeat|Connection (closed|reset)")


def join(distributed: bool = False, timeout: int = 300) -> None:
    """Meet the other processes, if there are any, before anything else asks JAX for devices.

    Where they are is read from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, else found by JAX
    where the environment shows several (SLURM, Open MPI, GKE). If nobody answers in time, the process says so and exits
    with 1.

    Args:
        distributed: look for others although the environment shows none (TPU VMs).
        timeout: seconds to wait for all.

    Raises:
        UsageError: the environment variables do not fit together, or no cluster is found.
    """
    if jax.distributed.is_initialized() or not (distributed or _several()):
        return
    address, count, index = _told()
    who = "this process" if index is None else f"process {index} of {count}"
    # JAX itself ends the process with a stack of C++ when the time is up.
    late = threading.Timer(timeout, _give_up, (who, address, index, timeout))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=timeout + 60)
    except ValueError as error:
        raise UsageError(
            f"--distributed finds no other processes ({error}): set {ADDRESS}=HOST:PORT (of process 0), {COUNT} and "
            f"{INDEX}, or leave --distributed out"
        ) from error
    finally:
        late.cancel()


def check_joined() -> None:
    """
    Raises:
        UsageError: the devices are those of several processes that have not met. AlmError: there are none.
    """
    try:
        count = jax.process_count()
    except (AssertionError, RuntimeError) as error:  # the first where nothing of what JAX_PLATFORMS names is installed
        reason = f" ({' '.join(str(error).split())[:200]})" if str(error) else ""
        raise AlmError(
            f"JAX finds no device of JAX_PLATFORMS={jax.config.jax_platforms}{reason}: install 'alm_jax[tpu]' or "
            "'alm_jax[cuda]', see that no other process holds the devices, or set JAX_PLATFORMS=cpu"
        ) from error
    if count > 1 and not jax.distributed.is_initialized():
        raise UsageError(f"this is one of {count} processes of a pod: start all of them with --distributed")


def leave(code: int) -> None:
    """End this process after a failure, if it has joined others: JAX would wait for them at exit, gone or not."""
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(3)  # without the first process JAX ends the others, which may be about to say what they saw
    os._exit(code)


@contextmanager
def named_loss(then: str) -> Iterator[None]:
    """Say in one line that another process has gone, where JAX says that a collective failed.

    Args:
        then: what to do about it.

    Raises:
        AlmError: instead of JAX's error.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # Gloo's failures come as the latter
        if jax.process_count() == 1 or not _GONE.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise AlmError(
            f"{this_process()} has lost another process ({reason}): its own log says why it left; {then}"
        ) from error


def this_process() -> str:
    """Which this is, for people: `process 1 of 4 (host7)`."""
    return f"process {jax.process_index()} of {jax.process_count()} ({socket.gethostname()})"


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order, on all of them."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    row = np.zeros(max(1, sizes.max()), np.uint8)
    row[: len(data)] = data
    rows = multihost_utils.process_allgather(row)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes)]


def raise_together(problem: str | None) -> None:
    """
    Raises:
        AlmError: on all processes, if one has a problem; so that none waits for another that has left.
    """
    for index, found in enumerate(gather(problem or "")):
        if found:
            raise AlmError(found if jax.process_count() == 1 else f"process {index}: {found}")


def check_alike(values: Mapping[str, str]) -> None:
    """Compare `{name: value}` over processes, and their clocks.

    Raises:
        ConfigError: a process has others than most (than the first, in a draw); the message names it and what differs.
    """
    mine = json.dumps({**values}, sort_keys=True)
    digests = gather(hashlib.sha256(mine.encode()).hexdigest())
    if len(set(digests)) > 1:
        hosts, found = gather(socket.gethostname()), [json.loads(text) for text in gather(mine)]
        raise ConfigError(_difference(digests, hosts, found))
    hosts, clocks = gather(socket.gethostname()), [float(text) for text in gather(repr(_now()))]
    middle = sorted(clocks)[len(clocks) // 2]
    for index, clock in enumerate(clocks):
        if abs(clock - middle) > _CLOCKS:
            raise ConfigError(
                f"process {index} ({hosts[index]}): its clock is {clock - middle:+.0f} s from the others': set it "
                "right (chrony, ntpd) and start again"
            )


def check_shared(folder: Path) -> None:
    """Make a folder that all processes write to.

    Raises:
        AlmError: on all processes, if one of them cannot write there, or sees another folder there than the first.
    """
    token = gather(secrets.token_hex(8))[0]
    probes = [folder / f".probe-{token}-{index}" for index in (0, jax.process_index())]
    problem = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probes[1].write_text(token)
    except OSError as error:
        problem = f"cannot write to {folder}: {error.strerror}; make it writable, make room, or give another folder"
    raise_together(problem)
    elsewhere = f"{folder} is not the folder that process 0 sees: it has to be on storage that all machines share"
    raise_together(None if probes[0].is_file() else elsewhere)
    probes[1].unlink()


def _difference(digests: list[str], hosts: list[str], found: list[dict[str, str]]) -> str:
    usual = digests.index(Counter(digests).most_common(1)[0][0])
    odd = [index for index, digest in enumerate(digests) if digest != digests[usual]]
    theirs, ours = found[odd[0]], found[usual]
    names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    shown = [f"{name} is {theirs.get(name, 'missing')}, there {ours.get(name, 'missing')}" for name in names[:5]]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    others = f" (so do processes {', '.join(map(str, odd[1:]))})" if len(odd) > 1 else ""
    return (
        f"process {odd[0]} ({hosts[odd[0]]}) differs from process {usual} ({hosts[usual]}){others}: "
        f"{'; '.join(shown)}{more}; start all processes with one command and one installation"
    )


def _now() -> float:
    return time.time()


def _several() -> bool:
    """Whether the environment shows that other processes were started with this one."""
    counts = [os.environ.get(name, "") for name in _CLUSTERS]
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")  # GKE
    started = (
        "SLURM_NTASKS" not in os.environ or "SLURM_STEP_NODELIST" in os.environ
    )  # by srun, not in its batch script
    several = any(count.isdecimal() and int(count) > 1 for count in counts)
    return ADDRESS in os.environ or len(workers) > 1 or (several and started)


def _told() -> tuple[str | None, int | None, int | None]:
    """(address, count, index) of the environment; None where JAX is to find them."""
    if ADDRESS not in os.environ:
        return None, None, None
    address, count, index = (os.environ.get(name) for name in (ADDRESS, COUNT, INDEX))
    if count is None and index is None:
        return address, None, None
    if not (count and index and count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise UsageError(
            f"{COUNT} is {count!r}, {INDEX} is {index!r}: expected how many processes there are, and which of them "
            "this is, from 0"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise UsageError(f"{ADDRESS} is {address!r}: expected HOST:PORT of process 0")
    return address, int(count), int(index)


def _give_up(who: str, address: str | None, index: int | None, timeout: int) -> None:
    where = f"at {address}" if address else "that JAX found in the environment"
    if index == 0:
        told = (
            f"{who} has waited {timeout} s for the others to come to {address}: check that all were started, and that "
            "they reach this address (name, port, firewall, proxy)"
        )
    elif address and _answers(address):
        told = (
            f"{who} has waited {timeout} s for the others, and the coordinator {where} answers: check that all "
            "processes were started, with the same number of them"
        )
    else:
        told = (
            f"{who} cannot reach the coordinator {where} within {timeout} s: check that process 0 runs there, that "
            "name and port are right, and that no firewall or proxy is between"
        )
    print(f"alm: error: {told}", file=sys.stderr, flush=True)
    os._exit(1)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True
