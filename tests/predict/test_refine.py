# SPDX-License-Identifier: BSD-3-Clause
"""Openings and closings from file to file, and windows with a halo: the results of the whole volume."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.methods.inference import with_halo
from fastseg.morphology import apply_steps
from fastseg.nets import FCNN
from fastseg.predict import Tiling, predict_blocks, refine_file, second_pass

STEPS = [("open", (0, 2, 2)), ("close", (1, 3, 3))]


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("block_voxels", [1 << 18, 1 << 24])
def test_a_file_is_refined_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, block_voxels: int
) -> None:
    monkeypatch.setattr(second_pass, "BLOCK_VOXELS", block_voxels)
    rng = np.random.default_rng(0)
    shape = (*((classes,) if classes > 1 else ()), 35, 150, 140)
    mask, probability = (rng.random(shape) < 0.6).astype("u1"), rng.random(shape).astype("f2")
    with h5py.File(tmp_path / "predicted.h5", "w") as file:
        file["segmentation"], file["probability"] = mask, probability
    np.save(tmp_path / "raw.npy", np.zeros(shape[-3:], "u1"))
    raw = open_volume(tmp_path / "raw.npy")
    refine_file(str(tmp_path / "predicted.h5"), str(tmp_path / "out.h5"), STEPS, source=raw)
    with h5py.File(tmp_path / "out.h5") as file:
        expected = np.stack([apply_steps(m, STEPS) for m in mask.reshape(-1, *shape[-3:])])
        assert (file["segmentation"][:].reshape(expected.shape) == expected).all()
        assert (file["probability"][:] == probability).all()
        assert file["segmentation"].attrs["source"] == raw.name
    assert len(second_pass.blocks_of(shape[-3:], block_voxels)) == (1 if block_voxels == 1 << 24 else 12)


def test_of_exclusive_classes_no_voxel_becomes_two(tmp_path: Path) -> None:
    """Closing lets two classes grow into the same gap, and into each other."""
    ids = np.random.default_rng(1).integers(0, 3, (4, 60, 70))
    mask = np.stack([ids == 1, ids == 2])
    with h5py.File(tmp_path / "predicted.h5", "w") as file:
        file["segmentation"] = mask.astype("u1")
    np.save(tmp_path / "raw.npy", np.zeros(ids.shape, "u1"))
    steps = [("close", (0, 2, 2))]
    refine_file(
        str(tmp_path / "predicted.h5"),
        str(tmp_path / "out.h5"),
        steps,
        source=open_volume(tmp_path / "raw.npy"),
        exclusive=True,
    )
    found = open_volume(f"{tmp_path / 'out.h5'}:/segmentation")[:] != 0
    closed = np.stack([apply_steps(m, steps) for m in mask]) != 0
    assert closed.all(0).any()
    assert (found.sum(0) <= 1).all()
    np.testing.assert_array_equal(found.any(0), closed.any(0))
    assert (found & mask)[mask].all()  # closing takes nothing away, and nobody else may


def test_without_probabilities_there_are_none(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "predicted.h5", "w") as file:
        file["segmentation"] = np.ones((1, 20, 20), "u1")
    np.save(tmp_path / "raw.npy", np.zeros((1, 20, 20), "u1"))
    raw = open_volume(tmp_path / "raw.npy")
    refine_file(str(tmp_path / "predicted.h5"), str(tmp_path / "out.zarr"), STEPS[:1], source=raw)
    assert open_volume(f"{tmp_path / 'out.zarr'}:/segmentation").read((0, 0, 0), (1, 20, 20)).all()
    with pytest.raises(InputError):
        open_volume(f"{tmp_path / 'out.zarr'}:/probability")


@pytest.mark.parametrize(
    ("dims", "shape", "window"), [(2, (1, 100, 90), (1, 60, 64)), (3, (20, 30, 28), (20, 24, 24))]
)
def test_tiles_with_a_halo_are_those_of_the_whole_image(
    tmp_path: Path, dims: int, shape: tuple[int, int, int], window: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    network = FCNN(dims, 1, 1, dilations=(1, 3) if dims == 2 else ((1, 1, 1), (1, 2, 2))).eval()
    np.save(tmp_path / "raw.npy", np.random.default_rng(0).random(shape, "f4"))
    volume = open_volume(tmp_path / "raw.npy")

    @torch.no_grad()
    def predict(raw: torch.Tensor) -> torch.Tensor:
        image = raw.squeeze(2) if dims == 2 else raw
        return network(image).sigmoid().reshape(raw.shape)

    reach = 1 + 2 * 4 if dims == 2 else 1 + 2 * 3
    halo = (0 if dims == 2 else 5, reach, reach)
    tiling = with_halo(Tiling(window, 0.1, 2), halo, volume)
    assert tiling.halo == (0, reach, reach)
    whole = predict(torch.from_numpy(volume.read((0, 0, 0), shape))[None])[0]

    def off(tiling: Tiling) -> float:
        blocks = predict_blocks(volume, predict, tiling)
        return max(
            float((part - whole[(slice(None), *map(slice, start, stop))]).abs().max())
            for start, stop, part in blocks
        )

    assert off(tiling) < 1e-5
    assert off(Tiling(window, tiling.overlap, 2)) > 1e-4


def test_a_window_must_be_larger_than_what_the_network_sees(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", np.zeros((1, 100, 100), "f4"))
    volume = open_volume(tmp_path / "raw.npy")
    with pytest.raises(InputError, match=r"predict.window must be more than 40 voxels along y, .* got 40"):
        with_halo(Tiling((1, 40, 100)), (0, 20, 20), volume)
    assert with_halo(Tiling((1, 100, 100)), (0, 60, 60), volume) == Tiling((1, 100, 100))
