"""`alm ask`: questions about sound files, one, a chat, or a file of rows."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from alm_jax.cli.parse import load_model, parse
from alm_jax.core.errors import AlmError, UsageError

_CHAT = "one question a line; /audio FILE ... takes other clips, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


@dataclass
class Ask:
    """Answer a question about sound files: the answer alone goes to stdout.

    MODEL is a run's folder, what alm convert wrote of one, or a published checkpoint. Without --audio the
    question is about no sound. With several --audio, <audio> marks in the question say where each clip is heard, in
    their order; without marks all come first. How answers are chosen is the model's own unless options say otherwise:
    runs answer greedily, LTU and LTU-AS draw (temperature 0.1, top-k 500, top-p 0.95, repetition penalty 1.1), APT and
    MATS search with 5 and 4 beams.

    examples:
      alm ask runs/tiny --audio clip.wav "What is heard?"
      alm ask runs/tiny --audio a.wav --audio b.wav "Which is louder?"
      alm ask runs/tiny --audio a.wav --audio b.wav "<audio> came before <audio>. What changed?"
      alm ask runs/tiny --audio clip.wav --choices "dog bark; rain; siren" "What is heard?"
      alm ask runs/tiny --example dog.wav "This is a dog" --example cat.wav "This is a cat" --audio c.wav "This is a"
      alm ask apt_7b --base instructblip --image clip.mp4 --audio clip.wav "What happens?"      sees and hears
      alm ask runs/tiny --audio clip.wav --interactive
      alm ask runs/tiny --batch rows.jsonl --out answers.jsonl
      alm ask runs/tiny "What does a siren sound like?"            no sound
      alm ask runs/tiny --audio clip.wav --temperature 0.7 --top-p 0.9 --seed 3 "Why was it made?"
      alm ask runs/tiny --audio clip.wav --beams 5 --length-penalty 2 "Describe the sound."
      alm ask runs/mats --memory bank.safetensors --audio clip.wav "What is heard?"
      alm ask ltu_ori_paper.bin --base vicuna_ltu --audio clip.wav "What is heard?"
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """a run's folder; a checkpoint's file or folder; or a model's name on the hub"""
    question: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")] = None
    """in quotes"""
    audio: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FILE")] = ()
    """sound file that is asked about; again for each further one"""
    image: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FILE")] = ()
    """picture or video that is asked about, before the sounds (APT-BLIP-2); again for each further one"""
    frames: Annotated[int, tyro.conf.arg(metavar="N")] = 4
    """of a video given as --image: so many of its frames"""
    example: Annotated[tyro.conf.UseAppendAction[tuple[tuple[Path, str], ...]], tyro.conf.arg(metavar="FILE TEXT")] = ()
    """a sound file and the text that follows it, before the question; again for each further one (few-shot)"""
    choices: Annotated[str | None, tyro.conf.arg(metavar="A;B;C")] = None
    """say which of these the model holds most likely, by mean log-likelihood; of --batch also `meta`: each row's own"""
    input: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """further text that the question is about (LTU-AS: what is said in the clip)"""
    interactive: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """read questions from the terminal or stdin, each about the clips alone, not about those before it"""
    batch: Annotated[Path | None, tyro.conf.arg(metavar="ROWS")] = None
    """answer every row of a file: JSON rows with instruction, input and audio_id"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """of --batch: JSON lines with the rows and their prediction; the same command again goes on where it stopped"""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """of --batch: rows answered at once"""
    segments: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """hear a long clip in up to N windows of the model's, side by side; 1 hears its beginning"""
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
    beams: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """beam search: so many answers grow side by side; nothing is drawn"""
    length_penalty: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """of beam search: log-likelihoods are divided by length to this power; the higher, the longer"""
    no_repeat_ngram: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """of beam search: so many tokens in a row occur once in an answer; 0 allows all"""
    seed: int = 0
    """of the draw: the same seed, the same answer"""
    which: Literal["last", "best"] = "last"
    """of a run: the latest checkpoint, or the one with the lowest validation loss"""
    memory: Annotated[str | None, tyro.conf.arg(metavar="BANK")] = None
    """of MATS: draw clips towards these texts (alm memory build)"""
    santa: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """of --memory: another way than the model's own, such as share=0.5, clusters=0, normalise=true"""
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
    for clip in [*options.audio, *(clip for clip, _ in options.example)]:
        from alm_jax.audio.io import audio_info

        audio_info(clip)
    model = load_model(options)
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
    encode = lambda clips: model.encode(clips, options.segments) if clips else []
    texts = [text for _, text in options.example]
    examples = list(zip(encode([clip for clip, _ in options.example]), texts))
    seen = model.see(_pictures(options))
    asker = _Asker(model, examples, _choices(options), options.input, seen, settings)
    if options.interactive:
        _chat(asker, encode, encode(options.audio))
    else:
        asker(options.question, encode(options.audio))


def _pictures(options: Ask) -> list[Any]:
    from alm_jax.infer.images import pictures

    return [picture for path in options.image for picture in pictures(path, options.frames)]


