import json
import signal
import subprocess
import sys
import time

import pytest

from alm_jax.core.errors import ConfigError, DataError, EndpointError
from alm_jax.data.endpoint import Endpoint, Journal, ask, chat
from tests.data.endpoints import HALF, HANG, said, serving

QUICK = {"pause": 0.01, "timeout": 0.3}


def anything(i, answers):
    return ""


def test_one_question():
    with serving(lambda n, prompt: (200, said(f"{prompt}!"))) as server:
        assert chat(Endpoint(server.url + "/", "vicuna", key="secret", temperature=0.0), "Hé") == "Hé!"
        assert server.body["path"] == "/v1/chat/completions" and server.headers["Authorization"] == "Bearer secret"
        assert (server.body["model"], server.body["temperature"]) == ("vicuna", 0.0)
        chat(Endpoint(server.url, "vicuna"), "x")
        assert "Authorization" not in server.headers


TROUBLE = [(HANG, ""), (500, "no"), (429, "slow down"), (503, ""), (200, "<html>"), (200, "[]"), (HALF, said("x" * 50))]


def test_trouble_is_waited_out():
    with serving(lambda n, prompt: TROUBLE[n] if n < len(TROUBLE) else (200, said("yes"))) as server:
        assert chat(Endpoint(server.url, "m", tries=8, **QUICK), "?") == "yes"
        assert len(server.prompts) == 8


def test_patience_ends():
    with serving(lambda n, prompt: (503, "")) as server:
        with pytest.raises(EndpointError, match=r"no answer in 3 tries \(the last: HTTP 503 Service Unavailable\)"):
            chat(Endpoint(server.url, "m", tries=3, **QUICK), "?")
    with pytest.raises(EndpointError, match=r"127.0.0.1:\d+/v1: no answer in 2 tries \(the last: .*refused"):
        chat(Endpoint(server.url, "m", tries=2, **QUICK), "?")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, '{"error": {"message": "wrong key"}}', "HTTP 401 Unauthorized: wrong key; mend the URL, model or key"),
        (404, '{"error": "no such model"}', "HTTP 404 Not Found: no such model"),
        (404, "<b>nothing\n here</b>", "<b>nothing here</b>"),
        (400, "", "no reason given"),
    ],
)
def test_refusals_are_final(status, body, told):
    with serving(lambda n, prompt: (status, body)) as server:
        with pytest.raises(EndpointError, match=told):
            chat(Endpoint(server.url, "m", **QUICK), "?")
        assert len(server.prompts) == 1


def test_useless_answers_are_kept_apart_and_asked_for_again(tmp_path):
    def reply(n, prompt):
        return 200, said("rubbish" if prompt == "never" or n < 2 else f"good {prompt}")

    def lacks(i, answers):
        return "" if any(answer.startswith("good") for answer in answers) else "nothing good in it"

    shown = []
    with serving(reply) as server:
        endpoint = Endpoint(server.url, "m", pause=0.01)
        prompts = ["one", "never", "one"]
        found = ask(
            endpoint,
            prompts,
            Journal(tmp_path / "j.jsonl"),
            lacks,
            workers=1,
            progress=lambda done, total: shown.append((done, total)),
        )
        one = ["rubbish", "rubbish", "good one"]
        assert found == [one, ["rubbish"] * 3, one]  # equal prompts are asked once
        assert server.prompts == ["one"] * 3 + ["never"] * 3
        assert shown == [(1, 2), (2, 2)]
        lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
        assert [line.get("problem") for line in lines] == ["nothing good in it"] * 2 + [None] + [
            "nothing good in it"
        ] * 3
        assert [line["prompt"] for line in lines] == server.prompts
        # again: nothing is asked, also under another address; another model is asked anew
        assert ask(Endpoint("http://localhost:1/v1", "m"), prompts, Journal(tmp_path / "j.jsonl"), lacks) == found
        ask(Endpoint(server.url, "n"), ["one"], Journal(tmp_path / "j.jsonl"), lacks)
        assert len(server.prompts) == 7


def test_answers_before_a_failure_are_kept(tmp_path):
    prompts = [f"q{i}" for i in range(8)]
    with serving(lambda n, prompt: (200, said(f"to {prompt}")) if n < 5 else (500, "")) as server:
        with pytest.raises(EndpointError, match="what was answered is kept: the same command goes on from there"):
            endpoint = Endpoint(server.url, "m", tries=2, pause=0.01)
            ask(endpoint, prompts, Journal(tmp_path / "j.jsonl"), anything, workers=2)
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 5
    with serving(lambda n, prompt: (200, said(f"to {prompt}"))) as server:
        found = ask(Endpoint(server.url, "m"), prompts, Journal(tmp_path / "j.jsonl"), anything, workers=2)
        assert found == [[f"to {prompt}"] for prompt in prompts] and len(server.prompts) == 3


SCRIPT = """
import sys
from pathlib import Path
from alm_jax.data.endpoint import Endpoint, Journal, ask
ask(Endpoint(sys.argv[1], "m"), [f"q{i}" for i in range(40)], Journal(Path(sys.argv[2])), lambda i, answers: "")
"""


def test_a_killed_run_goes_on(tmp_path):
    journal, prompts = tmp_path / "j.jsonl", [f"q{i}" for i in range(40)]
    with serving(lambda n, prompt: (time.sleep(0.05), (200, said(f"to {prompt}")))[1]) as server:
        run = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url, journal])
        try:
            deadline = time.monotonic() + 60
            while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
                assert time.monotonic() < deadline and run.poll() is None, "no answer is kept"
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
        finally:
            run.kill()
            run.wait()
        kept = journal.read_bytes().count(b"\n")
        assert 6 <= kept < 40
        # as a kill in the middle of a line leaves it
        whole = journal.read_bytes()
        journal.write_bytes(whole + whole.splitlines(keepends=True)[0][:-20])
    # a server of its own: what the killed run had asked may still be coming in at the first one
    with serving(lambda n, prompt: (200, said(f"to {prompt}"))) as server:
        found = ask(Endpoint(server.url, "m"), prompts, Journal(journal), anything)
        assert found == [[f"to {prompt}"] for prompt in prompts]
        assert len(server.prompts) == 40 - kept
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sorted(line["answer"] for line in lines) == sorted(f"to {prompt}" for prompt in prompts)


def test_other_files_are_not_taken_for_journals(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "x"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: not a line of a journal"):
        Journal(tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_text() == '{"instruction": "x"}\n'
    with pytest.raises(DataError, match="cannot be read or written"):
        Journal(tmp_path)


def test_endpoints_are_urls_with_a_model():
    with pytest.raises(ConfigError, match="expected rules or a URL such as http"):
        Endpoint("localhost:8000", "m")
    with pytest.raises(ConfigError, match="no model is named"):
        Endpoint("http://localhost:8000", "")
