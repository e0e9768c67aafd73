"""`python -m launch.tpu_vm`: all workers of a TPU VM pod, over ssh."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from launch.common import Job, Place, Step, main


@dataclass(kw_only=True)
class TpuVm(Place):
    """Train on all workers of a TPU VM (gcloud compute tpus tpu-vm), and start again what fails.

    What stands after -- are the arguments of alm train, as the workers take them: --out is a folder that all workers
    see, such as a mounted bucket. Before each attempt processes that a lost connection left behind are stopped. With
    --accelerator-type the TPU VM is made if there is none, and made again after a preemption. Logs of the workers are
    DIR/attempt-0/0.log and so on, on this machine. Run ssh-add once before.

    examples:
      python -m launch.tpu_vm --tpu pod1 --zone us-west4-a --setup ". venv/bin/activate" -- ltu/vicuna_7b --out /shared/runs/ltu
      python -m launch.tpu_vm --tpu pod1 --zone us-west4-a --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite --spot --setup "pip install -q './alm_jax[tpu]'" -- ltu/vicuna_7b --out /shared/runs/ltu
      python -m launch.tpu_vm --tpu pod1 --zone us-west4-a --alm "sudo docker run --rm --privileged --net=host -v /shared:/shared IMAGE alm" -- ltu/vicuna_7b --out /shared/runs/ltu
    """  # noqa: E501

    tpu: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """name of the TPU VM"""
    zone: Annotated[str, tyro.conf.arg(metavar="ZONE")]
    """its zone"""
    accelerator_type: Annotated[str | None, tyro.conf.arg(metavar="TYPE")] = None
    """make the TPU VM where it is not ready: v5litepod-16, v4-32, ..."""
    version: Annotated[str, tyro.conf.arg(metavar="VERSION")] = "tpu-ubuntu2204-base"
    """software of a TPU VM that is made"""
    spot: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """make it from spare capacity, which may be preempted"""
    setup: Annotated[str, tyro.conf.arg(metavar="COMMANDS")] = ""
    """shell commands before alm on each worker"""
    alm: Annotated[str, tyro.conf.arg(metavar="COMMAND")] = "alm"
    """what alm is called there"""

    def attempt(self, job: Job, number: int) -> list[list[Step]]:
        """The TPU VM, what is left over there, and the processes."""
        logs = self.folder(job) / f"attempt-{number}"
        made = [[Step(("bash", "-c", self._make()), name="making the TPU VM")]] if self.accelerator_type else []
        command = shlex.join(job.command(shlex.split(self.alm)))
        run = "; ".join(["set -e", *self.exports(), *([self.setup] if self.setup else []), command])
        return [
            *made,
            [Step(self._ssh(_stop(job)), name="stopping leftovers")],
            [Step(("mkdir", "-p", str(logs)))],
            [Step(self._ssh(run, f"--output-directory={logs}"), name=self.tpu)],
        ]

    def _gcloud(self, verb: str, *options: str) -> tuple[str, ...]:
        return ("gcloud", "compute", "tpus", "tpu-vm", verb, self.tpu, f"--zone={self.zone}", *options)

    def _ssh(self, command: str, *options: str) -> tuple[str, ...]:
        return self._gcloud("ssh", "--worker=all", *options, f"--command={command}")

    def _make(self) -> str:
        """Shell text that leaves a TPU VM that is READY; a preempted one has to be deleted first."""
        what = (f"--accelerator-type={self.accelerator_type}", f"--version={self.version}", *(["--spot"] * self.spot))
        describe = shlex.join(self._gcloud("describe", "--format=value(state)"))
        delete, create = shlex.join(self._gcloud("delete", "--quiet")), shlex.join(self._gcloud("create", *what))
        return (
            f'state=$({describe} 2> /dev/null); case "$state" in READY) ;; "") {create} ;; '
            f'PREEMPTED | TERMINATED) {delete} && {create} ;; *) echo "{self.tpu} is $state" >&2; exit 1 ;; esac'
        )


def _stop(job: Job) -> str:
    """Ends processes of the job's folder; the brackets keep the pattern from finding itself."""
    pattern = shlex.quote(f"[-]-out {job.out}( |$)")
    return (
        f"sudo pkill -TERM -f {pattern}; "
        f"for i in $(seq 60); do sudo pgrep -f {pattern} > /dev/null || exit 0; sleep 2; done; "
        f"sudo pkill -KILL -f {pattern}; sleep 2"
    )


if __name__ == "__main__":
    sys.exit(main(TpuVm))
