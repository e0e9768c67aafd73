"""Requests in files of the Batch API, and answers from them, as OpenAI documents both: in any order, and any number of
rounds."""

from __future__ import annotations

import json

import pytest

from alm_jax.core.errors import DataError, EndpointError
from alm_jax.data import batch_files
from alm_jax.data.batch_files import BatchAsker
from alm_jax.data.endpoint import Endpoint, EndpointAsker, Journal
from tests.data.endpoints import said, serving


def asker(folder, *answers, **options):
    return BatchAsker("m", folder / "j.jsonl", folder / "rows.jsonl.batch", tuple(answers), **options)


def requests(folder):
    return [json.loads(line) for path in sorted(folder.glob("rows.jsonl.batch-*.jsonl")) for line in path.open()]


def answered(request, text):
    """A line of a service's output file."""
    body = json.loads(said(text))
    response = {"status_code": 200, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}) + "\n"


def failed(request, status=429, told="slow down"):
    body = {"error": {"message": told, "code": None}}
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}) + "\n"


def anything(i, answers):
    return ""


def test_requests_and_answers(tmp_path):
    prompts = ["one", ("Be brief.", "two"), "one"]
    with pytest.raises(EndpointError, match=r"^2 requests for m in .*rows\.jsonl\.batch-1\.jsonl: have them answered"):
        asker(tmp_path)(prompts, anything)
    one, two = requests(tmp_path)
    assert (one["method"], one["url"]) == ("POST", "/v1/chat/completions")
    assert one["body"] == {"model": "m", "messages": [{"role": "user", "content": "one"}], "temperature": 0.7}
    assert [message["role"] for message in two["body"]["messages"]] == ["system", "user"]
    out = tmp_path / "out.jsonl"
    out.write_text(answered(two, "zwei") + "\n" + answered(one, "eins"))
    found = asker(tmp_path, out)(prompts, anything)
    assert found == [["eins"], ["zwei"], ["eins"]]
    assert asker(tmp_path)(prompts, anything) == found  # they stand in the journal
    assert asker(tmp_path, out)(prompts, anything) == found  # and are not counted twice
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 2
    with serving(lambda n, prompt: (200, said("x"))) as server:  # an endpoint's answers are of the same journal
        ask = EndpointAsker(Endpoint(server.url, "m"), tmp_path / "j.jsonl")
        assert ask([*prompts, "three"], anything) == [*found, ["x"]] and len(server.prompts) == 1


def test_failures_and_useless_answers_are_asked_again(tmp_path):
    def lacks(i, answers):
        return "" if "good" in answers else "nothing good in it"

    out = tmp_path / "out.jsonl"
    with pytest.raises(EndpointError):
        asker(tmp_path)(["a", "b"], lacks)
    a, b = requests(tmp_path)
    out.write_text(answered(a, "bad") + failed(b))
    with pytest.raises(EndpointError, match=r"1 answers failed \(slow down\); 2 requests for m"):
        asker(tmp_path, out)(["a", "b"], lacks)
    again = requests(tmp_path)
    assert again[1]["custom_id"] == b["custom_id"] and again[0]["custom_id"] != a["custom_id"]
    more = tmp_path / "more.jsonl"
    more.write_text("".join(answered(request, "good") for request in again))
    assert asker(tmp_path, out, more)(["a", "b"], lacks) == [["bad", "good"], ["good"]]
    told = [json.loads(line).get("problem") for line in (tmp_path / "j.jsonl").open()]
    assert told == ["nothing good in it", None, None]
    # An answer that is never good is asked for three times in all.
    for number in range(3):
        with pytest.raises(EndpointError, match=r"^1 request for m"):
            asker(tmp_path)(["c"], lacks)
        (request,) = requests(tmp_path)
        assert request["custom_id"].endswith(f"-{number}")
        more.write_text(answered(request, "bad"))
        asked = asker(tmp_path, more)
        if number < 2:
            with pytest.raises(EndpointError):
                asked(["c"], lacks)
    assert asked(["c"], lacks) == [["bad"] * 3]


def test_several_answers_to_a_prompt(tmp_path):
    with pytest.raises(EndpointError, match=r"^10 requests"):
        asker(tmp_path)(["a"], anything, wants=10)
    asked = requests(tmp_path)
    assert len({request["custom_id"] for request in asked}) == 10
    out = tmp_path / "out.jsonl"
    out.write_text("".join(answered(request, f"{i}") for i, request in enumerate(asked[:7])) + failed(asked[8]))
    with pytest.raises(EndpointError, match=r"1 answers failed.* 3 requests"):
        asker(tmp_path, out)(["a"], anything, wants=10)
    assert [r["custom_id"] for r in requests(tmp_path)] == [r["custom_id"] for r in asked[7:]]


def test_files_are_as_large_as_a_service_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_files, "_REQUESTS", 3)
    with pytest.raises(EndpointError, match=r"7 requests for m in .*batch-1\.jsonl to rows\.jsonl\.batch-3\.jsonl"):
        asker(tmp_path)([f"q{i}" for i in range(7)], anything)
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("*.batch-*"))] == [3, 3, 1]
    with pytest.raises(EndpointError):
        asker(tmp_path)(["q0"], anything)
    assert [path.name for path in tmp_path.glob("*.batch-*")] == ["rows.jsonl.batch-1.jsonl"]  # of this round alone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"instruction": "x"}\n', r"out\.jsonl:1: no line of a batch's output"),
        ("[]\n", r"out\.jsonl:1: no line of a batch's output"),
        (None, "out.jsonl: cannot be read"),
    ],
)
def test_other_files(tmp_path, text, message):
    if text is not None:
        (tmp_path / "out.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        asker(tmp_path, tmp_path / "out.jsonl")(["a"], anything)


def test_answers_to_something_else(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text(answered({"custom_id": "request-1"}, "x"))
    with pytest.raises(EndpointError, match=r"out\.jsonl holds no answer to what is asked now; 1 request"):
        asker(tmp_path, out)(["a"], anything)


def test_a_journal_in_the_order_of_its_prompts(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    for key in ("c", "a", "b", "a"):
        journal.add(batch_files.Entry(key, key, f"to {key}"))
    journal.settle(["a", "b", "c"])
    assert [json.loads(line)["key"] for line in (tmp_path / "j.jsonl").open()] == ["a", "a", "b", "c"]
    assert Journal(tmp_path / "j.jsonl").answers == journal.answers
