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
from alm_jax.data.tasks.open_ended import OpenEnded
from alm_jax.data.tasks.reasoning import Reasoning


@dataclass
class TaskOptions:
    """Formulate labelled clips as rows of questions and answers, which training reads.

    Tasks and what they need of the clips:
      tagging, ltu_classification, few_shot   labels
      captioning, ltu_captioning              captions
      answering                               questions with answers
      detection, retrieval, counting, nlar    events: label, onset, offset
      ltu_temporal                            events: when each sound is heard, and in what order
      ltu_features                            labels; how they sound, of events or by a language model
      open_ended                              labels, events or captions, and a language model

    Tasks are worded as APT's paper has them; those of ltu_ have LTU's questions and formats of answers. few_shot and
    nlar are about several clips: N-way K-shot episodes, and questions that compare two recordings, each pair in both
    orders. open_ended is LTU's Audio Instruction Generation: a language model that is told what is known of a clip
    writes questions and answers.

    The language model stands behind an OpenAI-compatible endpoint (its key in OPENAI_API_KEY), or answers files of
    requests (--writer batch). What it says is kept in ROWS.journal.jsonl, and the same command goes on from there after
    a stop. The same clips, seed and options give the same rows. With --captions each row says in words what is heard,
    for training on text alone (MATS): the clip's caption, or a description of its labels by the same writer; sound
    files need not be there.

    examples:
      alm tasks data/scenes --task detection,retrieval,counting --out data/scenes/events.jsonl
      alm tasks data/audioset_strong --task ltu_classification,ltu_temporal --out data/closed.jsonl --closed-ended 0.5
      alm tasks esc50.csv --task few_shot --out data/5way.jsonl --few-shot.ways 5 --few-shot.shots 5
      alm tasks data/scenes --task nlar --out data/nlar.jsonl --nlar.pairs 200
      alm tasks esc50.csv --task tagging --captions --tag "single event" --out data/mats/esc.jsonl
      alm tasks data/scenes --task open_ended --out data/open.jsonl --writer http://localhost:8000/v1 --model vicuna
      alm tasks data/clotho --task open_ended --out open.jsonl --writer batch --model gpt-4o-mini
      alm tasks data/clotho --task open_ended --out open.jsonl --writer batch --model gpt-4o-mini --answers batch.jsonl
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
    writer: Annotated[str, tyro.conf.arg(metavar="rules|URL|batch")] = "rules"
    """who writes open questions, nlar's, features and captions: rules, an endpoint such as http://localhost:8000/v1, or
    a batch service"""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """the language model"""
    answers: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FILE")] = ()
    """of --writer batch: what the service gave back; again for each further file"""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 4
    """requests to the endpoint at once"""
    closed_ended: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0
    """rows of tasks with fixed answers that begin with "Closed-ended question: " (LTU's last stage: 0.5)"""
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
    open_ended: OpenEnded = field(default_factory=OpenEnded)


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
    from alm_jax.data.tasks.source import JOURNAL, RULES, describer, make_asker

    if options.tag and not options.captions:
        raise UsageError(f"--tag {options.tag!r} goes with --captions: give both, or neither")
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: expected 1 or more")

    names = [name.strip() for name in options.task.split(",") if name.strip()]
    check_tasks(names, options.writer != RULES)
    config = TaskConfig(options.few_shot, options.nlar, options.open_ended, options.closed_ended)
    journal = out.with_name(f"{out.name}{JOURNAL}")
    try:
        with progress("questions") as update:
            how = {"answers": options.answers, "workers": options.workers, "progress": update}
            ask = make_asker(options.writer, options.model, journal, **how)
            clips = read_clips(
                options.clips,
                split=options.split,
                min_confidence=options.min_confidence,
                skip_missing=options.skip_missing,
                need_files=not options.captions,
            )
            if options.captions:
                clips = with_captions(clips, describer(ask), options.seed)
            rows = make_rows(clips, names, config, options.seed, dataset=Path(options.clips).stem, ask=ask)
            counts = write_rows(out, text_rows(rows, clips, options.tag) if options.captions else rows)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{sum(counts.values())} rows ({told}) about {len(clips)} clip{'s' * (len(clips) > 1)} in {out}")
    if counts.get("open_ended"):
        print(_diversity(out))
    return 0


def _diversity(out: Path) -> str:
    from alm_jax.data.rows import read_rows
    from alm_jax.data.tasks.open_ended import TASK, diversity

    found = diversity(row for row in read_rows(out).rows if row.task == TASK)
    return (
        f"open-ended: {found.questions:.1%} of questions and {found.answers:.1%} of answers are unique, "
        f"{found.unanswerable:.1%} of answers say that they cannot be known"
    )
