"""The table of models: what the tool makes of a report, and that the committed page lists what is here."""

import importlib
import json
import re
from xml.etree import ElementTree

import pytest

from alm_jax.models.registry import CONFIGS


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("models_page")


def parity(model="LLaMA", source="transformers.LlamaForCausalLM", errors=None, gradient=2e-7, directions=("in", "out")):
    record = {"model": model, "source": source, "directions": directions}
    return record | {"errors": errors or {"logits": 3e-7}, "gradient_error": gradient}


def write(path, *records, child=None):
    """A report with one test a record; the last test has a child element besides."""
    suite = ElementTree.Element("testsuite")
    for i, record in enumerate(records):
        case = ElementTree.SubElement(suite, "testcase", name=f"test_{i}")
        properties = ElementTree.SubElement(case, "properties")
        ElementTree.SubElement(properties, "property", name="parity", value=json.dumps(record))
    if child:
        ElementTree.SubElement(case, child)
    ElementTree.ElementTree(suite).write(path)
    return path


def test_tests_of_one_pair_are_one_row(tool, tmp_path):
    other = parity(errors={"logits": 1e-6, "hidden": 2e-6}, gradient=None, directions=["in"])
    files = parity("LLaMA", "modeling.py", {"logits": 4e-5}, None, ["in"])
    reports = [write(tmp_path / "a.xml", other, child="system-out"), write(tmp_path / "b.xml", parity(), files)]
    pairs = tool.read(reports)
    assert [pair.cells for pair in pairs["LLaMA"]] == [
        ["`transformers.LlamaForCausalLM`", "in, out", "2e-06", "2e-07"],
        ["`modeling.py`", "in", "4e-05", ""],
    ]
    text = tool.page(pairs, [tool.Model("TinyLlama", "LLaMA", "tinyllama_1.1b", "bf16", "who/what")])
    row = next(line for line in text.splitlines() if line.startswith("| TinyLlama"))
    assert row == (
        "| TinyLlama | `tinyllama_1.1b` | `transformers.LlamaForCausalLM` | in, out | 2e-06 | 2e-07 | 1,100,048,384 | "
        "2.2 GB (bf16) | `alm convert who/what out/tinyllama_1.1b --to alm` |"
    )
    assert "| LLaMA | `modeling.py` | in | logits | 4e-05 |  |" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: write(path, parity(), child="failure"), "tests failed: test_0"),
        (lambda path: write(path, parity(), parity(), child="error"), "tests failed: test_1"),
        (lambda path: path.write_text("<testsuite/>"), "no test recorded a pair"),
        (lambda path: path.write_text("{}"), "cannot be read as a junit report"),
        (lambda path: write(path, parity("Another")), r"no test recorded .*LLaMA.*; expected a report of all tests"),
    ],
)
def test_an_unfit_report_writes_no_page(tool, tmp_path, capsys, content, message):
    content(tmp_path / "a.xml")
    assert tool.main(["--results", str(tmp_path / "a.xml"), "--out", str(tmp_path / "page.md")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "page.md").exists()


def test_the_committed_page(tool, repo):
    """Its models are those of the tool, in order, and each is a config by name."""
    rows = re.findall(
        r"^\| (.+?) \| `(.+?)` \|.*--to alm` \|$", (repo / "docs" / "models.md").read_text(), re.MULTILINE
    )
    assert rows == [(model.title, model.config) for model in tool.MODELS]
    assert {config for _, config in rows} <= CONFIGS.keys()
