# SPDX-License-Identifier: BSD-3-Clause
"""Some channels of several, by number or by the name that a file states; and a network that sees these alone."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from fastseg.data.cache import ChunkCache
from fastseg.data.outputs import ArraySpec, open_output
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError
from tests.project import CONFIG, fastseg

ARRAY = np.random.default_rng(0).integers(0, 200, (3, 4, 32, 40)).astype("u1")
NAMES = ["DAPI", "GFP", "a, b"]


def write_ome_tiff(path: Path) -> str:
    tifffile.imwrite(path / "a.ome.tif", ARRAY, metadata={"axes": "CZYX", "Channel": {"Name": NAMES}})
    return str(path / "a.ome.tif")


def write_tiff_planes(path: Path) -> str:
    """Slices first, channels within."""
    options = {"metadata": {"axes": "ZCYX", "Channel": {"Name": NAMES}}, "compression": "zlib"}
    tifffile.imwrite(path / "b.ome.tif", ARRAY.swapaxes(0, 1), photometric="minisblack", **options)
    return str(path / "b.ome.tif")


def write_ome_zarr(path: Path) -> str:
    spec = ArraySpec(ARRAY.shape, "uint8", (2, 2, 16, 16))
    with open_output(str(path / "c.zarr"), {"raw": spec}) as output:
        for start, stop in output.pending():
            output.write(start, stop, {"raw": ARRAY[(slice(None), *map(slice, start, stop))]})
    metadata = path / "c.zarr/raw/zarr.json"
    stated = json.loads(metadata.read_text())
    stated["attributes"]["ome"]["omero"] = {"channels": [{"label": name} for name in NAMES]}
    metadata.write_text(json.dumps(stated))
    return str(path / "c.zarr:/raw")


WRITERS = {"OME-TIFF": write_ome_tiff, "TIFF, slices first": write_tiff_planes, "OME-Zarr": write_ome_zarr}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("picked", "places"), [(["GFP"], [1]), ([2, "DAPI"], [2, 0]), (["a, b", 1, 1], [2, 1, 1])]
)
@pytest.mark.parametrize("cached", [False, True])
def test_channels_by_number_and_name(
    tmp_path: Path, kind: str, picked: list[int | str], places: list[int], cached: bool
) -> None:
    whole = open_volume(WRITERS[kind](tmp_path))
    assert whole.channels == 3
    volume: Volume = whole.pick(picked)
    volume = volume.with_cache(ChunkCache(1 << 20)) if cached else volume
    assert volume.channels == len(places)
    assert np.array_equal(volume[:], ARRAY[places])
    part = volume.crop((1, 3, 5), (4, 30, 40))
    out = np.zeros((len(places), 2, 10, 11), "u2")
    part.read((1, 2, 3), (3, 12, 14), out)
    assert np.array_equal(out, ARRAY[places, 2:4, 5:15, 8:19])
    assert np.array_equal(whole[:], ARRAY)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_channel_is_named(tmp_path: Path, kind: str) -> None:
    volume = open_volume(WRITERS[kind](tmp_path))
    for channel in ("gfp", 3, -1):
        with pytest.raises(
            InputError, match=rf"has no channel '?{channel}'?; its channels are DAPI, GFP, a, b"
        ):
            volume.pick([channel])


def test_channels_without_names(tmp_path: Path) -> None:
    imageio.imwrite(tmp_path / "rgb.png", ARRAY[:, 0].transpose(1, 2, 0))
    volume = open_volume(str(tmp_path / "rgb.png"))
    assert np.array_equal(volume.pick([1])[:], ARRAY[1:2, :1])
    with pytest.raises(
        InputError, match="no channel 'DAPI'; its channels are 3, numbered from 0, and states no names"
    ):
        volume.pick(["DAPI"])


def test_a_network_of_two_channels_of_three(tmp_path: Path) -> None:
    """It learns from a file of three, and segments that, and one that holds them in another order."""
    array = np.random.default_rng(1).integers(0, 200, (3, 16, 64, 64)).astype("u1")
    for name, order in (("a", [0, 1, 2]), ("b", [1, 2, 0])):
        metadata = {"axes": "CZYX", "Channel": {"Name": [NAMES[place] for place in order]}}
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", array[order], metadata=metadata)
    np.save(tmp_path / "labels.npy", (array[1] > 100).astype("u1"))
    np.save(tmp_path / "grey.npy", array[1])
    text = CONFIG.format(folder=tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    entry = "[{raw: a.ome.tif, labels: labels.npy}]"
    common = (tmp_path / "run.yaml", f"data.train={entry}", "data.test=[]", "train.steps=2")
    refused = fastseg("check", *common, "data.channels=[GFP, RFP]", "--seconds", 0)
    assert "a.ome.tif has no channel 'RFP'; its channels are DAPI, GFP, a, b" in refused.stderr
    done = fastseg("train", *common, "data.channels=[GFP, DAPI]")
    assert done.returncode == 0, done.stderr
    for name in "ab":
        done = fastseg(
            "segment", tmp_path / f"{name}.ome.tif", "--run", tmp_path / "run", "--what", "probability"
        )
        assert done.returncode == 0, done.stderr
    assert np.array_equal(*(tifffile.imread(tmp_path / f"run/segmented/{name}.tif") for name in "ab"))
    other = fastseg(
        "segment", tmp_path / "b.ome.tif", "--run", tmp_path / "run", "--channels", "1,2", "--overwrite"
    )
    assert other.returncode == 0, other.stderr
    refused = fastseg(
        "segment", tmp_path / "b.ome.tif", "--run", tmp_path / "run", "--channels", "1", "--overwrite"
    )
    assert "must have 2 channels, got 1; --channels" in refused.stderr
    refused = fastseg("segment", tmp_path / "grey.npy", "--run", tmp_path / "run")
    assert "grey.npy has no channel 'GFP'; its channels are 1, numbered" in refused.stderr
