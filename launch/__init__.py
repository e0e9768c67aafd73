"""`alm train` in several processes: on this machine, on a TPU VM pod, on GKE, or under SLURM (docs/launch.md)."""
