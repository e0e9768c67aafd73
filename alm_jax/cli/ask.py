"""`alm ask`: questions about a sound file, one, a chat, or a file of rows."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from alm_jax.cli.parse import parse
from alm_jax.core.errors import AlmError, UsageError

_CHAT = "one question a line; /audio FILE takes another clip, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


@dataclass
class Ask:
    """Answer a question about a sound file: the answer alone goes to stdout.

    MODEL is a run's folder, what alm convert wrote of one, or a published LTU or LTU-AS checkpoint. Without --audio the
    question is about no sound. Sampling is the model's own unless options say otherwise: runs answer greedily,
    published checkpoints as LTU was published (temperature 0.1, top-k 500, top-p 0.95, repetition penalty 1.1).

    examples:
      alm ask runs/tiny --audio clip.wav "What is heard?"
      alm ask runs/tiny --audio clip.wav --interactive
      alm ask runs/tiny --batch rows.jsonl --out answers.jsonl
      alm ask runs/tiny "What does a siren sound like?"            no sound
      alm ask runs/tiny --audio clip.wav --temperature 0.7 --top-p 0.9 --seed 3 "Why was it made?"
      alm ask ltu_ori_paper.bin --base vicuna_ltu --audio clip.wav "What is heard?"
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """a run's folder; a checkpoint's file or folder; or a model's name on the hub"""
    question: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")] = None
    """in quotes"""
    audio: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """sound file that is asked about"""
    input: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """further text that the question is about (LTU-AS: what is said in the clip)"""
    interactive: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """read questions from the terminal or stdin, each about the clip alone, not about those before it"""
    batch: Annotated[Path | None, tyro.conf.arg(metavar="ROWS")] = None
    """answer every row of a file: JSON rows with instruction, input and audio_id"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """of --batch: JSON lines with the rows and their prediction; the same command again goes on where it stopped"""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """of --batch: rows answered at once"""
    max_new_tokens: Annotated[int, tyro.conf.arg(metavar="N")] = 128
    """longest answer"""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="T")] = None
    """of the draw of each token; 0 takes the best"""
    top_k: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """draw from the K best tokens; 0 for all"""
    top_p: Annotated[float | None, tyro.conf.arg(metavar="P")] = None
    """draw from the best tokens of probability P together; 1 for all"""
    repetition_penalty: Annotated[float | None, tyro.conf.arg(metavar="R")] = None
    """makes tokens that were there before less likely; 1 for none"""
    seed: int = 0
    """of the draw: the same seed, the same answer"""
    which: Literal["last", "best"] = "last"
    """of a run: the latest checkpoint, or the one with the lowest validation loss"""
    base: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    """of a published checkpoint: the model that it was trained over, its file, folder or name"""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """of a checkpoint: its tokenizer, where it is not beside it or its base"""


def run(args: list[str]) -> None:
    """Answer as `args` say; what is wrong with them is said before the model is loaded."""
    options = parse(Ask, args, "ask")
    _check(options)
    rows = None
    if options.batch:
        from alm_jax.data.rows import read_rows

        rows = read_rows(options.batch, need_output=False)
    if options.audio:
        from alm_jax.audio.io import audio_info

        audio_info(options.audio)
    model = _load(options)
    with _notes():
        _reply(options, model, rows)


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """What the library warns of, a silent clip for one, is a line on stderr, whatever else is set to log there."""
    logger, handler = logging.getLogger("alm_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("alm: note: %(message)s"))
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)


def _reply(options: Ask, model: Any, rows: Any) -> None:
    settings = {
        "max_new_tokens": options.max_new_tokens,
        "sampling": _sampling(options, model.spec.sampling),
        "seed": options.seed,
    }
    if rows is not None:
        _batch(model, options, rows, settings)
        return
    features = model.encode([options.audio])[0] if options.audio else None
    settings["input"] = options.input
    if options.interactive:
        _chat(model, features, settings)
    else:
        _answer(model, options.question, features, settings)


def _check(options: Ask) -> None:
    from alm_jax.infer.sampling import Sampling

    if [options.question is not None, options.interactive, options.batch is not None].count(True) != 1:
        raise UsageError("give one of these: a question in quotes, --interactive, --batch ROWS; see alm ask --help")
    if options.question is not None and not options.question.strip():
        raise UsageError("the question is empty: give it in quotes")
    if options.batch is not None and (options.audio or options.input):
        raise UsageError("--batch takes clips and input from its rows: leave --audio and --input out")
    if (options.batch is None) != (options.out is None):
        raise UsageError("--batch ROWS and --out FILE, for its answers, go together: give both or neither")
    for name in ("max_new_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    if options.seed < 0:
        raise UsageError(f"--seed {options.seed}: expected 0 or more")
    Sampling(**_drawn(options))  # refuses values out of range


def _drawn(options: Ask) -> dict[str, Any]:
    """The values of sampling that the options give."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _sampling(options: Ask, own: Any) -> Any:
    sampling = replace(own, **_drawn(options))
    if not sampling.temperature and (options.top_k is not None or options.top_p is not None):
        raise UsageError("--top-k and --top-p narrow a draw, and nothing is drawn at temperature 0: give --temperature")
    return sampling


