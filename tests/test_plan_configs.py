"""The tables of docs/plan.md: which configs are planned, when again, and what is written."""

import json
from types import SimpleNamespace

import plan_configs
import pytest


def stage(name, same_as=None, headroom=0.5, rows=64, micro_batch=64, fits=True, estimated=False):
    bounds = {"compute": 0.2, "memory": 0.3, "network": 0.1, "seconds": 0.3, "mfu": 0.456}
    told = {"stage": name, "same_as": same_as, "rows": rows, "length": 144, "micro_batch": micro_batch, "fits": fits}
    return told | {
        "total": 8 * 2**30,
        "headroom": headroom,
        "estimated": estimated,
        "roofline": bounds if fits else None,
    }


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Commands that were run, each of which plans `stages`; a page to write to."""
    commands, stages = [], [stage("proj"), stage("open", micro_batch=16), stage("last", same_as="open")]

    def run(command, **options):
        commands.append(command)
        return SimpleNamespace(stdout=json.dumps({"topology": command[6], "stages": stages}))

    page = tmp_path / "plan.md"
    page.write_text(f"before\n{plan_configs.BEGIN}stale\n{plan_configs.END}\nafter\n")
    monkeypatch.setattr(plan_configs.subprocess, "run", run)
    monkeypatch.setattr(plan_configs, "PAGE", page)
    monkeypatch.setattr(plan_configs, "names", lambda: ["ltu/tiny", "ltu/vicuna_7b"])  # the first names no topology
    return SimpleNamespace(commands=commands, stages=stages, page=page, out=str(tmp_path / "plans"))


def test_each_is_planned_once_until_its_config_changes(asked, monkeypatch):
    assert plan_configs.main(["--out", asked.out]) == 0
    assert [command[4:7:2] for command in asked.commands] == [["ltu/vicuna_7b", "v5e:4x4"], ["ltu/vicuna_7b", "h100:8"]]
    assert plan_configs.main(["--out", asked.out]) == 0 and len(asked.commands) == 2
    before = plan_configs.wanted
    changed = lambda only: ((name, topology, digest[::-1]) for name, topology, digest in before(only))
    monkeypatch.setattr(plan_configs, "wanted", changed)
    assert plan_configs.main(["--out", asked.out]) == 0 and len(asked.commands) == 4


def test_the_page_has_a_line_for_each_distinct_step(asked):
    assert plan_configs.main(["--out", asked.out]) == 0
    text = asked.page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    assert "| `ltu/vicuna_7b` | proj | 64 x 144 | 8.0 GiB | 50% | 300 ms | memory | 46% |" in text
    assert "| `ltu/vicuna_7b` | open, last | 64 x 144, 16 at a time | 8.0 GiB |" in text
    assert text.count("`v5e:4x4`, compiled, a device:") == 1
    before = text
    assert plan_configs.main(["--out", asked.out, "--only", "ltu/vicuna_7b"]) == 0 and asked.page.read_text() == before


@pytest.mark.parametrize("bad", [stage("proj", headroom=0.05), stage("proj", headroom=-1.0, fits=False)])
def test_a_step_that_is_too_large_fails_and_writes_no_page(asked, capsys, bad):
    asked.stages[0] = bad
    before = asked.page.read_text()
    assert plan_configs.main(["--out", asked.out]) == 1 and asked.page.read_text() == before
    assert "ltu/vicuna_7b on v5e:4x4: stage proj leaves less than a tenth" in capsys.readouterr().err
