# SPDX-License-Identifier: BSD-3-Clause
"""CZI as ZEISS's library writes it, LIF and NDPI put together here after their layout, and ND2 by a reader that answers
as nd2 does: no file of a microscope was at hand."""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError

ARRAY = np.random.default_rng(0).integers(0, 4000, (2, 3, 40, 50)).astype("u2")  # c z y x


def holds(volume: Volume, expected: np.ndarray) -> None:
    assert (volume.channels, *volume.shape) == expected.shape
    assert volume.dtype == expected.dtype
    assert np.array_equal(volume[:], expected)
    assert np.array_equal(volume[-1:, 3:11, 5:], expected[:, -1:, 3:11, 5:])
    again = pickle.loads(pickle.dumps(volume))
    with ThreadPoolExecutor(4) as threads:
        rows = threads.map(lambda y: again[:, y : y + 1], range(volume.shape[1]))
        assert np.array_equal(np.concatenate([*rows], 2), expected)


def write_czi(path: Path, planes: dict[tuple[int, int, int], np.ndarray], **metadata: Any) -> None:
    """planes: (y, x, samples) by scene, channel and slice."""
    czi = pytest.importorskip("pylibCZIrw.czi")
    with czi.create_czi(str(path)) as file:
        for (scene, c, z), plane in planes.items():
            file.write(plane, plane={"C": c, "Z": z, "T": 0}, scene=scene, location=(100 * scene, 7))
        file.write_metadata("test", **metadata)


def test_czi(tmp_path: Path) -> None:
    planes = {(0, c, z): ARRAY[c, z, :, :, None] for c in range(2) for z in range(3)}
    names, scale = {0: "DAPI", 1: "GFP"}, {"scale_x": 1e-7, "scale_y": 2e-7, "scale_z": 5e-7}
    write_czi(tmp_path / "a.czi", planes, channel_names=names, **scale)
    volume = open_volume(tmp_path / "a.czi")
    holds(volume, ARRAY)
    assert volume.voxel_size == pytest.approx((0.5, 0.2, 0.1))
    holds(volume.pick(["GFP"]), ARRAY[1:])


def test_czi_of_colours_and_scenes(tmp_path: Path) -> None:
    rgb = ARRAY[0, :, :, :, None].astype("u1") + np.arange(3, dtype="u1")
    write_czi(tmp_path / "a.czi", {(scene, 0, 0): rgb[scene, :, :, ::-1].copy() for scene in range(2)})
    with pytest.raises(InputError, match=r"a.czi holds several images: name one as .*a.czi:/0 .* of 0, 1"):
        open_volume(tmp_path / "a.czi")
    with pytest.raises(InputError, match=r"a.czi holds no image '5'"):
        open_volume(f"{tmp_path}/a.czi:/5")
    for scene in range(2):
        volume = open_volume(f"{tmp_path}/a.czi:/{scene}")
        holds(volume, rgb[scene].transpose(2, 0, 1)[:, None])
        assert volume.voxel_size is None


