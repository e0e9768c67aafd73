"""`python -m launch.gke`: TPU slices of a GKE cluster, as a JobSet."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, ClassVar

import tyro
import yaml

from alm_jax.core.errors import UsageError
from launch.common import HOPELESS, Job, Place, Step, main, shell_pause

ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
"""GKE's names of TPU generations."""
_CHIPS = 4  # of one machine
_JOBSET = "jobset.sigs.k8s.io"


@dataclass(kw_only=True)
class Gke(Place):
    """Train on TPU slices of a GKE cluster that has JobSet (xpk cluster create makes such ones), one process a machine.

    What stands after -- are the arguments of alm train; --out is on the volume that --claim mounts. The JobSet starts all
    processes again after a failure or preemption; a wrong config ends it. Logs are DIR/process-SLICE-WORKER.log on the
    volume (and kubectl logs).

    examples:
      python -m launch.gke --topology v5e:4x4 --image IMAGE --claim shared=/shared -- ltu/vicuna_7b --out /shared/runs/ltu
      python -m launch.gke --topology v5p:2x2x4 --slices 2 --image IMAGE --claim shared=/shared --queue multislice-queue --detach -- ltu/vicuna_7b --out /shared/runs/ltu
    """  # noqa: E501

    topology: Annotated[str, tyro.conf.arg(metavar="TOPOLOGY")]
    """of a slice, as alm plan takes it: v5e:4x4"""
    image: Annotated[str, tyro.conf.arg(metavar="IMAGE")]
    """container image with alm (launch/Dockerfile)"""
    claim: Annotated[str, tyro.conf.arg(metavar="NAME=PATH")]
    """persistent volume claim and where it is mounted: a bucket or a file store that all machines share"""
    slices: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """how many"""
    queue: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Kueue's local queue (multislice-queue on clusters that xpk made)"""
    spot: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """on spare capacity, which may be preempted"""
    detach: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """return when the JobSet is made, not when it has ended"""

    restarts_itself: ClassVar[bool] = True
    logs_here: ClassVar[bool] = False

    def attempt(self, job: Job, number: int) -> list[list[Step]]:
        """Make the JobSet, wait for its end, and look how it ended."""
        text = yaml.safe_dump(self.manifest(job), sort_keys=False, width=1000)
        create = Step(("kubectl", "create", "-f", "-"), text=text, name=job.name)
        state = "jsonpath={.status.terminalState}"
        wait = Step(("kubectl", "wait", f"jobset/{job.name}", f"--for={state}", "--timeout=-1s"), name=job.name)
        end = f"test \"$(kubectl get jobset/{job.name} -o '{state}')\" = Completed"
        return [[create]] if self.detach else [[create], [wait], [Step(("bash", "-c", end), name=job.name)]]

    def manifest(self, job: Job) -> dict[str, Any]:
        """The JobSet.

        Raises:
            UsageError: the options do not fit together.
        """
        generation, _, shape = self.topology.partition(":")
        if generation not in ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
            known = ", ".join(ACCELERATORS)
            raise UsageError(f"--topology {self.topology!r}: expected a generation ({known}) and chips, as v5e:4x4")
        if self.slices < 1:
            raise UsageError("--slices is 1 or more")
        chips = prod(map(int, shape.split("x")))
        machines = max(1, chips // _CHIPS)
        policy = {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [*HOPELESS]}}]}
        labels = {"labels": {"kueue.x-k8s.io/queue-name": self.queue}} if self.queue else {}
        pods = {
            "backoffLimit": 0,
            "completions": machines,
            "parallelism": machines,
            "podFailurePolicy": policy,
            "template": {"spec": self._pod(job, generation, shape, min(chips, _CHIPS))},
        }
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": job.name,
                **labels,
                "annotations": {f"alpha.{_JOBSET}/exclusive-topology": "cloud.google.com/gke-nodepool"},
            },
            "spec": {
                "failurePolicy": {
                    "maxRestarts": self.restarts,
                    "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
                },
                "replicatedJobs": [{"name": "slice", "replicas": self.slices, "template": {"spec": pods}}],
            },
        }

    def _pod(self, job: Job, generation: str, shape: str, chips: int) -> dict[str, Any]:
        claim, equals, path = self.claim.partition("=")
        if not (claim and equals and path.startswith("/")):
            raise UsageError(f"--claim is {self.claim!r}; expected NAME=PATH, e.g. shared=/shared")
        if not job.out.is_relative_to(path):
            raise UsageError(f"--out {job.out} is not on the volume: give a folder below {path}")
        told = {"ATTEMPT": "restart-attempt", "SLICE": "job-index"}  # by JobSet
        env = [
            *({"name": name, "value": value} for name, value in self.variables().items()),
            *(
                {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{_JOBSET}/{key}']"}}}
                for name, key in told.items()
            ),
        ]
        selector = {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[generation],
            "cloud.google.com/gke-tpu-topology": shape,
        }
        container = {
            "name": "alm",
            "image": self.image,
            "command": ["bash", "-c", self._shell(job)],
            "env": env,
            "resources": {"limits": {"google.com/tpu": chips}},
            "volumeMounts": [{"name": "runs", "mountPath": path}],
        }
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 300,  # to save a checkpoint in
            "nodeSelector": selector | ({"cloud.google.com/gke-spot": "true"} if self.spot else {}),
            "containers": [container],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": claim}}],
        }

    def _shell(self, job: Job) -> str:
        """What a container runs; `exec`, so that alm is what gets SIGTERM."""
        logs = shlex.quote(str(self.folder(job)))
        lines = [
            shell_pause("ATTEMPT", self.backoff),
            f"mkdir -p {logs}",
            f"exec > >(tee -a {logs}/process-$SLICE-$JOB_COMPLETION_INDEX.log) 2>&1",
            f"exec {shlex.join(job.command())}",
        ]
        return "; ".join(lines)


if __name__ == "__main__":
    sys.exit(main(Gke))
