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
from typing import Any, TypeVar

from alm_jax.core.errors import ConfigError, DataError, EndpointError

_BUSY = (408, 409, 425, 429)  # and 5xx: what a server may say while it is overloaded or starting
_LONGEST_PAUSE = 60.0
Answer = TypeVar("Answer")


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


def chat(endpoint: Endpoint, prompt: str, stop: threading.Event | None = None) -> str:
    """The model's answer to one message; `stop` ends its patience.

    Raises:
        EndpointError: it refuses, or fails `tries` times.
    """
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": endpoint.temperature}
    return _insist(endpoint, lambda: _text(_post(endpoint, "chat/completions", body)), stop or threading.Event())


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


@dataclass
class Journal:
    """The answers to prompts, one a line of a JSON lines file, in the order in which they came.

    A line has the `key` of its prompt and model, the `prompt`, the `answer`, and a `problem` if it is of no use. A line
    that was cut short by a kill is cut off, and asked again.

    Raises:
        DataError: the file holds something else, or cannot be read or written.
    """

    path: Path
    answers: dict[str, list[str]] = field(default_factory=dict)
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
                self.answers.setdefault(told["key"], []).append(told["answer"])
            except (ValueError, TypeError, KeyError):
                raise DataError(f"{self.path}:{number}: not a line of a journal; give another --out") from None
            end += len(line)

    def add(self, key: str, prompt: str, answer: str, problem: str) -> None:
        """Keep an answer; it is on the disk when this returns."""
        told = {"key": key, "prompt": prompt, "answer": answer} | ({"problem": problem} if problem else {})
        line = json.dumps(told, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            try:
                with self.path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise DataError(f"{self.path}: cannot be written ({error}); what is there is kept") from None
            self.answers.setdefault(key, []).append(answer)


def ask(
    endpoint: Endpoint,
    prompts: Sequence[str],
    journal: Journal,
    lacks: Callable[[int, Sequence[str]], str],
    *,
    attempts: int = 3,
    workers: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[str]]:
    """The answers to each prompt: those in the journal, and new ones until they are enough.

    Args:
        lacks: `lacks(i, answers)` says what is missing after all answers to prompt i so far; empty if nothing is.
        attempts: how many answers to a prompt are asked for at most; the last one's problem is then left as it is.
        workers: requests at once. progress: called with (prompts done, all).

    Raises:
        EndpointError: as `chat`, once requests under way have ended and are in the journal. DataError: a bad journal.
    """
    keys = [_key(endpoint, prompt) for prompt in prompts]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal prompts are asked once
    stop = threading.Event()

    def answered(i: int) -> None:
        while not stop.is_set():
            known = journal.answers.get(keys[i], [])
            if len(known) >= attempts or (known and not lacks(i, known)):
                return
            try:
                answer = chat(endpoint, prompts[i], stop)
            except EndpointError:
                stop.set()  # the others would only find the same
                raise
            journal.add(keys[i], prompts[i], answer, lacks(i, [*known, answer]))

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


def _post(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> Any:
    """What the server answers, parsed; ValueError if it is no JSON."""
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    url = f"{endpoint.url.rstrip('/')}/{path}"
    request = urllib.request.Request(url, json.dumps({"model": endpoint.model, **body}).encode(), headers)
    with urllib.request.urlopen(request, timeout=endpoint.timeout) as response:
        return json.loads(response.read())


def _text(told: Any) -> str:
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


def _key(endpoint: Endpoint, prompt: str) -> str:
    """Of what an answer depends on; the same model may move to another address."""
    told = json.dumps([endpoint.model, endpoint.temperature, prompt])
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