def write_lif(path: Path, images: dict[str, np.ndarray], times: int = 1) -> None:
    """Each (c, z, y, x), stored slice by slice with the channels of a slice one after the other."""
    elements, blocks = "", b""
    for number, (name, image) in enumerate(images.items()):
        c, z, y, x = image.shape
        size = image.itemsize
        channel = '<ChannelDescription DataType="0" ChannelTag="0" Resolution="{}" NameOfMeasuredQuantity="" Min="0" '
        channel += 'Max="1" Unit="" LUTName="Gray" IsLUTInverted="0" BytesInc="{}" BitInc="0"/>'
        channels = "".join(channel.format(8 * size, i * y * x * size) for i in range(c))
        steps = {1: (x, size, 0.1e-6), 2: (y, x * size, 0.2e-6), 3: (z, c * y * x * size, 0.5e-6)}
        if times > 1:
            steps[4] = (times, image.nbytes, 1.0)
        dimensions = "".join(
            f'<DimensionDescription DimID="{n}" NumberOfElements="{count}" Origin="0" Length="{(count - 1) * step}" '
            f'Unit="m" BitInc="0" BytesInc="{inc}"/>'
            for n, (count, inc, step) in steps.items()
        )
        data = image.transpose(1, 0, 2, 3).tobytes() * times
        elements += (
            f'<Element Name="{name}" Visibility="1" CopyOption="1" UniqueID="u{number}"><Data><Image>'
            f"<ImageDescription><Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions></ImageDescription>"
            f'</Image></Data><Memory Size="{len(data)}" MemoryBlockID="MemBlock_{number}"/><Children/></Element>'
        )
        label = f"MemBlock_{number}".encode("utf-16-le")
        block = struct.pack("<BQBI", 0x2A, len(data), 0x2A, len(label) // 2) + label
        blocks += struct.pack("<II", 0x70, len(block)) + block + data
    text = (
        '<LMSDataContainerHeader Version="2"><Element Name="test" Visibility="1" CopyOption="1" UniqueID="x"><Data/>'
        f'<Memory Size="0" MemoryBlockID="MemBlock_none"/><Children>{elements}</Children></Element>'
        "</LMSDataContainerHeader>"
    ).encode("utf-16-le")
    header = struct.pack("<BI", 0x2A, len(text) // 2) + text
    path.write_bytes(struct.pack("<II", 0x70, len(header)) + header + blocks)


def test_lif(tmp_path: Path) -> None:
    pytest.importorskip("liffile")
    write_lif(tmp_path / "one.lif", {"cells": ARRAY})
    volume = open_volume(tmp_path / "one.lif")
    holds(volume, ARRAY)
    assert volume.voxel_size == pytest.approx((0.5, 0.2, 0.1))
    write_lif(tmp_path / "two.lif", {"cells": ARRAY, "Series 2": ARRAY[:1, :1].astype("u1")})
    holds(open_volume(f"{tmp_path}/two.lif:/Series 2"), ARRAY[:1, :1].astype("u1"))
    holds(open_volume(f"{tmp_path}/two.lif:/0"), ARRAY)
    with pytest.raises(InputError, match=r"two.lif holds several images: .* of cells, Series 2"):
        open_volume(tmp_path / "two.lif")
    write_lif(tmp_path / "times.lif", {"cells": ARRAY}, times=2)
    with pytest.raises(InputError, match="2 time points"):
        open_volume(tmp_path / "times.lif")


class FakeNd2:
    """What is used of nd2.ND2File, for a file of the loops in ``sizes``: a frame is (C, Y, X) or (Y, X, S)."""

    sizes: dict[str, int]
    array: np.ndarray

    def __init__(self, path: str) -> None:
        if Path(path).read_bytes() != b"nd2":
            raise OSError("not a valid ND2 file")
        self.dtype = self.array.dtype
        channels = [SimpleNamespace(channel=SimpleNamespace(name=name)) for name in ("DAPI", "GFP")]
        self.metadata = SimpleNamespace(channels=channels)

    def voxel_size(self) -> SimpleNamespace:
        return SimpleNamespace(x=0.1, y=0.2, z=0.5)

    def read_frame(self, frame: int) -> np.ndarray:
        loops = [count for axis, count in self.sizes.items() if axis in "TPZ"]
        return self.array[np.unravel_index(frame, loops)] if loops else self.array

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("ZCYX", ARRAY),
        ("CYX", ARRAY[:, :1]),
        ("ZYX", ARRAY[:1]),
        ("YX", ARRAY[:1, :1]),
        ("YXS", np.stack([ARRAY[0, :1]] * 3)),
        ("PZCYX", ARRAY + np.uint16(1)),
    ],
)
def test_nd2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: str, expected: np.ndarray) -> None:
    named = dict(zip("CZYX", range(4), strict=True))
    if axes == "YXS":
        array = expected[:, 0].transpose(1, 2, 0)
    elif axes == "PZCYX":
        array = np.stack([ARRAY, expected]).transpose(0, 2, 1, 3, 4)
    else:
        absent = tuple(named[axis] for axis in "CZ" if axis not in axes)
        array = expected.squeeze(absent)
        array = array.swapaxes(0, 1) if axes == "ZCYX" else array
    fake = type("ND2File", (FakeNd2,), {"sizes": dict(zip(axes, array.shape, strict=True)), "array": array})
    monkeypatch.setitem(sys.modules, "nd2", SimpleNamespace(ND2File=fake))
    (tmp_path / "a.nd2").write_bytes(b"nd2")
    if "P" in axes:
        with pytest.raises(InputError, match=r"a.nd2 holds several images: .* of 0, 1"):
            open_volume(tmp_path / "a.nd2")
    volume = open_volume(f"{tmp_path}/a.nd2:/1" if "P" in axes else tmp_path / "a.nd2")
    holds(volume, expected)
    assert volume.voxel_size == (0.5, 0.2, 0.1)
    if "C" in axes:
        holds(volume.pick(["GFP"]), expected[1:])
    fake.sizes = {"T": 2, **fake.sizes}
    with pytest.raises(InputError, match=r"a.nd2 has 2 time points"):
        open_volume(tmp_path / "a.nd2")


