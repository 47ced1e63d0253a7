# SPDX-License-Identifier: BSD-3-Clause
"""One training at a time in a folder, however the one before ended."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fastseg.errors import InputError
from fastseg.train.checkpoint import temporary_name, write_atomically
from fastseg.train.ranks import Ranks
from fastseg.train.run_lock import LOCK_FILE, writing_alone
from tests.project import fastseg, make_project

RANKS = Ranks()


def test_a_second_training_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    with writing_alone(str(tmp_path / "run"), RANKS):
        done = fastseg("train", config)
        assert done.returncode == 2
        assert f"is being written by process {os.getpid()} on " in done.stderr
        assert "give another output" in done.stderr
        assert os.listdir(tmp_path / "run") == [LOCK_FILE]
        with writing_alone(str(tmp_path / "run"), Ranks(rank=1, count=2)):
            pass  # the first process holds the folder for the others
    assert not (tmp_path / "run").exists()


def test_a_lock_ends_with_its_process_and_what_that_left_goes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = os.fork()
    if child == 0:
        with writing_alone(str(folder), RANKS):
            (folder / "checkpoints").mkdir()
            Path(temporary_name(str(folder / "checkpoints" / "best.pt"))).touch()
            (folder / "predictions" / "test_0.h5.partial").mkdir(parents=True)
            (folder / "ready").touch()
            time.sleep(60)
        os._exit(1)
    while not (folder / "ready").exists():
        time.sleep(0.01)
    with pytest.raises(InputError, match=f"by process {child} "), writing_alone(str(folder), RANKS):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder / LOCK_FILE).exists()
    with writing_alone(str(folder), RANKS):
        assert not list(folder.glob("checkpoints/*"))
        assert (folder / "predictions" / "test_0.h5.partial").is_dir()  # to go on with
    assert not (folder / LOCK_FILE).exists()


def test_a_lock_that_its_holder_removed_in_between_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, then removed by the one who held it: locking what nobody can find would let two in."""
    from fastseg.train import run_lock

    taken = []

    def lock(file: object) -> bool:
        if not taken:
            os.remove(tmp_path / LOCK_FILE)
        taken.append(file)
        return True

    monkeypatch.setattr(run_lock, "try_lock", lock)
    with writing_alone(str(tmp_path), RANKS):
        assert len(taken) == 2
        assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_writers_of_one_file_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    path = str(tmp_path / "best.pt")
    assert len({temporary_name(path) for _ in range(100)}) == 100
    write_atomically(path, b"whole")
    assert os.listdir(tmp_path) == ["best.pt"]
