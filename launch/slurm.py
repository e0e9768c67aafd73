"""`python -m launch.slurm`: nodes of a SLURM cluster, one process a GPU."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from alm_jax.core.errors import UsageError
from launch.common import HOPELESS, STOPPED, Job, Place, Step, main, shell_pause

_NOTICE = 180  # seconds before the time is up


@dataclass(kw_only=True)
class Slurm(Place):
    """Train on nodes of a SLURM cluster, one process a GPU, and start again what fails.

    What stands after -- are the arguments of alm train; --out and --logs are on storage that all nodes see. One batch
    job starts the processes, starts them again after a failure, and is queued again when its time is up, when it is
    preempted or when a node fails. A second job for the same folder waits for the first. Logs are DIR/job.log and
    DIR/process-0.log and so on.

    examples:
      python -m launch.slurm --nodes 2 --gpus 8 --time 24:00:00 -- ltu/vicuna_7b --out /shared/runs/ltu
      python -m launch.slurm --nodes 2 --gpus 8 --sbatch partition=gpu --sbatch account=me --setup ". venv/bin/activate" -- ltu/vicuna_7b --out /shared/runs/ltu
      python -m launch.slurm --nodes 1 --gpus 4 --alm "apptainer exec --nv alm.sif alm" --detach -- ltu/tiny --out /shared/runs/tiny
    """  # noqa: E501

    nodes: Annotated[int, tyro.conf.arg(metavar="N")]
    """how many"""
    gpus: Annotated[int, tyro.conf.arg(metavar="N")]
    """GPUs of each, which is also its number of processes"""
    time: Annotated[str, tyro.conf.arg(metavar="TIME")] = "24:00:00"
    """of one job; longer runs are queued again"""
    sbatch: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """another option of the job: --sbatch partition=gpu"""
    setup: Annotated[str, tyro.conf.arg(metavar="COMMANDS")] = ""
    """shell commands of the job before it starts processes"""
    alm: Annotated[str, tyro.conf.arg(metavar="COMMAND")] = "alm"
    """what alm is called there"""
    detach: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """return when the job is queued, not when it has ended"""

    restarts_itself: ClassVar[bool] = True

    def attempt(self, job: Job, number: int) -> list[list[Step]]:
        """One batch job, whose script is given to sbatch."""
        wait = () if self.detach else ("--wait",)
        return [[Step(("sbatch", *wait), text=self.script(job), name=job.name)]]

    def script(self, job: Job) -> str:
        """
        Raises:
            UsageError: the options do not fit together.
        """
        if min(self.nodes, self.gpus) < 1:
            raise UsageError("--nodes and --gpus are 1 or more")
        if wrong := [option for option in self.sbatch if option.startswith("-")]:
            raise UsageError(f"--sbatch takes NAME=VALUE without dashes, got {wrong[0]!r}")
        logs = self.folder(job)
        options = {
            "job-name": job.name,
            "nodes": self.nodes,
            "ntasks-per-node": self.gpus,
            "gpus-per-node": self.gpus,
            "time": self.time,
            "output": logs / "job.log",
            "open-mode": "append",
            "signal": f"B:USR1@{_NOTICE}",
            "dependency": "singleton",
        }
        lines = [*(f"{name}={value}" for name, value in options.items()), "requeue", *self.sbatch]
        srun = ("srun", "--wait=180", f"--output={logs}/process-%t.log", "--open-mode=append")
        return _SCRIPT.format(
            options="\n".join(f"#SBATCH --{line}" for line in lines),
            before="\n".join([*self.exports(), *([self.setup] if self.setup else [])]),
            restarts=self.restarts,
            pause=shell_pause("attempt", self.backoff),
            command=shlex.join([*srun, *job.command(shlex.split(self.alm))]),
            stopped=STOPPED,
            hopeless=" | ".join(map(str, HOPELESS)),
        )


_SCRIPT = """\
#!/bin/bash
{options}
{before}
# Shortly before the time is up: the processes save a checkpoint, then the job is queued again.
trap 'up=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
for ((attempt = 0; attempt <= {restarts}; attempt++)); do
    {pause}
    echo "attempt $attempt: $(date)"
    {command} &
    wait $!
    code=$?
    if [ $code -eq 138 ]; then  # the signal has interrupted it
        wait $!
        code=$?
    fi
    case $code in
        0 | {hopeless}) exit $code ;; # trained; or it never can be
        {stopped})
            [ -n "$up" ] && exec scontrol requeue "$SLURM_JOB_ID"
            sleep 300 ;; # preempted or cancelled: SLURM ends this script now, and queues it again or not
    esac
done
exit 1
"""


if __name__ == "__main__":
    sys.exit(main(Slurm))
