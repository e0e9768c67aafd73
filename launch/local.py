"""`python -m launch.local`: processes on this machine."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from alm_jax.core.errors import UsageError
from alm_jax.core.processes import ADDRESS, COUNT, INDEX
from launch.common import Job, Place, Step, main


@dataclass(kw_only=True)
class Local(Place):
    """Train in one or several processes on this machine, and start again what fails.

    What stands after -- are the arguments of alm train. One process has all accelerators of the machine; several share
    them, --devices each. Logs are DIR/process-0.log and so on.

    examples:
      python -m launch.local -- ltu/tiny --out runs/tiny
      python -m launch.local --processes 2 -- ltu/tiny --out runs/tiny --seed 1
      python -m launch.local --processes 8 --devices 1 -- ltu/vicuna_7b --out runs/ltu
      python -m launch.local --processes 2 --dry-run -- ltu/tiny --out runs/tiny
    """

    processes: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """how many"""
    devices: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """GPUs of each process: the first has 0 to N - 1"""
    port: Annotated[int | None, tyro.conf.arg(metavar="PORT")] = None
    """on which they meet (default: a free one)"""

    def attempt(self, job: Job, number: int) -> list[list[Step]]:
        """One group: all processes at once."""
        if self.processes < 1 or (self.devices is not None and self.devices < 1):
            raise UsageError("--processes and --devices are 1 or more")
        port = self.port or ("PORT" if self.dry_run else _free_port())
        command = tuple(job.command((sys.executable, "-m", "alm_jax"), distributed=self.processes > 1))
        steps = []
        for index in range(self.processes):
            env = self.variables()
            if self.processes > 1:
                env |= {ADDRESS: f"localhost:{port}", COUNT: str(self.processes), INDEX: str(index)}
            if self.devices is not None:
                first = index * self.devices
                env["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(first, first + self.devices)))
            log = self.folder(job) / f"process-{index}.log"
            steps.append(Step(command, env, log, name=f"process {index}"))
        return [steps]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(Local))
