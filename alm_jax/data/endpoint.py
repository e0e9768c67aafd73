"""Text, and vectors of texts, from a model behind an OpenAI-compatible endpoint: asked patiently, answers journalled.

Over the standard library alone. An endpoint that is slow, busy or broken is asked again after a while; an answer that
is of no use is asked for anew a few times, and stays in the journal with what is wrong with it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from alm_jax.core.errors import ConfigError, DataError, EndpointError
from alm_jax.core.files import write_text

_BUSY = (408, 409, 425, 429)  # and 5xx: what a server may say while it is overloaded or starting
_LONGEST_PAUSE = 60.0
Answer = TypeVar("Answer")
Prompt = str | tuple[str, str]
"""What a model is asked: the user's message, or the system's and the user's."""
Lacks = Callable[[int, Sequence[str]], str]
"""`lacks(i, answers)`: what is missing after all answers to prompt i so far; empty if nothing is."""


@dataclass(frozen=True)
class Endpoint:
    """Where a language model is asked.

    Attributes:
        url: up to the version, such as `http://localhost:8000/v1`. model: its name there.
        key: sent as a bearer token; empty: none. Never written anywhere.
        temperature: of sampling. timeout: seconds to wait for an answer.
        tries: how often one request is sent; the pause between doubles from `pause` seconds.

    Raises:
        ConfigError: the URL is none of http or https, or no model is named.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    temperature: float = 0.7
    timeout: float = 120.0
    tries: int = 6
    pause: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"endpoint {self.url!r}: expected rules or a URL such as http://localhost:8000/v1")
        if not self.model:
            raise ConfigError(f"endpoint {self.url}: no model is named; give the name that it serves (--model NAME)")


class Asker(Protocol):
    """Has prompts answered by a language model, and keeps what it said: over an endpoint, or by files of batches."""

    def __call__(self, prompts: Sequence[Prompt], lacks: Lacks, *, wants: int = 1) -> list[list[str]]:
        """The answers to each prompt, `wants` at least; useless ones may be among them (see `ask`)."""


def chat(endpoint: Endpoint, prompt: Prompt, stop: threading.Event | None = None) -> str:
    """The model's answer to one prompt; `stop` ends its patience.

    Raises:
        EndpointError: it refuses, or fails `tries` times.
    """
    body = {"messages": messages(prompt), "temperature": endpoint.temperature}
    return _insist(endpoint, lambda: text_of(_post(endpoint, "chat/completions", body)), stop or threading.Event())


def embed(endpoint: Endpoint, texts: Sequence[str]) -> list[list[float]]:
    """The model's vector of each text, in one request.

    Raises:
        EndpointError: as `chat`.
    """
    asked = {"input": list(texts)}
    return _insist(endpoint, lambda: _vectors(_post(endpoint, "embeddings", asked), len(texts)), threading.Event())


def _insist(endpoint: Endpoint, ask_once: Callable[[], Answer], stop: threading.Event) -> Answer:
    """What a request gives, sent again after a while if the server is slow, busy or broken."""
    pause, problem = endpoint.pause, ""
    for attempt in range(endpoint.tries):
        if attempt:
            if stop.wait(min(pause, _LONGEST_PAUSE)):
                break
            pause *= 2
        try:
            return ask_once()
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code not in _BUSY and error.code < 500:
                raise EndpointError(f"{endpoint.url}: {problem}: {_told(error)}; mend the URL, model or key") from None
            pause = max(pause, _retry_after(error))
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut short
            problem = str(error) or type(error).__name__
        except ValueError as error:
            problem = f"not an answer of the API ({error})"
    raise EndpointError(
        f"{endpoint.url}: no answer in {attempt + 1} tries (the last: {problem}); what was answered is kept: the "
        "same command goes on from there"
    )


class Entry(NamedTuple):
    """An answer in a journal.

    Attributes:
        key: of its prompt and model (`key_of`). prompt: the user's message.
        problem: why it is of no use; empty if it is of use. request: what it was asked as, in a batch; empty elsewhere.
    """

    key: str
    prompt: str
    answer: str
    problem: str = ""
    request: str = ""


@dataclass
class Journal:
    """The answers to prompts, one a line of a JSON lines file, in the order in which they came.

    A line has the fields of an `Entry` that are not empty. A line that was cut short by a kill is cut off, and asked
    again.

    Attributes:
        answers: by key. requests: of all answers that came in batches.

    Raises:
        DataError: the file holds something else, or cannot be read or written.
    """

    path: Path
    answers: dict[str, list[str]] = field(default_factory=dict)
    requests: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                self._read(file)
        except OSError as error:
            raise DataError(f"{self.path}: the journal cannot be read or written ({error})") from None

    def _read(self, file: Any) -> None:
        file.seek(0)
        end = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                file.truncate(end)
                return
            try:
                told = json.loads(line)
                self._know(told["key"], told["answer"], told.get("request", ""))
            except (ValueError, TypeError, KeyError):
                raise DataError(f"{self.path}:{number}: not a line of a journal; give another --out") from None
            end += len(line)

    def _know(self, key: str, answer: str, request: str) -> None:
        self.answers.setdefault(key, []).append(answer)
        if request:
            self.requests.add(request)

    def add(self, *entries: Entry) -> None:
        """Keep answers; they are on the disk when this returns."""
        told = [
            {name: value for name, value in entry._asdict().items() if value or name == "answer"} for entry in entries
        ]
        lines = b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in told)
        with self._lock:
            try:
                with self.path.open("ab") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise DataError(f"{self.path}: cannot be written ({error}); what is there is kept") from None
            for entry in entries:
                self._know(entry.key, entry.answer, entry.request)

    def settle(self, keys: Sequence[str]) -> None:
        """Put the lines in the order of their keys, so that the file is the same whichever answer came first."""
        lines: dict[str, list[str]] = {key: [] for key in keys}
        try:
            with self._lock:
                for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                    lines.setdefault(json.loads(line)["key"], []).append(line)
                write_text(self.path, "".join(line for group in lines.values() for line in group))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error}); what is there is kept") from None


def missing(i: int, known: Sequence[str], lacks: Lacks, wants: int, attempts: int) -> int:
    """How many more answers to prompt i are to be asked for now (see `ask`)."""
    if len(known) < wants:
        return wants - len(known)
    return int(len(known) < max(attempts, wants) and bool(lacks(i, known)))


def ask(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    journal: Journal,
    lacks: Lacks,
    *,
    wants: int = 1,
    attempts: int = 3,
    workers: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[str]]:
    """The answers to each prompt: those in the journal, and new ones until they are enough.

    Args:
        lacks: see `Lacks`. wants: how many answers each prompt gets at least.
        attempts: how many are asked for at most where something is lacking; it is then left as it is.
        workers: requests at once. progress: called with (prompts done, all).

    Raises:
        EndpointError: as `chat`, once requests under way have ended and are in the journal. DataError: a bad journal.
    """
    keys = [key_of(endpoint.model, endpoint.temperature, prompt) for prompt in prompts]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal prompts are asked once
    stop = threading.Event()

    def answered(i: int) -> None:
        while not stop.is_set():
            known = journal.answers.get(keys[i], [])
            if not missing(i, known, lacks, wants, attempts):
                return
            try:
                answer = chat(endpoint, prompts[i], stop)
            except EndpointError:
                stop.set()  # the others would only find the same
                raise
            journal.add(Entry(keys[i], users(prompts[i]), answer, lacks(i, [*known, answer])))

    pool = ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(answered, i) for i in first.values()]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            progress(done, len(futures))
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return [journal.answers[key] for key in keys]


@dataclass(frozen=True)
class EndpointAsker:
    """Asks an endpoint (`ask`); an `Asker`.

    Attributes:
        endpoint, journal: who is asked, and the file where answers are kept. attempts, workers, progress: as of `ask`.
    """

    endpoint: Endpoint
    journal: Path
    attempts: int = 3
    workers: int = 4
    progress: Callable[[int, int], None] = lambda done, total: None

    def __call__(self, prompts: Sequence[Prompt], lacks: Lacks, *, wants: int = 1) -> list[list[str]]:
        """Raises as `ask`."""
        how = {"attempts": self.attempts, "workers": self.workers, "progress": self.progress}
        return ask(self.endpoint, prompts, Journal(self.journal), lacks, wants=wants, **how)


def _post(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> Any:
    """What the server answers, parsed; ValueError if it is no JSON."""
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    url = f"{endpoint.url.rstrip('/')}/{path}"
    request = urllib.request.Request(url, json.dumps({"model": endpoint.model, **body}).encode(), headers)
    with urllib.request.urlopen(request, timeout=endpoint.timeout) as response:
        return json.loads(response.read())


def users(prompt: Prompt) -> str:
    """The user's message of a prompt."""
    return prompt if isinstance(prompt, str) else prompt[1]


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the chat completions API has it."""
    asked = {"role": "user", "content": users(prompt)}
    return [asked] if isinstance(prompt, str) else [{"role": "system", "content": prompt[0]}, asked]


def text_of(told: Any) -> str:
    """The text in a body of the chat completions API; ValueError if it has none."""
    try:
        answer = told["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        answer = None
    if not isinstance(answer, str):
        raise ValueError("no text in choices[0].message.content")
    return answer


def _vectors(told: Any, count: int) -> list[list[float]]:
    try:
        vectors = [each["embedding"] for each in sorted(told["data"], key=lambda each: each["index"])]
    except (KeyError, TypeError):
        vectors = []
    if len(vectors) != count or not all(isinstance(vector, list) and vector for vector in vectors):
        raise ValueError(f"not {count} vectors in data[].embedding")
    return vectors


def key_of(model: str, temperature: float, prompt: Prompt) -> str:
    """Of what an answer depends on; the same model may move to another address."""
    told = json.dumps([model, temperature, prompt])
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def _told(error: urllib.error.HTTPError) -> str:
    """What a server says of an error, in short."""
    try:
        text = error.read(2000).decode(errors="replace")
        told = json.loads(text)
    except (OSError, http.client.HTTPException):
        return "no reason given"
    except ValueError:
        return " ".join(text.split())[:200] or "no reason given"
    reason = told.get("error", told) if isinstance(told, Mapping) else told
    return str(reason.get("message", reason) if isinstance(reason, Mapping) else reason)[:200]


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that a busy server asks to wait; 0 if it does not say."""
    try:
        return float(error.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0  # a date: the pause that doubles will do
