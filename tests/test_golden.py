"""Every recorded fixture that the library covers, through the tool that users run."""

import re
import subprocess
import sys

import check_golden
import numpy as np
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


@pytest.mark.golden
@pytest.mark.parametrize("name", FIXTURES)
def test_recorded_fixtures(golden, name, capsys):
    code, out = check_golden.main([str(golden / name)]), capsys.readouterr().out
    assert code == 0, out
    assert re.search(r"^golden \S+: \d+ compared, \d+ inputs, \d+ skipped.*, ok$", out.splitlines()[-1])


@pytest.mark.golden
def test_an_array_that_nothing_accounts_for_is_a_failure(golden_ltu, tmp_path, capsys):
    arrays = dict(np.load(golden_ltu / "ltuas_tltr_tiny.npz"))
    np.savez(tmp_path / "ltuas_tltr_tiny_more.npz", **arrays, surprise=np.zeros(3))
    assert check_golden.main([str(tmp_path / "ltuas_tltr_tiny_more")]) == 1
    out = capsys.readouterr().out
    assert "surprise" in out and out.rstrip().endswith("FAIL")


@pytest.mark.golden
def test_a_wrong_weight_is_a_failure(golden_ltu, tmp_path):
    arrays = dict(np.load(golden_ltu / "ltuas_tltr_tiny.npz"))
    arrays["w:audio_proj.1.bias"] = arrays["w:audio_proj.1.bias"] + 1e-3
    np.savez(tmp_path / "ltuas_tltr_tiny.npz", **arrays)
    assert check_golden.main([str(tmp_path / "ltuas_tltr_tiny")]) == 1


def test_unknown_kinds_and_absent_files_are_failures(repo, tmp_path):
    """As the command itself."""
    command = [
        sys.executable,
        str(repo / "tools" / "check_golden.py"),
        tmp_path / "nothing_of_ours",
        tmp_path / "ltu_tiny",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "unknown kind" in result.stdout and "no files" in result.stdout
