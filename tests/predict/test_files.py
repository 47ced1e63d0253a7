# SPDX-License-Identifier: BSD-3-Clause
"""Prediction to files: what they hold, kills at any moment, several processes, full disks and bad data."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.predict import CHUNK, Grid, Tiling, predict_to_file

TILING = Tiling((8, 16, 16), 0.5, 3, block_voxels=1 << 15)
SHAPE = (60, 140, 270)


def identity(raw: torch.Tensor) -> torch.Tensor:
    return raw.float()


def batch_dependent(raw: torch.Tensor) -> torch.Tensor:
    ramp = torch.linspace(0, 1, raw[0].numel()).reshape(raw.shape[1:])
    return (raw * ramp + raw.mean() / 7).clamp(0, 1)


def make_raw(folder: Path, shape: tuple[int, int, int] = SHAPE) -> Path:
    np.save(folder / "raw.npy", np.random.default_rng(0).random(shape, "f4"))
    return folder / "raw.npy"


def predict(raw: Path, output: Path, ranks: tuple[int, int] = (0, 1), barrier: object = None) -> None:
    torch.set_num_threads(1)
    wait = barrier.wait if barrier is not None else None  # type: ignore[attr-defined]
    volume = open_volume(raw)
    predict_to_file(volume, batch_dependent, str(output), TILING, rank=ranks[0], world=ranks[1], barrier=wait)


def results(path: Path) -> tuple[np.ndarray, ...]:
    return tuple(open_stored(path, name) for name in ("segmentation", "probability"))


def open_stored(path: Path, name: str) -> np.ndarray:
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file[name][:]
    zarr = pytest.importorskip("zarr")
    array = zarr.open(str(path), mode="r")[name]
    return np.asarray((array["0"] if isinstance(array, zarr.Group) else array)[:])


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Children are forked from a process that has imported torch and done nothing else, so they start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def test_file_holds_segmentation_and_probability(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = rng.random((20, 33, 41), "f4")
        file["raw"].attrs["element_size_um"] = (2.0, 0.5, 0.5)
    volume = open_volume(tmp_path / "raw.h5").crop((2, 0, 0), (20, 33, 41))
    predict_to_file(volume, identity, f"{tmp_path}/out.h5", Tiling((8, 16, 16)), threshold=0.7)
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["segmentation"][:], volume[:][0] >= np.float32(0.7))
        np.testing.assert_array_equal(file["probability"][:], volume[:][0].astype("f2"))
        assert tuple(file["segmentation"].attrs["origin"]) == (2, 0, 0)
    assert open_volume(f"{tmp_path}/out.h5:/segmentation").voxel_size == (2.0, 0.5, 0.5)

    def two(raw: torch.Tensor) -> torch.Tensor:
        return torch.cat((raw, 1 - raw), 1)

    predict_to_file(volume, two, f"{tmp_path}/two.h5", Tiling((8, 16, 16)), classes=2, probability=False)
    stored = open_volume(f"{tmp_path}/two.h5")
    assert (stored.channels, stored.shape, stored.label) == (2, (18, 33, 41), "two.h5:/segmentation")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_killed_at_any_moment_and_gone_on_with(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext, kind: str
) -> None:
    """Twenty kills, before, between and within blocks: then the result of an undisturbed run, and no file before."""
    raw, output = make_raw(tmp_path), tmp_path / f"killed.{kind}"
    began = time.monotonic()
    whole = processes.Process(target=predict, args=(raw, tmp_path / f"whole.{kind}"))
    whole.start()
    whole.join()
    assert whole.exitcode == 0
    undisturbed = time.monotonic() - began
    rng, kills, finished_blocks = random.Random(0), 0, []
    while kills < 20:
        child = processes.Process(target=predict, args=(raw, output))
        child.start()
        child.join(rng.uniform(0, undisturbed / 3))
        killed = child.exitcode is None
        if killed:
            child.kill()
            child.join()
            kills += 1
        if output.exists():
            np.testing.assert_equal(results(output), results(tmp_path / f"whole.{kind}"))
            if killed and list(
                tmp_path.glob("*.partial")
            ):  # between the renaming and the removal, which comes next
                again = processes.Process(target=predict, args=(raw, output))
                again.start()
                again.join()
            output.rename(tmp_path / f"done{kills}.{kind}")
            assert not list(tmp_path.glob("*.partial"))
        for manifest in tmp_path.glob("killed.*.partial/manifest.*.jsonl"):
            finished_blocks.append(manifest.read_bytes().count(b"\n"))
    blocks = len(Grid(SHAPE, TILING, CHUNK).blocks())
    assert any(0 < count < blocks for count in finished_blocks), "no kill came between the blocks"
    last = processes.Process(target=predict, args=(raw, output))
    last.start()
    last.join()
    assert last.exitcode == 0
    np.testing.assert_equal(results(output), results(tmp_path / f"whole.{kind}"))


@pytest.mark.parametrize("kind", ["h5", "zarr"])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_volume(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext, kind: str, world: int
) -> None:
    raw = make_raw(tmp_path)
    predict(raw, tmp_path / f"alone.{kind}")
    barrier = processes.Barrier(world)
    ranks = [
        processes.Process(target=predict, args=(raw, tmp_path / f"shared.{kind}", (rank, world), barrier))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * world
    np.testing.assert_equal(results(tmp_path / f"shared.{kind}"), results(tmp_path / f"alone.{kind}"))


def test_nan_in_the_raw_data_leaves_no_file(tmp_path: Path) -> None:
    array = np.zeros((40, 64, 64), "f4")
    array[33, 5, 6] = np.nan
    np.save(tmp_path / "v.npy", array)
    tiling = Tiling((8, 16, 16), block_voxels=1 << 15)
    output = f"{tmp_path}/out.h5"
    with pytest.raises(InputError, match=r"v\.npy holds nan at \(z, y, x\) = \(33, 5, 6\)"):
        predict_to_file(open_volume(tmp_path / "v.npy"), identity, output, tiling)
    assert not Path(output).exists()

    # The raw data have changed: what was predicted of them must not be mixed with what is there now.
    np.save(tmp_path / "v.npy", array + 1 - array)
    with pytest.raises(
        InputError, match=r"out\.h5\.partial was begun with other settings \(settings\.raw changed"
    ):
        predict_to_file(open_volume(tmp_path / "v.npy"), identity, output, tiling)
    np.save(tmp_path / "v.npy", np.ones_like(array))
    predict_to_file(open_volume(tmp_path / "v.npy"), identity, output, tiling, restart=True)
    assert open_stored(Path(output), "segmentation").all()
    assert {path.name for path in tmp_path.iterdir()} == {"v.npy", "out.h5"}


def test_other_settings_do_not_go_on_from_a_partial_output(tmp_path: Path) -> None:
    volume = open_volume(make_raw(tmp_path, (40, 40, 40)))
    calls = []

    def breaks(raw: torch.Tensor) -> torch.Tensor:
        calls.append(len(raw))
        if len(calls) > 20:
            raise KeyboardInterrupt
        return raw

    with pytest.raises(KeyboardInterrupt):
        predict_to_file(volume, breaks, f"{tmp_path}/out.zarr", TILING, settings={"checkpoint": "a"})
    with pytest.raises(InputError, match='checkpoint was "a", is "b"'):
        predict_to_file(volume, identity, f"{tmp_path}/out.zarr", TILING, settings={"checkpoint": "b"})
    with pytest.raises(InputError, match=r"threshold was 0\.5, is 0\.6"):
        predict_to_file(
            volume, identity, f"{tmp_path}/out.zarr", TILING, threshold=0.6, settings={"checkpoint": "a"}
        )