def write_ndpi(path: Path, image: np.ndarray, pixels_per_cm: int) -> None:
    """One JPEG with a restart marker after every few blocks, their places in McuStarts (65426), and the directory with
    64-bit offsets that Hamamatsu's scanners write into a classic TIFF."""
    height, width, _ = image.shape
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0, restart_marker_blocks=4)
    jpeg = buffer.getvalue()
    scan = jpeg.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    marks = [i + 2 for i in range(first, len(jpeg) - 1) if jpeg[i] == 0xFF and 0xD0 <= jpeg[i + 1] <= 0xD7]
    starts = [first, *marks]
    body = bytearray(struct.pack("<2sHQ", b"II", 42, 0))
    places = {}
    extra = {
        "bits": struct.pack("<3H", 8, 8, 8),
        "resolution": struct.pack("<2I", pixels_per_cm, 1),
        "starts": struct.pack(f"<{len(starts)}I", *starts),
        "make": b"Hamamatsu\0",
        "jpeg": jpeg,
    }
    for name, data in extra.items():
        places[name] = len(body)
        body += data + bytes(len(data) % 2)
    long, short, ratio = 4, 3, 5
    entries = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, 3, places["bits"]),
        (259, short, 1, 7),
        (262, short, 1, 6),
        (271, 2, len(extra["make"]), places["make"]),
        (273, long, 1, places["jpeg"]),
        (277, short, 1, 3),
        (278, long, 1, height),
        (279, long, 1, len(jpeg)),
        (282, ratio, 1, places["resolution"]),
        (283, ratio, 1, places["resolution"]),
        (296, short, 1, 3),
        (65420, long, 1, 1),
        (65426, long, len(starts), places["starts"]),
    ]
    struct.pack_into("<Q", body, 4, len(body))
    body += struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    body += struct.pack("<Q", 0) + bytes(4 * len(entries))  # no other directory; high halves of the offsets
    path.write_bytes(body)


def test_ndpi(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :192]
    image = np.stack((y * 3, x, (x + y) // 2), -1).astype("u1")
    write_ndpi(tmp_path / "slide.ndpi", image, 20_000)
    volume = open_volume(tmp_path / "slide.ndpi")
    assert (volume.shape, volume.channels, volume.dtype) == ((1, 64, 192), 3, np.uint8)
    assert volume.voxel_size == pytest.approx((0.5, 0.5, 0.5))
    assert volume.chunks == (1, 8, 32)  # four blocks of 8 x 8: read without the rest of the slide
    found = volume[:, 11:50, 30:170][:, 0].transpose(1, 2, 0)
    assert np.abs(found.astype(int) - image[11:50, 30:170]).max() <= 12
    whole = pickle.loads(pickle.dumps(volume))[:][:, 0].transpose(1, 2, 0)
    assert np.array_equal(whole[11:50, 30:170], found)


@pytest.mark.parametrize(
    ("suffix", "library"), [(".czi", "pylibCZIrw"), (".lif", "liffile"), (".nd2", "nd2")]
)
def test_what_is_missing_or_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, library: str
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"nothing of the kind" * 9)
    pytest.importorskip(library)
    with pytest.raises(
        InputError, match=rf"a{suffix} cannot be opened as {suffix[1:].upper()}: .*docs/volumes.md"
    ):
        open_volume(tmp_path / f"a{suffix}")
    for name in itertools.chain([library], [name for name in sys.modules if name.startswith(f"{library}.")]):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"a{suffix} needs {library}: pip install 'fastseg\[formats\]'"):
        open_volume(tmp_path / f"a{suffix}")
