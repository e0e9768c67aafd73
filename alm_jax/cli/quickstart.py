"""`alm quickstart`: train a small model on composed scenes, score it, and show what to ask it next."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from alm_jax.cli.parse import check_folder, parse

CONFIG, TINY_CONFIG = "ltu_as/smollm2_whisper_base", "ltu/tiny"
_NAMES = {
    "events": "which events",
    "first": "which first",
    "order": "in what order",
    "presence": "is it there",
    "count": "how many",
}


@dataclass
class Quickstart:
    """Train a small audio-language model on composed scenes, score it, and show what to ask it next.

    Whisper base hears, a transformer over its layers translates, SmolLM2-135M answers. Scenes are mixed from real
    recordings inside the package; 240 MB of weights are downloaded once. It takes a quarter of an hour on two cores.
    Stopped by Ctrl-C or a crash, the same command goes on where it was; after the end it shows the results again.

    examples:
      alm quickstart
      alm quickstart --tiny                 the same from random weights, without a download, in about a minute
      alm quickstart --out runs/first
    """

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder of the run (default: runs/quickstart, or runs/quickstart-tiny)"""
    tiny: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """from random weights, without a download, to see everything work"""


@dataclass(frozen=True)
class Size:
    """How much is scored: questions of each kind, scenes they are about, and longest answers in tokens."""

    per_kind: int
    scenes: int
    kinds: tuple[str, ...]


_FULL = Size(per_kind=20, scenes=24, kinds=("events", "first", "order", "presence", "count"))
_TINY = Size(per_kind=8, scenes=8, kinds=("events", "count", "presence"))


def run(args: list[str]) -> int:
    """Train what is not trained yet, score what is not scored yet, and show it."""
    options = parse(Quickstart, args, "quickstart")
    out = (options.out or Path("runs/quickstart-tiny" if options.tiny else "runs/quickstart")).absolute()
    check_folder(out)
    began = time.monotonic()
    stopped = _train(TINY_CONFIG if options.tiny else CONFIG, out)
    if stopped:
        print(f"stopped; the same command goes on: {_again(options)}", file=sys.stderr)
        return 0
    results = _scored(out, _TINY if options.tiny else _FULL)
    _show(out, results, time.monotonic() - began)
    return 0


def _again(options: Quickstart) -> str:
    parts = ["alm", "quickstart", *["--tiny"] * options.tiny]
    return shlex.join([*parts, "--out", str(options.out)] if options.out else parts)


def _train(config: str, out: Path) -> bool:
    """Train or go on; whether it was asked to stop before its end."""
    from alm_jax.core.config import load_config_file
    from alm_jax.train.curriculum import train

    return train(load_config_file(config).get_config(), out, resume=True).stopped


def _scored(out: Path, size: Size) -> dict[str, Any]:
    """The results in `out/results.json`, made first if they are not there."""
    from alm_jax.core.files import write_text

    path = out / "results.json"
    if not path.is_file():
        write_text(path, json.dumps(_score(out, size), indent=1))
    return json.loads(path.read_text())


def _score(out: Path, size: Size) -> dict[str, Any]:
    """Scores on held-out mixtures and on unseen clips, and five answers about a held-out file."""
    from alm_jax.api import loaded_run
    from alm_jax.core.cache import cache_dir
    from alm_jax.data.composed import Scenes
    from alm_jax.data.rows import read_rows
    from alm_jax.eval.scenes import score_scenes
    from alm_jax.train.run import load_run, untrained

    run = load_run(out)
    models = {"trained": loaded_run(run), "untrained": loaded_run(untrained(run))}
    seen = next(source for source in run.stage.data.sources if isinstance(source, Scenes))
    held_out = {
        "held-out mixtures": replace(seen, n=size.scenes, seed=seen.seed + 1000, kinds=size.kinds),
        "unseen clips": replace(seen, n=size.scenes, seed=seen.seed + 2000, kinds=size.kinds, split="unseen"),
    }
    train_rows = list(read_rows(seen.write(cache_dir())).rows)
    results: dict[str, Any] = {"tables": {}, "records": {}}
    for name, scenes in held_out.items():
        rows = scenes.write(cache_dir())
        with _progress(f"scoring {name}") as tell:
            table, records = score_scenes(
                models, rows, train_rows, kinds=size.kinds, per_kind=size.per_kind, progress=tell
            )
        results["tables"][name] = [asdict(row) for row in table]
        results["records"][name] = records
    sample_rows = held_out["held-out mixtures"].write(cache_dir())
    results |= _five_answers(out, models["trained"], sample_rows, size.kinds)
    return results


