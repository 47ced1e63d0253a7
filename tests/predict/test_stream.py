# SPDX-License-Identifier: BSD-3-Clause
"""Tiled prediction: exact for an identity, independent of blocks, bounded in memory, whole or absent."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fastseg.data.readers import Readers
from fastseg.data.volumes import Volume, open_volume
from fastseg.predict import CHUNK, Grid, Tiling, Waited, predict_blocks, predict_to_file
from fastseg.predict.stream import _read_layers, sent


def volume_of(array: np.ndarray, folder: str) -> Volume:
    np.save(f"{folder}/v.npy", array)
    return open_volume(f"{folder}/v.npy")


def assemble(volume: Volume, network: object, tiling: Tiling, classes: int = 1) -> np.ndarray:
    out = np.full((classes, *volume.shape), np.nan, np.float32)
    for start, stop, values in predict_blocks(volume, network, tiling, classes=classes):
        box = (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))
        assert np.isnan(out[box]).all(), "a block was given twice"
        out[box] = values
    return out


def identity(raw: torch.Tensor) -> torch.Tensor:
    return raw.float()


# (size, window): up to four windows side by side, as a window of one voxel in a large volume tells nothing more.
axis = st.sampled_from([1, 2, 4, 7, 8, 16]).flatmap(
    lambda window: st.tuples(st.integers(1, min(60, 4 * window)), st.just(window))
)


@given(
    z=axis, y=axis, x=axis, overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9]), blocks=st.booleans()
)
@example(z=(31, 8), y=(53, 16), x=(47, 16), overlap=0.5, blocks=True)
@example(z=(3, 8), y=(5, 16), x=(2, 16), overlap=0.5, blocks=False)  # smaller than the window
def test_identity_network_returns_the_input_exactly(
    z: tuple[int, int], y: tuple[int, int], x: tuple[int, int], overlap: float, blocks: bool
) -> None:
    shape, window = zip(z, y, x, strict=True)
    values = np.random.default_rng(0).normal(0, 1e3, shape).astype("f4")
    tiling = Tiling(window, overlap, block_voxels=1 << 15 if blocks else 1 << 25, batch=3)
    with tempfile.TemporaryDirectory() as folder:
        assert np.array_equal(assemble(volume_of(values, folder), identity, tiling)[0], values)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_result_does_not_depend_on_the_blocks(tmp_path: Path, overlap: float) -> None:
    """A network that answers differently by place in the window shows any error in blending."""
    ramp = torch.linspace(0, 1, 16 * 16 * 16).reshape(1, 1, 16, 16, 16)
    volume = volume_of(np.random.default_rng(0).normal(size=(70, 150, 140)).astype("f4"), str(tmp_path))

    def network(raw: torch.Tensor) -> torch.Tensor:
        return torch.cat((raw * ramp, raw + ramp), dim=1)

    whole = assemble(volume, network, Tiling((16, 16, 16), overlap, batch=7), classes=2)
    blocks = assemble(
        volume, network, Tiling((16, 16, 16), overlap, batch=5, block_voxels=1 << 18), classes=2
    )
    assert np.array_equal(whole, blocks)


def test_blending_weights_fall_off_from_the_centre(tmp_path: Path) -> None:
    """Two windows of 4 with stride 2 over 6 voxels, answering 0 and 1: Gaussians of deviation 1/2, half a voxel and
    one and a half from the centre, share the middle as exp(-1/2) to exp(-9/2)."""
    volume = volume_of(np.zeros((1, 1, 6), "f4"), str(tmp_path))
    answers = iter([0.0, 1.0])
    out = assemble(volume, lambda raw: torch.full_like(raw, next(answers)), Tiling((1, 1, 4), 0.5, batch=1))
    share = 1 / (1 + np.exp(4))
    np.testing.assert_allclose(out[0, 0, 0], [0, 0, share, 1 - share, 1, 1], rtol=1e-5)


def test_result_is_the_weighted_mean_of_all_windows(tmp_path: Path) -> None:
    """By the definition, over odd sizes, two classes, unlike axes, several blocks."""
    shape, window = (37, 140, 21), (10, 12, 8)
    tiling = Tiling(window, 0.6, batch=4, block_voxels=1 << 15)
    volume = volume_of(np.random.default_rng(0).normal(size=shape).astype("f4"), str(tmp_path))
    ramp = torch.linspace(-1, 1, 960).reshape(window)

    def network(raw: torch.Tensor) -> torch.Tensor:
        return torch.cat((raw * ramp, raw + ramp), dim=1)

    weight = np.ones(window)
    for axis, size in enumerate(window):
        place = np.arange(size).reshape([-1 if a == axis else 1 for a in range(3)])
        weight = weight * np.exp(-0.5 * ((place - (size - 1) / 2) / (size / 8)) ** 2)
    total, sums = np.zeros(shape), np.zeros((2, *shape))
    for start in itertools.product(*Grid(shape, tiling, CHUNK).positions):
        box = tuple(slice(p, p + w) for p, w in zip(start, window, strict=True))
        raw = torch.from_numpy(volume[box][None])
        total[box] += weight
        sums[(slice(None), *box)] += weight * network(raw)[0].numpy()
    assert len(Grid(shape, tiling, CHUNK).blocks()) > 2
    np.testing.assert_allclose(
        assemble(volume, network, tiling, classes=2), sums / total, rtol=2e-5, atol=2e-6
    )


def batch_dependent(raw: torch.Tensor) -> torch.Tensor:
    """What a window gives depends on its place and on the windows it shares a batch with."""
    ramp = torch.linspace(0, 1, raw[0].numel()).reshape(raw.shape[1:])
    return raw * ramp + raw.mean() / 7


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_blocks_come_out_the_same_alone_and_in_any_company(tmp_path: Path, batch: int) -> None:
    volume = volume_of(np.random.default_rng(0).normal(size=(75, 150, 40)).astype("f4"), str(tmp_path))
    tiling = Tiling((8, 16, 16), 0.5, batch, block_voxels=1 << 17)
    blocks = Grid(volume.shape, tiling, CHUNK).blocks()
    assert len({block.column for block in blocks}) > 1
    whole = [values for _, _, values in predict_blocks(volume, batch_dependent, tiling)]
    for chosen in ([3], [0, 1, 4, 5], range(2, 7), range(len(blocks))):
        some = predict_blocks(volume, batch_dependent, tiling, blocks=[blocks[i] for i in chosen])
        for i, (start, stop, values) in zip(chosen, some, strict=True):
            assert (start, stop) == (blocks[i].start, blocks[i].stop)
            assert torch.equal(values, whole[i])


@pytest.mark.parametrize("parts", [1, 2, 3, 50])
def test_processes_share_all_blocks(parts: int) -> None:
    grid = Grid((75, 300, 40), Tiling((8, 16, 16), block_voxels=1 << 17), CHUNK)
    shares = [grid.blocks(part, parts) for part in range(parts)]
    assert [block for share in shares for block in share] == grid.blocks()


def test_each_window_of_a_column_is_predicted_once(tmp_path: Path) -> None:
    volume = volume_of(np.zeros((100, 64, 64), "u1"), str(tmp_path))
    tiling = Tiling((16, 32, 32), 0.5, 4)
    seen = []
    assemble(volume, lambda raw: seen.append(len(raw)) or raw.float(), tiling)
    layers, rows = len(range(0, 84, 8)) + 1, 3
    assert sum(seen) == layers * rows * rows
    assert set(seen[:-1]) == {4}


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_empty_windows_are_background_unseen(tmp_path: Path, dtype: str) -> None:
    array = np.full((16, 128, 300), 3, dtype)
    array[2:6, 20:40, 200:230] = 9
    volume = volume_of(array, str(tmp_path))
    seen = []

    def network(raw: torch.Tensor) -> torch.Tensor:
        seen.extend(float(window.max()) for window in raw.float())
        return torch.cat((raw.float(), torch.ones_like(raw, dtype=torch.float32)), 1)

    out = assemble(volume, network, Tiling((8, 32, 32), 0.0, 3, skip_below=3), classes=2)
    assert set(seen) == {9.0}
    predicted = np.zeros(array.shape, bool)
    predicted[:8, :64, 192:256] = True
    np.testing.assert_array_equal(out[0], np.where(predicted, array, 0))
    np.testing.assert_array_equal(out[1], predicted)


def test_a_network_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    volume = volume_of(np.zeros((8, 16, 16), "f4"), str(tmp_path))
    with pytest.raises(
        ValueError, match=r"must return \(1, 2, 8, 16, 16\) \(B, classes, \*window\), got \(1, 1, 8"
    ):
        list(predict_blocks(volume, identity, Tiling((8, 16, 16)), classes=2))


_PEAK = """
import sys, time
from fastseg.data import hdf5
from fastseg.data.volumes import open_volume
from fastseg.predict import Tiling, predict_to_file
path, out, depth, width, voxels = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
hdf5._CACHE_BYTES = 1 << 20  # the chunk cache, 64 MiB at most, would grow with the smaller volume
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
tiling = Tiling((depth, width, width), 0.25, block_voxels=voxels)
predict_to_file(open_volume(path), lambda raw: raw / 255, out, tiling)
print(status("VmHWM"), time.process_time())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("shapes", "window", "block_voxels"),
    [
        pytest.param(((32, 512, 512), (64, 1024, 1024)), (16, 64), 1 << 19, id="8 MB and 67 MB"),
        pytest.param(
            ((512, 2048, 2048), (1024, 4096, 4096)),
            (64, 256),
            1 << 25,
            id="2 GB and 17 GB",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_volume(
    tmp_path: Path, shapes: tuple[tuple[int, ...], ...], window: tuple[int, int], block_voxels: int
) -> None:
    """Eight times the voxels, the same peak."""
    peaks, seconds = [], []
    for shape in shapes:
        with h5py.File(tmp_path / "raw.h5", "w") as file:  # allocated, never written: zeros
            file.create_dataset("raw", shape, "u1", chunks=(16, 64, 64))
        arguments = [f"{tmp_path}/raw.h5:/raw", f"{tmp_path}/out.h5", *map(str, (*window, block_voxels))]
        # Blocks come from mmap, so that glibc's fragmented arenas do not blur the picture.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
        command = [sys.executable, "-c", _PEAK, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peak, second = done.stdout.split()
        peaks.append(int(peak) / 1024)
        seconds.append(float(second))
    assert peaks[1] - peaks[0] < max(8, 0.02 * peaks[0]), f"peak resident memory in MB: {peaks}"
    print(f"peak resident memory in MB: {peaks}, CPU seconds: {seconds}")


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("kept", [0, 3, 7])
def test_planes_that_are_on_the_device_are_not_sent_again(dtype: str, kept: int) -> None:
    """On the device the last planes of the layer before differ from those on the host: they must be what is kept."""
    layer = np.random.default_rng(0).integers(0, 200, (2, 8, 5, 6)).astype(dtype)
    before = torch.from_numpy(layer[:, -1:].repeat(8, axis=1) + np.array(1, dtype))
    moved = sent(layer, kept, before, torch.device("cpu")).numpy()
    assert moved.dtype == layer.dtype
    assert np.array_equal(moved[:, kept:], layer[:, kept:])
    assert np.array_equal(moved[:, :kept], before.numpy()[:, :kept])
    assert np.array_equal(sent(layer, kept, None, torch.device("cpu")).numpy(), layer)


def test_layers_say_which_of_their_planes_were_read_before(tmp_path: Path) -> None:
    """Read by ``sent`` from layer to layer, as on a GPU, the layers are those of the volume; nothing is read twice."""
    array = np.random.default_rng(0).integers(0, 1 << 16, (21, 9, 8)).astype("u2")
    volume = volume_of(array, str(tmp_path))
    read = []
    plain = volume.read
    volume.read = lambda low, high: (read.append((low[0], high[0])), plain(low, high))[1]  # type: ignore
    for overlap in (0.0, 0.5, 0.75):
        read.clear()
        grid = Grid(volume.shape, Tiling((8, 9, 8), overlap), CHUNK)
        starts, before = grid.columns[0].starts[0], None
        with Readers(1) as reader:
            for z, (low, layer, kept) in zip(
                starts,
                _read_layers(volume, grid.columns[0], (8, 9, 8), 0, len(starts), reader, Waited()),
                strict=True,
            ):
                before = sent(layer, kept, before, torch.device("cpu"))
                assert low == (z, 0, 0)
                assert np.array_equal(before[0], array[z : z + 8])
        assert sum(high - low for low, high in read) == 21


def test_what_a_prediction_has_waited_for_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second at every look, each wait takes one: four layers, and two blocks."""
    volume = volume_of(np.zeros((20, 8, 8), "u1"), str(tmp_path))
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)
    waited = Waited()
    tiling = Tiling((8, 8, 8), 0.5)
    predict_to_file(volume, identity, str(tmp_path / "p.h5"), tiling, waited=waited)
    assert (waited.reading, waited.writing) == (4, 2)
