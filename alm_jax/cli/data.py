"""`alm data`: published data sets: what there is, which files they have, and their preparation for training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from alm_jax.cli.parse import parse
from alm_jax.core.errors import UsageError
from alm_jax.data.sets.base import DataSet, Report
from alm_jax.data.sets.registry import SETS, find_set

_SHOWN = 5  # problems of a kind that are printed; all stand in the report


@dataclass
class DataOptions:
    """Prepare published data sets for training, from the files as their authors publish them.

      list          the sets, their sizes and licences
      info NAME     where a set is had, which files are expected, its splits
      prepare NAME  write it as shards (ArrayRecord, 16-bit audio) which training, `alm tasks` and TFDS read
      check CLIPS   find clips to train on that evaluation sets hold too

    Files are found by the last parts of their paths, anywhere below --src, also inside zip and uncompressed tar
    archives. What is wrong with them (missing or damaged audio, broken rows, duplicate ids, ...) is left out, counted,
    and listed in DIR/NAME/1.0.0/report.jsonl; the exit code is 1 if it is more than --max-bad-share. After a stop the
    same command goes on, and after files were mended it does what they change; the shards are the same bytes either
    way, with any number of workers.

    CLIPS are a prepared set, a file of rows, or a manifest or folder of clips, maybe some splits of it
    (data/clotho:train+val); so are the sets --against which they are checked, by default what is published to test on
    of the sets that are prepared beside them. The same recording is known by its id (YouTube's, Freesound's) and by its
    sound, through codecs, sample rates, gains and cuts. The exit code is 1 if any is found; training leaves them out.

    examples:
      alm data list
      alm data info esc50
      alm data prepare esc50 --src ESC-50-master --out data --workers 4
      alm data check data/wavcaps --against data/esc50 data/clotho:test --workers 4 --out leaks.jsonl
      alm data prepare audioset --src audioset --out data --beam-runner DirectRunner
    """

    action: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="list|info|prepare|check")]
    """what to do"""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|CLIPS")] = ""
    """the set, or the clips to check"""
    src: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder of the set's files"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR|FILE")] = None
    """folder of prepared sets; this one goes to DIR/NAME/1.0.0. Of check: file for all leaks, as JSON lines"""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SET[:SPLIT] ...")] = ()
    """of check: evaluation sets"""
    workers: int = 1
    """processes"""
    max_seconds: float | None = None
    """cut longer clips to this"""
    max_bad_share: float | None = None
    """share of problems that is borne (default: what is usual for the set, as `info` shows)"""
    beam_runner: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """write the shards with Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ..."""
    beam_options: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    """the runner's own options, as one text: "--region=... --project=..." """


def run(args: list[str]) -> int:
    """List sets, show one, or prepare one."""
    options = parse(DataOptions, args, "data")
    if options.action not in ("list", "info", "prepare", "check"):
        raise UsageError(f"alm data {options.action}: expected list, info, prepare or check")
    if options.action == "list":
        _list()
        return 0
    if not options.name:
        raise UsageError(f"alm data {options.action}: which set? `alm data list` lists them")
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: expected at least 1")
    if options.action == "check":
        return _check(options)
    dataset = find_set(options.name)
    if options.action == "info":
        print(describe(dataset))
        return _look(dataset, options.src) if options.src else 0
    if options.src is None or options.out is None:
        raise UsageError(f"alm data prepare {options.name}: needs --src DIR (its files) and --out DIR")
    return _prepare(dataset, options)


def _check(options: DataOptions) -> int:
    from alm_jax.core.display import progress
    from alm_jax.core.files import write_text
    from alm_jax.data.leaks import Clips, Guard, beside, counts, report

    clips = Clips.of(options.name).paths()
    held = [Clips.of(text) for text in options.against] or beside(clips)
    if not held:
        raise UsageError(f"{options.name}: no set to test on is prepared beside it: name some by --against")
    try:
        with progress("clips of evaluation sets") as update:
            guard = Guard(held, workers=options.workers, progress=update)
        with progress("clips to train on") as update:
            found = guard.find(clips, workers=options.workers, progress=update)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if options.out is not None:
        write_text(options.out, report(found.leaks))
    leaked = {leak.clip for leak in found.leaks}
    print(f"{len(leaked)} of {len(clips)} clips of {options.name} are held by {len(guard)} clips to test on")
    for name, by in counts(found.leaks, held).items():
        print(f"  {name}: " + ", ".join(f"{count} by {how}" for how, count in by.items()))
    for leak in found.leaks[:_SHOWN]:
        print(f"  {leak.clip} = {leak.held} ({leak.why})", file=sys.stderr)
    if len(found.leaks) > _SHOWN:
        where = f"; all stand in {options.out}" if options.out else " (--out FILE lists all)"
        print(f"  and {len(found.leaks) - _SHOWN} more{where}", file=sys.stderr)
    if found.faint:
        print(f"  {found.faint} clips have too little sound to be told by it", file=sys.stderr)
    return 1 if leaked else 0


