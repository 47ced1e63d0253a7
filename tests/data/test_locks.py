# SPDX-License-Identifier: BSD-3-Clause
"""Threads that read do not wait for one another's locks, whoever holds them and whenever the garbage collector runs."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastseg.data.hdf5 import Hdf5Source
from fastseg.data.volumes import open_volume
from fastseg.predict.grid import Tiling
from fastseg.predict.stream import predict_blocks
from tests.data.scenes import make_loader, make_sampler, make_scene


def batches(folder: Path) -> Iterator[object]:
    scene = make_scene(folder)
    return make_loader(scene, make_sampler(scene), threads=1).batches(0, 9)


def blocks(folder: Path) -> Iterator[object]:
    np.save(folder / "v.npy", np.zeros((512, 64, 64), "f4"))
    tiling = Tiling((64, 64, 64), overlap=0, batch=1, block_voxels=1)
    return predict_blocks(open_volume(folder / "v.npy"), lambda raw: raw, tiling, classes=1, device="cpu")


@pytest.mark.parametrize(
    ("generator", "reads", "needed"),  # so many reads for the first that is yielded
    [(batches, "fastseg.data.loader.read_mirrored", 3), (blocks, "fastseg.predict.stream._read_padded", 2)],
)
def test_a_generator_that_the_collector_closes_waits_for_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: object, reads: str, needed: int
) -> None:
    lock, held, begun, got = threading.Lock(), threading.Event(), [], []

    def read(volume: object, low: object, high: object, *_: object) -> object:
        begun.append(1)
        if len(begun) > needed:
            held.wait(20)
            got.append(lock.acquire(timeout=10))
            if got[-1]:
                lock.release()
        return np.zeros((1, *np.subtract(high, low)), "f4")

    monkeypatch.setattr(reads, read)
    left = generator(tmp_path)
    next(left)
    cycle = [left]
    cycle.append(cycle)
    with lock:
        held.set()
        del left, cycle
        gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("fastseg-read"):
            thread.join()
    assert got
    assert all(got)


def test_a_reader_that_holds_the_lock_of_h5py_waits_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from h5py._objects import phil

    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["raw"] = np.ones((4, 4, 4), "u1")
    volume = pickle.loads(pickle.dumps(open_volume(tmp_path / "v.h5")))  # not open yet
    opening, held, opened = threading.Event(), threading.Event(), Hdf5Source.open

    def open_late(source: Hdf5Source) -> object:
        opening.set()
        held.wait(1)
        return opened(source)

    monkeypatch.setattr(Hdf5Source, "open", open_late)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(volume.read, (0, 0, 0), (4, 4, 4))
        assert opening.wait(60)
        with phil:
            held.set()
            assert volume[:].all()
        assert other.result().all()
