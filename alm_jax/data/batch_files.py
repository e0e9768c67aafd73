"""Prompts answered through files of the Batch API, as OpenAI's and other services take and give them.

Requests are written as JSON lines, and what the service gives back is read into the same journal that answers over an
endpoint go to: answers may come by both ways, in any number of rounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from alm_jax.core.errors import DataError, EndpointError
from alm_jax.core.files import write_text
from alm_jax.data.endpoint import Entry, Journal, Lacks, Prompt, key_of, messages, missing, text_of, users

_REQUESTS = 50_000  # of a file, and its size: what OpenAI takes
_BYTES = 190_000_000
_URL = "/v1/chat/completions"


class Given(NamedTuple):
    """A line of a service's file: whose answer it is, and the answer or why there is none."""

    request: str
    answer: str = ""
    failure: str = ""


@dataclass(frozen=True)
class BatchAsker:
    """Takes answers from files, and writes requests for what they lack; an `Asker`.

    Attributes:
        model, temperature: what answers. journal: the file where answers are kept.
        files: of requests, without the number and suffix: `rows.jsonl.batch` for `rows.jsonl.batch-1.jsonl`, ...
        answers: what a service gave back. attempts: how many answers to a prompt are asked for at most.
    """

    model: str
    journal: Path
    files: Path
    answers: tuple[Path, ...] = ()
    temperature: float = 0.7
    attempts: int = 3

    def __call__(self, prompts: Sequence[Prompt], lacks: Lacks, *, wants: int = 1) -> list[list[str]]:
        """The answers in the journal and in `self.answers`.

        Raises:
            EndpointError: prompts wait for answers; the message names the files to send. DataError: a file cannot be
                read or written, or is none of the Batch API's.
        """
        journal = Journal(self.journal)
        keys = [key_of(self.model, self.temperature, prompt) for prompt in prompts]
        first: dict[str, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)  # equal prompts are asked once
        failures, mine = self._take(journal, first, prompts, lacks)
        lines = [
            self._request(f"{key}-{number}", prompts[i])
            for key, i in first.items()
            for number in _free(journal, key, missing(i, journal.answers.get(key, []), lacks, wants, self.attempts))
        ]
        if not lines:
            return [journal.answers[key] for key in keys]
        told = f"{len(lines)} request{'s' * (len(lines) > 1)} for {self.model} in {self._write(lines)}"
        if failures:
            told = f"{len(failures)} answers failed ({failures[0]}); {told}"
        elif self.answers and not mine:
            told = f"{self.answers[-1]} holds no answer to what is asked now; {told}"
        raise EndpointError(
            f"{told}: have them answered by a batch service, then give what it returns as --answers FILE"
        )

    def _take(
        self, journal: Journal, first: Mapping[str, int], prompts: Sequence[Prompt], lacks: Lacks
    ) -> tuple[list[str], int]:
        """Put new answers to these prompts into the journal; (why others failed, how many lines are about them)."""
        failures, entries, mine = [], [], 0
        known = {key: list(journal.answers.get(key, ())) for key in first}
        seen = set(journal.requests)
        for given in (each for path in self.answers for each in read_answers(path)):
            key = given.request.rpartition("-")[0]
            if key not in first:
                continue  # of other questions of the same command, or of another one
            mine += 1
            if given.failure:
                failures.append(given.failure)
            elif given.request not in seen:
                seen.add(given.request)
                known[key].append(given.answer)
                i = first[key]
                entries.append(Entry(key, users(prompts[i]), given.answer, lacks(i, known[key]), given.request))
        if entries:
            journal.add(*entries)
        return failures, mine

    def _request(self, number: str, prompt: Prompt) -> str:
        body = {"model": self.model, "messages": messages(prompt), "temperature": self.temperature}
        return json.dumps({"custom_id": number, "method": "POST", "url": _URL, "body": body}, ensure_ascii=False) + "\n"

    def _write(self, lines: Sequence[str]) -> str:
        """Write the files of this round in the place of the last one's; their names."""
        parts: list[list[str]] = [[]]
        size = 0
        for line in lines:
            length = len(line.encode())
            if len(parts[-1]) == _REQUESTS or size + length > _BYTES:
                parts, size = [*parts, []], 0
            parts[-1].append(line)
            size += length
        paths = [self.files.with_name(f"{self.files.name}-{i}.jsonl") for i in range(1, len(parts) + 1)]
        try:
            for old in self.files.parent.glob(f"{self.files.name}-*.jsonl"):
                if old not in paths:
                    old.unlink()
            for path, part in zip(paths, parts):
                write_text(path, "".join(part))
        except OSError as error:
            raise DataError(f"{self.files}: requests cannot be written ({error})") from None
        return str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"


def read_answers(path: Path) -> Iterator[Given]:
    """The lines of a file that a batch service gave back, with answers or with errors.

    Raises:
        DataError: it cannot be read, or a line is none of the Batch API's.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _given(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--answers {path}: cannot be read ({error}); give the output file of a batch") from None


def _given(line: str, where: str) -> Given:
    try:
        told = json.loads(line)
        request, response, error = told["custom_id"], told.get("response"), told.get("error")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{where}: no line of a batch's output (an object with custom_id and response)") from None
    body = response.get("body") if isinstance(response, Mapping) else None
    if error or not isinstance(body, Mapping) or response.get("status_code", 200) != 200:
        return Given(request, failure=_reason(error or body or response))
    try:
        return Given(request, text_of(body))
    except ValueError as problem:
        return Given(request, failure=str(problem))


def _reason(told: Any) -> str:
    told = told.get("error", told) if isinstance(told, Mapping) else told
    told = told.get("message", told) if isinstance(told, Mapping) else told
    return " ".join(str(told or "no reason given").split())[:200]


def _free(journal: Journal, key: str, wanted: int) -> Iterator[int]:
    """Numbers of requests of a prompt that no answer in the journal bears."""
    numbers = (number for number in count() if f"{key}-{number}" not in journal.requests)
    return (next(numbers) for _ in range(wanted))
