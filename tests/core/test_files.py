"""Files and folders that appear whole or not at all."""

import os
import subprocess
import sys

import pytest

from alm_jax.core.errors import CheckpointError
from alm_jax.core.files import new_folder, remove_partials, write_text


def test_a_folder_appears_once_it_is_whole(tmp_path):
    target = tmp_path / "new" / "folder"
    with new_folder(target) as folder:
        (folder / "a").write_text("a")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"] and len(list(target.parent.iterdir())) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    with new_folder(empty) as folder:
        (folder / "b").mkdir()
    assert (empty / "b").is_dir()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_of_a_folder_stays_when_it_fails(tmp_path, error):
    with pytest.raises((CheckpointError, KeyboardInterrupt)) as found, new_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert "x: cannot be written: [Errno 28] No space left" in str(found.value)


def test_what_is_there_is_not_touched(tmp_path):
    (tmp_path / "file").write_text("mine")
    for target, message in ((tmp_path / "file", "is a file"), (tmp_path, "holds file already")):
        with pytest.raises(CheckpointError, match=message), new_folder(target):
            pytest.fail("entered")
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_text(tmp_path / "a.json", "{}")
    stay = ["a.json", f".a.json.{os.getpid()}.partial", ".hidden", ".a.json.old", f".python-3.{dead.pid}"]
    for name in (*stay[1:], f".a.json.{dead.pid}.partial", f".clip.flac.{dead.pid}.partial"):
        (tmp_path / name).write_text("{")
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
