"""`alm scenes`: labelled clips composed into scenes with questions and answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from alm_jax.cli.parse import check_folder, parse
from alm_jax.data.scenes import SceneConfig


@dataclass
class Scenes:
    """Compose labelled clips into scenes whose content is known, with question and answer rows about them.

    DIR gets scenes/*.flac, scenes.jsonl (what is heard, and when) and rows.json (what training reads). The same command
    again goes on where it was stopped, and a larger --num adds scenes.

    examples:
      alm scenes shipped --out data/scenes --num 1000
      alm scenes my_clips/ --out data/scenes --num 200 --seed 1 --workers 4
      alm scenes esc50.csv --out data/test --num 100 --split unseen
      alm scenes shipped --out data/loud --num 10 --scene.sounds 2 3 --scene.background-probability 0
    """

    clips: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CLIPS")]
    """folder with one sub-folder a label, CSV with columns file,label, or `shipped`: the clips in this package"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """folder to write to"""
    num: Annotated[int, tyro.conf.arg(metavar="N")]
    """number of scenes"""
    seed: int = 0
    """scene i depends on the seed and i alone"""
    split: Literal["all", "train", "unseen"] = "all"
    """which clips: all, those to train on, or those held out to test on (each label with several gives some up)"""
    workers: int = 1
    """processes"""
    scene: SceneConfig = field(default_factory=SceneConfig)


def run(args: list[str]) -> int:
    """Compose scenes as `args` say, and print where the rows are."""
    options = parse(Scenes, args, "scenes")
    check_folder(options.out)

    from alm_jax.core.display import progress
    from alm_jax.data.manifest import choose_clips
    from alm_jax.data.scenes import write_scenes

    clips, vocabulary = choose_clips(options.clips, options.split)
    try:
        with progress("scenes") as update:
            how = {"vocabulary": vocabulary, "workers": options.workers, "progress": update}
            rows = write_scenes(options.out, clips, options.scene, options.num, options.seed, **how)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    made = f"{options.num} scene{'s' if options.num > 1 else ''} from {len(clips)} clip{'s' if len(clips) > 1 else ''}"
    print(f"{made}; questions and answers in {rows}")
    return 0