def _load(options: Ask) -> Any:
    from rich.console import Console

    from alm_jax.api import load

    with Console(stderr=True).status(f"loading {options.model}"):
        return load(options.model, which=options.which, base=options.base, tokenizer=options.tokenizer)


def _answer(model: Any, question: str, features: Any, settings: dict[str, Any]) -> None:
    """Print the answer, on a terminal word by word as it is made."""
    said = ""

    def show(piece: str) -> None:
        nonlocal said
        said += piece
        print(piece, end="", flush=True)

    (answer,) = model.answer([question], [features], on_text=show if sys.stdout.isatty() else None, **settings)
    print(answer.removeprefix(said) if answer.startswith(said) else "", flush=True)


def _chat(model: Any, features: Any, settings: dict[str, Any]) -> None:
    """Answer line by line; a mistake ends a question, not the chat."""
    if sys.stdin.isatty():
        print(_CHAT, file=sys.stderr)
    for line in _lines():
        command, _, argument = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/audio":
                features = model.encode([_clip(argument)])[0]
            elif command.startswith("/"):
                raise UsageError(f"no command {command}; {_CHAT}")
            elif line:
                _answer(model, line, features, settings)
        except AlmError as error:
            print(f"alm: error: {' '.join(str(error).split())}", file=sys.stderr)
        except KeyboardInterrupt:
            print(file=sys.stderr)


def _clip(argument: str) -> Path:
    if not argument.strip():
        raise UsageError("/audio takes a sound file: /audio FILE")
    return Path(argument.strip()).expanduser()


def _lines() -> Iterator[str]:
    """Lines of stdin without blanks around them; on a terminal with a prompt, and with the history of readline."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401
        # Readline writes the prompt itself, to the terminal that stdout is.
        read = lambda: input("> ")
    else:
        # Answers go into a file or pipe: the prompt must not.
        prompt = "> " if sys.stdin.isatty() else ""

        def read() -> str:
            print(prompt, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line

    while True:
        try:
            line = read()
        except EOFError:
            if sys.stdin.isatty():
                print(file=sys.stderr)
            return
        yield line.strip()


def _batch(model: Any, options: Ask, rows: Any, settings: dict[str, Any]) -> None:
    from alm_jax.cli.display import progress
    from alm_jax.infer.batch import answer_file

    try:
        with progress("rows") as update:
            done = answer_file(model, rows, options.out, batch_size=options.batch_size, progress=update, **settings)
    except KeyboardInterrupt:
        print(f"stopped; {options.out} keeps what was answered, and the same command goes on", file=sys.stderr)
        raise
    if done.failed:
        raise AlmError(f"{done.failed} of {done.rows} rows have an error in place of an answer; see {options.out}")
    print(f"{done.rows} answers in {options.out}")
