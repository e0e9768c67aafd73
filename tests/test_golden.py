"""Every recorded fixture that the library covers, through the tool that users run."""

import re
import subprocess
import sys

import pytest

FIXTURES = [
    "ltu/ltu_tiny",
    "ltu/ltu_tiny_c",
    "ltu/ltuas_tltr_tiny",
    "apt/apt_audiomae",
    "apt/apt_qformer",
    "apt/apt_fbank",
    "apt/apt_llm",
    "apt/apt_llm_head_longaudio",
    "mats/mats_train",
    "mats/mats_santa",
    "mats/msclap",
]


def _run(repo, *prefixes):
    return subprocess.run(
        [sys.executable, str(repo / "tools" / "check_golden.py"), *map(str, prefixes)], capture_output=True, text=True
    )


@pytest.mark.golden
def test_recorded_fixtures(repo, golden):
    result = _run(repo, *(golden / name for name in FIXTURES))
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    last = [line for line in result.stdout.splitlines() if line.startswith("golden ")]
    assert len(last) == len(FIXTURES)
    assert all(re.search(r": \d+ compared, \d+ inputs, \d+ skipped.*, ok$", line) for line in last)


@pytest.mark.golden
def test_an_array_that_nothing_accounts_for_is_a_failure(repo, golden_ltu, tmp_path):
    import numpy as np

    arrays = dict(np.load(golden_ltu / "ltuas_tltr_tiny.npz"))
    np.savez(tmp_path / "ltuas_tltr_tiny_more.npz", **arrays, surprise=np.zeros(3))
    result = _run(repo, tmp_path / "ltuas_tltr_tiny_more")
    assert result.returncode == 1 and "surprise" in result.stdout and result.stdout.rstrip().endswith("FAIL")


@pytest.mark.golden
def test_a_wrong_weight_is_a_failure(repo, golden_ltu, tmp_path):
    import numpy as np

    arrays = dict(np.load(golden_ltu / "ltuas_tltr_tiny.npz"))
    arrays["w:audio_proj.1.bias"] = arrays["w:audio_proj.1.bias"] + 1e-3
    np.savez(tmp_path / "ltuas_tltr_tiny.npz", **arrays)
    assert _run(repo, tmp_path / "ltuas_tltr_tiny").returncode == 1


def test_unknown_kinds_and_absent_files_are_failures(repo, tmp_path):
    assert "unknown kind" in _run(repo, tmp_path / "nothing_of_ours").stdout
    result = _run(repo, tmp_path / "ltu_tiny")
    assert result.returncode == 1 and "no files" in result.stdout
