"""What all launchers share: the command that they run, steps, restarts, and the dry run that shows them."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from alm_jax.cli.parse import parse, parse_known
from alm_jax.cli.train import Train
from alm_jax.core.errors import AlmError, UsageError

STOPPED = 75
"""Exit code of `alm train` that was asked to stop before its end: start it again (sysexits' EX_TEMPFAIL)."""
HOPELESS = (UsageError.exit_code, 126, 127)
"""Exit codes after which starting again would not help: wrong use or config, and a command that is not there."""
_GRACE = 60.0  # seconds that the others get to leave once one has failed
_LONGEST = 600  # seconds between two attempts


@dataclass(frozen=True)
class Job:
    """A training to launch: the arguments of `alm train`, and the run's folder that is among them."""

    args: tuple[str, ...]
    out: Path

    @classmethod
    def of(cls, args: Sequence[str]) -> Job:
        """
        Raises:
            UsageError: `alm train` does not take these arguments.
        """
        options, _ = parse_known(Train, list(args), "train")
        return cls(tuple(args), options.out)

    @property
    def name(self) -> str:
        """The same for the same folder, and fit for a job's name: `alm-tiny-1a2b3c`."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.out.name.lower()).strip("-")[:30]
        return f"alm-{slug}-{hashlib.sha256(str(self.out).encode()).hexdigest()[:6]}"

    def command(self, alm: Sequence[str] = ("alm",), distributed: bool = True) -> list[str]:
        """The command line of every process; it goes on from the last checkpoint, if there is one."""
        flags = ["--resume"] * ("--resume" not in self.args)
        flags += ["--distributed"] * (distributed and "--distributed" not in self.args)
        return [*alm, "train", *self.args, *flags, "--stopped-code", str(STOPPED)]


@dataclass(frozen=True)
class Step:
    """A command to run.

    Attributes:
        env: variables beside those of this process. log: file that its output is added to; None shows it.
        text: what it reads. name: of what it stands for in messages.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    text: str = ""
    name: str = ""

    def __str__(self) -> str:
        """As a shell would take it."""
        env = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        line = " ".join([*env, shlex.join(self.argv)])
        if self.log is not None:
            line += f" >> {shlex.quote(str(self.log))} 2>&1"
        return f"{line} << 'END'\n{self.text.rstrip()}\nEND" if self.text else line

    def start(self) -> subprocess.Popen:
        """Run it in a session of its own: a Ctrl-C is for the launcher, which asks the steps to stop."""
        log = None if self.log is None else self.log.open("ab")
        process = subprocess.Popen(
            self.argv,
            env=os.environ | dict(self.env),
            stdin=subprocess.PIPE if self.text else subprocess.DEVNULL,
            stdout=log,
            stderr=log and subprocess.STDOUT,
            start_new_session=True,
        )
        if log is not None:
            log.close()
        if self.text:
            process.stdin.write(self.text.encode())
            process.stdin.close()
        return process


@dataclass(kw_only=True)
class Place(ABC):
    """Where processes run: a command line's options, and the steps of one attempt."""

    logs: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder of the logs, one a process (default: the run's folder with .logs behind its name)"""
    restarts: Annotated[int, tyro.conf.arg(metavar="N")] = 20
    """how often a run that failed or was preempted is started again; it goes on from its last checkpoint"""
    backoff: Annotated[int, tyro.conf.arg(metavar="SECONDS")] = 30
    """before the first restart, twice that before the second, and so on up to ten minutes"""
    env: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """environment variable of every process: --env ALM_CACHE=/shared/cache"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print what would be run, and run nothing"""

    restarts_itself: ClassVar[bool] = False
    """Whether the steps hold the restarts, as a cluster's scheduler makes them."""
    logs_here: ClassVar[bool] = True
    """Whether this machine sees the folder of the logs."""

    @abstractmethod
    def attempt(self, job: Job, number: int) -> list[list[Step]]:
        """The steps of an attempt (from 0): groups one after the other, the steps of a group at once.

        Raises:
            UsageError: the options do not fit together.
        """

    def folder(self, job: Job) -> Path:
        """Of the logs; made here, where `logs_here` says so."""
        return self.logs or job.out.with_name(f"{job.out.name}.logs")

    def variables(self) -> dict[str, str]:
        """Those of `--env`."""
        pairs = [setting.partition("=") for setting in self.env]
        if wrong := [setting for setting, (name, equals, _) in zip(self.env, pairs) if not (name and equals)]:
            raise UsageError(f"--env takes NAME=VALUE, got {wrong[0]!r}")
        return {name: value for name, _, value in pairs}

    def exports(self) -> list[str]:
        """Shell lines that set them."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.variables().items()]


def pause(attempt: int, backoff: int) -> int:
    """Seconds before an attempt: none before the first."""
    return min(_LONGEST, attempt * backoff)


def shell_pause(attempt: str, backoff: int) -> str:
    """`pause` in the shell, of a variable."""
    return f"sleep $(( {attempt} * {backoff} < {_LONGEST} ? {attempt} * {backoff} : {_LONGEST} ))"


def main(kind: type[Place], argv: Sequence[str] | None = None) -> int:
    """Run the launcher `kind` with a command line (default: the process's); gives its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    split = given.index("--") if "--" in given else len(given)
    program = kind.__module__ if kind.__module__ != "__main__" else f"launch.{Path(sys.argv[0]).stem}"
    try:
        place = parse(kind, given[:split], program, "python -m")
        if min(place.restarts, place.backoff) < 0:
            raise UsageError("--restarts and --backoff are 0 or more")
        if not given[split + 1 :]:
            raise UsageError(f"what to train is missing: python -m {program} [OPTIONS] -- ltu/tiny --out runs/tiny")
        job = Job.of(given[split + 1 :])
        if place.dry_run:
            made = [f"mkdir -p {shlex.quote(str(place.folder(job)))}"] if place.logs_here else []
            print("\n".join(made + [str(step) for group in place.attempt(job, 0) for step in group]))
            return 0
        return Launcher(place, job).run()
    except AlmError as error:
        print(f"launch: error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as stop:  # the argument parser, after printing help
        return int(stop.code or 0)


class Launcher:
    """Runs a job at a place, as often as it takes. SIGTERM and Ctrl-C are passed on; a second one kills."""

    def __init__(self, place: Place, job: Job):
        self.place, self.job = place, job
        self._running: list[subprocess.Popen] = []
        self._asked = 0  # how often, to stop

    def run(self) -> int:
        """0 when it is trained, or asked to stop and saved; one of `HOPELESS`; 1 if it failed too often."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        limit = 0 if self.place.restarts_itself else self.place.restarts
        folder = self.place.folder(self.job)
        try:
            if self.place.logs_here:
                folder.mkdir(parents=True, exist_ok=True)
            for number in range(limit + 1):
                self._sleep(pause(number, self.place.backoff))
                code = 0 if self._asked else self._attempt(number)
                if code in (0, *HOPELESS) or self._asked:
                    return 0 if code == STOPPED else code
                if number < limit:
                    reason = "was stopped" if code == STOPPED else "failed"
                    wait = pause(number + 1, self.place.backoff)
                    say(f"attempt {number + 1} {reason}: starts again in {wait} s ({limit - number} restarts left)")
            if limit:
                say(f"failed after {limit} restarts; --restarts allows more")
            return 1
        except OSError as error:
            raise UsageError(f"cannot write logs to {folder}: {error.strerror}; give another --logs") from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _attempt(self, number: int) -> int:
        for group in self.place.attempt(self.job, number):
            if code := self._group(group):
                return code
        return 0

    def _group(self, steps: Sequence[Step]) -> int:
        """Run steps at once. The exit code: one of `HOPELESS`, else 1, else that of a stop, else 0."""
        ends = [step.log.stat().st_size if step.log and step.log.is_file() else 0 for step in steps]
        try:
            for step in steps:
                self._running.append(step.start())
            codes = self._wait()
        except FileNotFoundError as error:
            raise UsageError(f"{error.filename} is not installed here: install it, or add it to PATH") from error
        finally:
            self._kill()
            self._running = []
        for step, code, end in zip(steps, codes, ends):
            if code not in (0, STOPPED):
                say(f"{step.name or step.argv[0]} {_reason(code, step.log, end)}")
        if hopeless := set(codes) & {*HOPELESS}:
            return min(hopeless)
        return 0 if not any(codes) else STOPPED if set(codes) <= {0, STOPPED} else 1

    def _wait(self) -> list[int]:
        """Exit codes of what runs, once all of it has ended or was ended."""
        failed, told = None, False
        while any(process.poll() is None for process in self._running):
            if self._asked and not told:
                told = True
                for process in self._running:
                    process.terminate()
            if failed is None and any(process.poll() not in (None, 0, STOPPED) for process in self._running):
                failed = time.monotonic()
            if self._asked > 1 or (failed is not None and time.monotonic() - failed > _GRACE):
                self._kill()
            time.sleep(0.1)
        return [process.returncode for process in self._running]

    def _stop(self, number: int, frame: Any) -> None:
        if not self._asked:
            say(f"{signal.Signals(number).name}: stopping, with a checkpoint (again: kill)")
        self._asked += 1

    def _kill(self) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(min(0.2, seconds))


def say(text: str) -> None:
    """A line for the person who launched."""
    print(f"launch: {text}", file=sys.stderr, flush=True)


def _reason(code: int, log: Path | None, start: int) -> str:
    """Why a step failed: its last line of error, or how it ended."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    if log is None:
        return how
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("alm: error: ")]
    return f"{how} ({log}){': ' + errors[-1].removeprefix('alm: error: ') if errors else ''}"
