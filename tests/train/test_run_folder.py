"""A folder that cannot hold a run is refused before the first step."""

import shutil
from types import SimpleNamespace

import pytest

from alm_jax.cli.main import main
from alm_jax.core.errors import AlmError
from alm_jax.train.curriculum import train
from alm_jax.train.metrics import read_metrics
from tests.train.runs import short


def test_a_read_only_folder(mounted, caches):
    disk = mounted("ro")
    with pytest.raises(AlmError, match=r"cannot write to .*run: Read-only file system; make it writable"):
        train(short(1), disk / "run", progress=False)


def test_no_room_for_a_checkpoint(tmp_path, caches, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_200_000))
    experiment = short(1, **{"stages.read.validation": None})
    # 151,936 trained numbers and two of AdamW for each, in four bytes.
    with pytest.raises(AlmError, match=r"the disk is full \(1 MB are free, a checkpoint takes 2 MB\); make room"):
        train(experiment, tmp_path / "run", progress=False)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []
    monkeypatch.undo()


def test_the_url_of_a_bucket(capsys):
    assert main(["train", "ltu/tiny", "--out", "gs://bucket/run"]) == 2
    assert "is a URL; mount the bucket" in capsys.readouterr().err