def describe(dataset: DataSet) -> str:
    """A set in lines of text."""
    size = ", ".join(
        told
        for value, told in (
            (dataset.clips, f"{dataset.clips} clips"),
            (dataset.hours, f"{dataset.hours:g} h" if dataset.hours else ""),
            (dataset.gigabytes, f"{dataset.gigabytes:g} GB" if dataset.gigabytes else ""),
        )
        if value is not None
    )
    lines = [
        f"{dataset.name}: {dataset.title}",
        f"  from      {dataset.url}",
        f"  licence   {dataset.licence}",
        f"  size      {size}",
        f"  splits    {', '.join(dataset.splits)}",
        f"  problems  up to {dataset.bad_share:.0%} are borne",
        *([f"  tested on {', '.join(dataset.tests)}"] if dataset.tests else []),
        *([f"  shares    clips with other sets of {', '.join(dataset.shares)}"] if dataset.shares else []),
        *([f"  note      {dataset.note}"] if dataset.note else []),
        "  files     " + "\n            ".join(_expected(dataset)),
    ]
    return "\n".join(lines)


def _expected(dataset: DataSet) -> list[str]:
    groups = [each.group for each in dataset.expected]
    return [
        f"{each.pattern.replace('{audio}', 'wav')}  {each.what}"
        + (f" (one of the {each.group} is enough)" if each.group and groups.count(each.group) > 1 else "")
        for each in dataset.expected
    ]


def _list() -> None:
    from rich.table import Table

    from alm_jax.core.display import print_table

    table = Table("set", "clips", "hours", "GB", "splits", "licence", box=None, pad_edge=False)
    for each in SETS.values():
        splits = f"{each.splits[0]} ... {each.splits[-1]}" if len(each.splits) > 4 else ", ".join(each.splits)
        numbers = ("" if value is None else f"{value:g}" for value in (each.hours, each.gigabytes))
        table.add_row(each.name, str(each.clips or ""), *numbers, splits, each.licence)
    print_table(table)


def _look(dataset: DataSet, src: Path) -> int:
    """Whether the files are there."""
    from alm_jax.data.sets.files import Files

    dataset.check(Files(src, Report()))
    print(f"  {src} has them")
    return 0


def _prepare(dataset: DataSet, options: DataOptions) -> int:
    from alm_jax.core.display import progress
    from alm_jax.data.sets.prepare import REPORT, prepare

    allowed = dataset.bad_share if options.max_bad_share is None else options.max_bad_share
    if not 0 <= allowed <= 1:
        raise UsageError(f"--max-bad-share {allowed}: expected 0 to 1")
    try:
        with progress(f"clips of {dataset.name}") as update:
            done = prepare(
                dataset,
                options.src,
                options.out,
                workers=options.workers,
                max_seconds=options.max_seconds,
                beam_runner=options.beam_runner,
                beam_options=options.beam_options.split(),
                progress=update,
            )
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    splits = ", ".join(f"{count} {split}" for split, count in done.clips.items())
    print(
        f"{sum(done.clips.values())} clips ({splits}) in {done.folder}; {done.new_shards} of {done.shards} shards new"
    )
    for kind, count in done.report.counts().items():
        some = [f"{where}{f' ({detail})' if detail else ''}" for k, where, detail in done.report.problems if k == kind]
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        print(f"  {count} {kind}: {'; '.join(some[:_SHOWN])}{more}", file=sys.stderr)
    if done.bad_share > allowed:
        print(
            f"alm: error: {len(done.report)} problems are {done.bad_share:.1%}, more than {allowed:.1%} "
            f"(--max-bad-share); all stand in {done.folder / REPORT}",
            file=sys.stderr,
        )
        return 1
    return 0
