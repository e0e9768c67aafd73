"""`alm train`: a config's stages in a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from alm_jax.cli.parse import check_folder, overridden, parse_config, parse_known
from alm_jax.core.config import load_config_file
from alm_jax.core.errors import CheckpointError, ConfigError


@dataclass
class Train:
    """Run the stages of a config in a folder, which then holds all that `alm ask` and `--resume` need.

    examples:
      alm train ltu/tiny --out runs/tiny
      alm train ltu/tiny --out runs/tiny --resume
      alm train ltu/tiny --out runs/short --stages.0.steps 10 --seed 1
      alm train my_config.py --out runs/a --set model.decoder.lora.rank=4 --set stages.read.steps=200
      alm train runs/tiny --out runs/again --seed 1      the config that another run was made with
      alm train ltu/tiny --help                 the flags of this config's own values
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """path of a config file, a shipped one such as ltu/tiny, or a run's folder"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """folder of the run"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """go on from the run's last checkpoint, if there is one"""
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """train together with the other processes that were started with this command; said where nothing in the
    environment does (TPU VMs), see docs/launch.md"""
    stopped_code: Annotated[int, tyro.conf.arg(metavar="CODE")] = 0
    """exit code if it was asked to stop before its end; launchers go on after 75"""
    profile: Annotated[str, tyro.conf.arg(metavar="STEPS")] = ""
    """trace these steps of each stage, such as 10-12, into DIR/profile, for TensorBoard or XProf"""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH=VALUE")] = ()
    """change a value of the config; a part may be given by name (--set model.encoder=whisper_base)"""


def run(args: list[str]) -> int:
    """Train, or show the flags of a config for `alm train CONFIG --help`."""
    if args and not args[0].startswith("-") and {"-h", "--help"} & set(args):
        parse_config(read_experiment(args[0]), ["--help"], f"train {args[0]}")
    options, flags = parse_known(Train, args, "train")
    check_folder(options.out)

    import jax

    from alm_jax.core import processes

    processes.join(options.distributed)  # before a config asks for devices
    experiment = overridden(read_experiment(options.config), options.set)
    experiment = parse_config(experiment, flags, "train")

    from alm_jax.train.curriculum import train
    from alm_jax.train.profile import read_steps

    steps = read_steps(options.profile) if options.profile else None
    result = train(experiment, options.out, resume=options.resume, profile=steps)
    if result.stopped:
        return options.stopped_code
    if jax.process_index() == 0:
        answers = experiment.stage_model(experiment.stages[-1]).decoder is not None
        told = f'; ask it: alm ask {options.out} --audio FILE "QUESTION"' if answers else ""
        print(f"{options.out} is trained{told}")
    return 0


def read_experiment(name: str) -> Any:
    """The experiment of a config file, of a shipped config, or of a run (its folder or its `config.json`).

    Raises:
        ConfigError: no such config, or none of an experiment. CheckpointError: the run's config cannot be read.
    """
    folder = Path(name) / "config.json"
    path = folder if folder.is_file() else Path(name)
    from alm_jax.train.config import Experiment, experiment_of

    if path.suffix != ".json":
        config = load_config_file(name).get_config()
        if not isinstance(config, Experiment):
            raise ConfigError(f"{name}: get_config() returns a {type(config).__name__}, expected an Experiment")
        return config
    try:
        return experiment_of(json.loads(path.read_text(encoding="utf-8")), path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as the config of a run ({error})") from error