def _check(options: Ask) -> None:
    from alm_jax.infer.clips import check_marks, with_examples
    from alm_jax.infer.sampling import Sampling

    if [options.question is not None, options.interactive, options.batch is not None].count(True) != 1:
        raise UsageError("give one of these: a question in quotes, --interactive, --batch ROWS; see alm ask --help")
    if options.question is not None and not options.question.strip():
        raise UsageError("the question is empty: give it in quotes")
    if options.batch is not None and (options.audio or options.image or options.input or options.example):
        raise UsageError(
            "--batch takes clips and input from its rows: leave --audio, --image, --example and --input out"
        )
    if (options.batch is None) != (options.out is None):
        raise UsageError("--batch ROWS and --out FILE, for its answers, go together: give both or neither")
    for name in ("max_new_tokens", "batch_size", "segments", "frames"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    if options.seed < 0:
        raise UsageError(f"--seed {options.seed}: expected 0 or more")
    if options.question is not None:
        check_marks(options.question + options.input, len(options.audio))
    with_examples("", [], options.example)
    given = _given(options)
    if _choices(options) and given:
        raise UsageError("--choices compares given answers, and makes none: leave options of how tokens are chosen out")
    of_beams = {"beams": 2} if {"length_penalty", "no_repeat_ngram"} & given.keys() else {}
    Sampling(**(of_beams | given))  # refuses values out of range


def _choices(options: Ask) -> tuple[str, ...] | str | None:
    """The answers to choose from, or `meta`."""
    if options.choices is None or (options.choices == "meta" and options.batch is not None):
        return options.choices
    choices = tuple(choice.strip() for choice in options.choices.split(";"))
    if len(choices) < 2 or not all(choices):
        also = " or meta" if options.batch is not None else ""
        raise UsageError(f"--choices {options.choices!r}: expected two answers or more, parted by ;{also}")
    return choices


def _given(options: Ask) -> dict[str, Any]:
    """The values of sampling that the options give."""
    from alm_jax.infer.sampling import Sampling

    names = [field.name for field in fields(Sampling)]
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _sampling(options: Ask, own: Any) -> Any:
    given = _given(options)
    if given.get("beams", 1) > 1:
        own = replace(own, temperature=0.0, top_k=0, top_p=1.0)
    elif "beams" in given or given.get("temperature"):
        own = replace(own, beams=1, length_penalty=1.0, no_repeat_ngram=0)
    sampling = replace(own, **given)
    if not sampling.temperature and (options.top_k is not None or options.top_p is not None):
        raise UsageError("--top-k and --top-p narrow a draw, and nothing is drawn at temperature 0: give --temperature")
    return sampling


@dataclass(frozen=True)
class _Asker:
    """Prints the answer to a question about clips, on a terminal word by word as it is made."""

    model: Any
    examples: list[tuple[Any, str]]
    choices: tuple[str, ...] | None
    input: str
    seen: Any
    settings: dict[str, Any]

    def __call__(self, question: str, features: list[Any]) -> None:
        from alm_jax.infer.clips import with_examples

        question, features = with_examples(question, features, self.examples)
        if self.choices:
            (scores,) = self.model.likelihoods([question], [features], [self.choices], input=self.input, seen=self.seen)
            print(next(iter(scores)), flush=True)
            return
        said = ""

        def show(piece: str) -> None:
            nonlocal said
            said += piece
            print(piece, end="", flush=True)

        on_text = show if sys.stdout.isatty() else None
        settings = {"input": self.input, "seen": self.seen, "on_text": on_text} | self.settings
        (answer,) = self.model.answer([question], [features], **settings)
        print(answer.removeprefix(said) if answer.startswith(said) else "", flush=True)


def _chat(asker: _Asker, encode: Callable[[list[Path]], list[Any]], features: list[Any]) -> None:
    """Answer line by line; a mistake ends a question, not the chat."""
    if sys.stdin.isatty():
        print(_CHAT, file=sys.stderr)
    for line in _lines():
        command, _, argument = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/audio":
                features = encode(_clips(argument))
            elif command.startswith("/"):
                raise UsageError(f"no command {command}; {_CHAT}")
            elif line:
                asker(line, features)
        except AlmError as error:
            print(f"alm: error: {' '.join(str(error).split())}", file=sys.stderr)
        except KeyboardInterrupt:
            print(file=sys.stderr)


def _clips(argument: str) -> list[Path]:
    """One sound file, whose name may hold blanks, or several as in a shell."""
    whole = argument.strip()
    if not whole:
        raise UsageError("/audio takes sound files: /audio FILE ...")
    if Path(whole).expanduser().exists():
        return [Path(whole).expanduser()]
    try:
        return [Path(name).expanduser() for name in shlex.split(whole)]
    except ValueError:  # an open quote
        return [Path(whole).expanduser()]


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
    from alm_jax.core.display import progress
    from alm_jax.infer.batch import answer_file

    settings |= {"batch_size": options.batch_size, "segments": options.segments, "choices": _choices(options)}
    try:
        with progress("rows") as update:
            done = answer_file(model, rows, options.out, progress=update, **settings)
    except KeyboardInterrupt:
        print(f"stopped; {options.out} keeps what was answered, and the same command goes on", file=sys.stderr)
        raise
    if done.failed:
        raise AlmError(f"{done.failed} of {done.rows} rows have an error in place of an answer; see {options.out}")
    print(f"{done.rows} answers in {options.out}")
