"""`alm tasks`: labelled clips formulated as rows of questions and answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from alm_jax.cli.parse import parse
from alm_jax.core.errors import UsageError
from alm_jax.data.tasks.few_shot import FewShot
from alm_jax.data.tasks.reasoning import Reasoning


@dataclass
class TaskOptions:
    """Formulate labelled clips as rows of questions and answers, which training reads.

    Tasks and what they need of the clips:
      tagging, few_shot                       labels
      captioning                              captions
      answering                               questions with answers
      detection, retrieval, counting, nlar    events: label, onset, offset

    Questions are worded as APT's paper has them. few_shot and nlar are about several clips: N-way K-shot episodes, and
    questions that compare two recordings, each pair in both orders. Questions of nlar are written by rule, or by a
    language model behind an OpenAI-compatible endpoint (its key in OPENAI_API_KEY): its answers are kept in
    ROWS.journal.jsonl, and the same command goes on from there after a stop. The same clips, seed and options give the
    same rows. With --captions each row says in words what is heard, for training on text alone (MATS): the clip's
    caption, or a description of its labels by the same writer; sound files need not be there.

    examples:
      alm tasks data/scenes --task detection,retrieval,counting --out data/scenes/events.jsonl
      alm tasks esc50.csv --task few_shot --out data/5way.jsonl --few-shot.ways 5 --few-shot.shots 5
      alm tasks data/scenes --task nlar --out data/nlar.jsonl --nlar.pairs 200
      alm tasks esc50.csv --task tagging --captions --tag "single event" --out data/mats/esc.jsonl
      alm tasks data/scenes --task nlar --out data/asked.jsonl --writer http://localhost:8000/v1 --model vicuna
    """

    clips: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CLIPS")]
    """folder that `alm scenes` wrote; JSON, CSV or TSV of clips; folder with one sub-folder a label; or `shipped`"""
    task: Annotated[str, tyro.conf.arg(metavar="NAME[,NAME]")]
    """tasks, parted by commas"""
    out: Annotated[Path, tyro.conf.arg(metavar="ROWS")]
    """file to write: JSON lines"""
    split: str = "all"
    """clips whose split is this; folders of clips have `train` and `unseen`"""
    seed: int = 0
    """of wording, and of what is asked about"""
    writer: Annotated[str, tyro.conf.arg(metavar="rules|URL")] = "rules"
    """who writes nlar's questions, and captions: rules, or an endpoint such as http://localhost:8000/v1"""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """the endpoint's model"""
    captions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """rows for training on text alone, with a caption of each clip"""
    tag: Annotated[str, tyro.conf.arg(metavar="TAG")] = ""
    """of --captions: written before each question, in brackets, as MATS marks its data sets"""
    min_confidence: float = 0.0
    """leave out events whose annotation is less sure"""
    skip_missing: bool = False
    """leave out clips whose file is not there"""
    few_shot: FewShot = field(default_factory=FewShot)
    nlar: Reasoning = field(default_factory=Reasoning)


def run(args: list[str]) -> int:
    """Write the rows that `args` ask for, and print how many there are."""
    options = parse(TaskOptions, args, "tasks")
    out = options.out
    if out.exists():
        raise UsageError(f"--out {out} is {'a folder' if out.is_dir() else 'there already'}; give a new file")

    from alm_jax.core.display import progress
    from alm_jax.data.tasks.audiotia import text_rows, with_captions
    from alm_jax.data.tasks.clips import read_clips
    from alm_jax.data.tasks.registry import TaskConfig, check_tasks, make_rows, write_rows
    from alm_jax.data.tasks.source import make_describer, make_writer

    if options.tag and not options.captions:
        raise UsageError(f"--tag {options.tag!r} goes with --captions: give both, or neither")

    names = [name.strip() for name in options.task.split(",") if name.strip()]
    check_tasks(names)
    journal = out.with_name(f"{out.name}.journal.jsonl")
    try:
        with progress("questions") as update:
            writer = make_writer(options.writer, options.model, journal, update)
            how = {"dataset": Path(options.clips).stem, "writer": writer}
            clips = read_clips(
                options.clips,
                split=options.split,
                min_confidence=options.min_confidence,
                skip_missing=options.skip_missing,
                need_files=not options.captions,
            )
            config = TaskConfig(options.few_shot, options.nlar)
            if options.captions:
                describe = make_describer(options.writer, options.model, journal, update)
                clips = with_captions(clips, describe, options.seed)
            rows = make_rows(clips, names, config, options.seed, **how)
            counts = write_rows(out, text_rows(rows, clips, options.tag) if options.captions else rows)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{sum(counts.values())} rows ({told}) about {len(clips)} clip{'s' * (len(clips) > 1)} in {out}")
    return 0
