# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of writers, at random moments and at every call that touches the disk; full disks."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastseg.data.outputs import open_output
from fastseg.errors import InputError
from tests.data.test_outputs import ARRAY, BLOCKS, KINDS, SPEC, begin, stored, within, write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (kind, how) if (kind, how) == ("h5", "steps") else pytest.param(kind, how, marks=pytest.mark.long)
        for kind in ("h5", "zarr", "sharded")
        for how in ("random", "steps", "ranks")
    ],
)
def test_killed_writers_go_on_to_the_same_bytes(tmp_path: Path, kind: str, how: str) -> None:
    command = [sys.executable, "-m", "tests.data.crashes", str(tmp_path), kind, how]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 25


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """``small_disk(n)``: from now on no file can grow beyond n bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_full_disk_while_writing(
    tmp_path: Path, kind: str, resume: bool, small_disk: Callable[[int], None]
) -> None:
    path = tmp_path / f"v.{kind}"
    small_disk(9000 if kind == "h5" else 600)
    with pytest.raises(InputError, match=rf"v\.{kind} cannot be written: .*too large"):
        write(path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ([f"v.{kind}.partial"] if resume else [])
    small_disk(resource.RLIM_INFINITY)
    write(path, resume=resume)
    assert np.array_equal(stored(path, "raw"), ARRAY)


def test_full_disk_while_assembling(tmp_path: Path, small_disk: Callable[[int], None]) -> None:
    begin(tmp_path / "v.h5", finished=3)
    small_disk(9000)
    with pytest.raises(InputError, match=r"v\.h5 cannot be written: .*too large"):
        write(tmp_path / "v.h5", resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["v.h5.partial"]
    small_disk(resource.RLIM_INFINITY)
    write(tmp_path / "v.h5", resume=True)
    assert np.array_equal(stored(tmp_path / "v.h5", "raw"), ARRAY)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_counts_only_when_its_data_are_on_the_disk(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is flushed before the manifest is; names of new files and folders too."""
    dirty: set[str] = set()
    events: list[str] = []
    flush, create = os.fsync, open

    def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = create(path, mode, *arguments, **options)
        if mode[0] in "wa" and ".partial" in str(path):
            dirty.update((str(path), *(str(p) for p in Path(path).parents if f"v.{kind}.partial/" in str(p))))
        return file

    def flushed(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        dirty.discard(name)
        if "manifest" in name:
            events.append(name)
            assert not dirty, "the manifest was flushed before the data"
        flush(handle)

    with open_output(tmp_path / f"v.{kind}", SPEC, blocks=BLOCKS) as output:
        monkeypatch.setattr("builtins.open", opened)
        monkeypatch.setattr(os, "fsync", flushed)
        for block in output.pending():
            output.write(*block, {"raw": ARRAY[within(block)]})
        monkeypatch.undo()
    assert len(events) == len(BLOCKS)


def test_a_journal_whose_published_output_was_removed_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.zarr"
    monkeypatch.setattr("fastseg.data.outputs_journal.Journal.discard", lambda journal: None)
    with pytest.raises(InputError, match="not whole"):  # killed, as it were, before it removed its journal
        write(path, resume=True)
    monkeypatch.undo()
    shutil.rmtree(path)
    write(path, resume=True)
    assert np.array_equal(stored(path, "raw"), ARRAY)


def test_an_output_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    write(path)
    begin(path, settings={"another": 1})
    path.rename(tmp_path / "v.zarr.partial/replaced")
    with pytest.raises(InputError, match="other settings"):
        write(path, resume=True)
    assert np.array_equal(stored(path, "raw"), ARRAY)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_while_discarding_leaves_no_manifest_without_data(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"v.{kind}"
    begin(path, finished=2)

    def killed(folder: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [f"v.{kind}.partial.removing"]
    write(path, resume=True)
    assert np.array_equal(stored(path, "raw"), ARRAY)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
