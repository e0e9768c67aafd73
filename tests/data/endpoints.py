"""A stand-in for an OpenAI-compatible endpoint: what it says to each request is scripted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG, HALF = "hang", "half"  # in the place of a status: no answer in time; a body that is cut off


@dataclass
class StandIn:
    """A running server: its URL, the prompts that it was sent, and the headers of the last request."""

    url: str = ""
    prompts: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: dict = field(default_factory=dict)


def said(text: str) -> str:
    """A body of the chat completions API."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@contextmanager
def serving(
    reply: Callable[[int, Any], tuple[int | str, str]],
    prompt: Callable[[dict], Any] = lambda body: body["messages"][0]["content"],
) -> Iterator[StandIn]:
    """A server that replies (status, body) to the n-th request, counted from 0, and its `prompt`."""
    stand_in, lock = StandIn(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = prompt(body)
            with lock:
                number = len(stand_in.prompts)
                stand_in.prompts.append(asked)
                stand_in.headers, stand_in.body = dict(self.headers), body | {"path": self.path}
            status, text = reply(number, asked)
            if status == HANG:
                time.sleep(1.0)
                return
            data = text.encode()
            self.send_response(200 if status == HALF else status)
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if status == HALF else data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