def _five_answers(out: Path, model: Any, rows_path: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Five questions about one held-out file, which is copied into the run so that it can be listened to."""
    import shutil

    from alm_jax.data.questions import QUESTION_KINDS, make_rows
    from alm_jax.data.scenes import read_scenes

    ordered = [*kinds, *(kind for kind in QUESTION_KINDS if kind not in kinds)]
    # The scene about which most can be asked; what was trained on comes first.
    asked = {
        name: sorted(make_rows(scene, name, ordered, 0), key=lambda row: ordered.index(row["task"]))
        for name, scene in read_scenes(rows_path.parent / "scenes.jsonl")
    }
    clip = max(asked, key=lambda name: len(asked[name]))
    scene = dict(read_scenes(rows_path.parent / "scenes.jsonl"))[clip]
    sample = out / "sample.flac"
    shutil.copyfile(rows_path.parent / clip, sample)
    rows = asked[clip][:5]
    answers = model.generate([row["instruction"] for row in rows], str(sample), max_new_tokens=48)
    heard = [f"{event.phrase} at {event.onset:.1f}-{event.offset:.1f} s" for event in scene.events]
    told = [
        {"question": row["instruction"], "answer": " ".join(answer.split()), "output": row["output"]}
        for row, answer in zip(rows, answers, strict=True)
    ]
    return {"sample": sample.name, "heard": heard, "answers": told}


def _progress(what: str) -> Any:
    from contextlib import contextmanager

    from alm_jax.core.display import progress

    @contextmanager
    def named():
        with progress(what) as bar:
            yield lambda name, done, total: bar(done, total)

    return named()


def _show(out: Path, results: dict[str, Any], seconds: float) -> None:
    """Tables, five answers, and where everything lies."""
    from rich.table import Table

    from alm_jax.core.display import print_table
    from alm_jax.train.plots import plot_losses

    for name, rows in results["tables"].items():
        table = Table(title=f"Scores on {name} (1 is best)")
        table.add_column("question")
        for column in ("rows", *rows[0]["scores"]):
            table.add_column(column, justify="right")
        for row in rows:
            values = [f"{value:.2f}" for value in row["scores"].values()]
            table.add_row(_NAMES.get(row["kind"], row["kind"]), str(row["rows"]), *values)
        every = [sum(row["scores"][who] for row in rows) / len(rows) for who in rows[0]["scores"]]
        table.add_section()
        table.add_row("mean", str(sum(row["rows"] for row in rows)), *[f"{value:.2f}" for value in every])
        print_table(table)
    sample = _near(out / results["sample"])
    print(f"\nFive questions about {sample}, a scene it never heard ({'; '.join(results['heard'])}):")
    for told in results["answers"]:
        print(f"  Q {told['question']}\n  A {told['answer']}\n    (true: {told['output']})")
    print(f"\nrun     {_near(out)} ({seconds:.0f} s)")
    print(f"losses  {_near(plot_losses(out))}")
    print(f"answers {_near(out / 'results.json')}")
    ask = shlex.join(["alm", "ask", str(_near(out)), "--audio", str(sample), results["answers"][0]["question"]])
    print(f"\nNext: {ask}")


def _near(path: Path) -> Path:
    """The path as seen from here, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
