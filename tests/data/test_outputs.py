# SPDX-License-Identifier: BSD-3-Clause
"""Outputs: what other libraries read of them, what is refused, and that they are whole or absent."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from fastseg.data.outputs import ArraySpec, Block, open_output
from fastseg.errors import InputError

SHAPE = (20, 24, 28)
SPEC = {"raw": ArraySpec(SHAPE, "u2", (8, 8, 8))}
BLOCKS: list[Block] = [((0, 0, 0), (8, 24, 28)), ((8, 0, 0), (16, 24, 28)), ((16, 0, 0), SHAPE)]
ARRAY = np.random.default_rng(0).integers(0, 1000, SHAPE).astype("u2")
KINDS = ["h5", "zarr"]


def within(block: Block) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(*block, strict=True))


def write(path: Path, **options: object) -> None:
    with open_output(path, SPEC, blocks=BLOCKS, **options) as output:
        for block in output.pending():
            output.write(*block, {"raw": ARRAY[within(block)]})


def stored(path: Path, name: str) -> np.ndarray:
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file[name][:]
    return zarr.open_array(path / name / "0", mode="r")[:]


def begin(path: Path, finished: int = 1, **options: object) -> None:
    """Leave a partial output of some finished blocks."""

    def write_some() -> None:
        with open_output(path, SPEC, blocks=BLOCKS, resume=True, **options) as output:
            for block in BLOCKS[:finished]:
                output.write(*block, {"raw": ARRAY[within(block)]})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_some()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ArraySpec, list[Block]]:
    shape = draw(st.tuples(*[st.integers(1, 20)] * 3))
    chunks = draw(st.tuples(*[st.integers(1, 9)] * 3))
    shards = draw(st.none() | st.tuples(*[st.integers(1, 3)] * 3))
    channels = draw(st.sampled_from([(), (1,), (3,)]))
    unit = shards and tuple(s * c for s, c in zip(shards, chunks, strict=True))
    spec = ArraySpec(
        (*channels, *shape),
        draw(st.sampled_from(["?", "u1", "i2", ">u2", "u4", "i8", "f2", "f4", ">f8"])),
        (*(1 for _ in channels), *chunks),
        unit and (*(channels), *unit),
    )
    steps = [draw(st.integers(1, 2)) * u for u in unit or chunks]
    corners = itertools.product(*(range(0, n, s) for n, s in zip(shape, steps, strict=True)))
    blocks = [(c, tuple(min(a + s, n) for a, s, n in zip(c, steps, shape, strict=True))) for c in corners]
    return spec, draw(st.permutations(blocks)) if len(blocks) < 50 else blocks


@given(layout=layouts(), kind=st.sampled_from(KINDS), holes=st.booleans())
def test_other_libraries_read_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, layout: tuple[ArraySpec, list[Block]], kind: str, holes: bool
) -> None:
    spec, blocks = layout
    folder = tmp_path_factory.mktemp("layouts")
    array = np.random.default_rng(0).integers(0, 2 if holes else 100, spec.shape).astype(spec.dtype)
    with open_output(folder / f"v.{kind}", {"group/raw": spec}, blocks=blocks) as output:
        for number, block in enumerate(blocks):
            box = (..., *within(block))
            if holes and number % 2:
                array[box] = 0
            output.write(*block, {} if holes and number % 2 else {"group/raw": array[box]})
    found = stored(folder / f"v.{kind}", "group/raw")
    assert found.dtype == np.dtype(spec.dtype).newbyteorder("=")
    assert np.array_equal(found, array)
    assert [p.name for p in folder.iterdir()] == [f"v.{kind}"]


def test_voxel_size_place_and_attributes(tmp_path: Path) -> None:
    spec = ArraySpec(
        (2, *SHAPE),
        "f2",
        (1, 8, 8, 8),
        voxel_size=(2, 0.5, 0.5),
        attributes={"origin": (1, 2, 3), "source": "s"},
    )
    for kind in KINDS:
        with open_output(tmp_path / f"v.{kind}", {"raw": spec}) as output:
            output.write((0, 0, 0), SHAPE, {"raw": np.ones(spec.shape, "f2")})
    with h5py.File(tmp_path / "v.h5") as file:
        attributes = dict(file["raw"].attrs)
    assert tuple(attributes["element_size_um"]) == (2.0, 0.5, 0.5)
    assert (tuple(attributes["origin"]), attributes["source"]) == ((1, 2, 3), "s")
    group = zarr.open_group(tmp_path / "v.zarr/raw", mode="r")
    assert dict(group["0"].attrs) == {"element_size_um": [2, 0.5, 0.5], "origin": [1, 2, 3], "source": "s"}
    assert group["0"].metadata.dimension_names == ("c", "z", "y", "x")
    image = group.attrs["ome"]["multiscales"][0]
    assert [(a["name"], a["type"], a.get("unit")) for a in image["axes"]] == [
        ("c", "channel", None),
        *((axis, "space", "micrometer") for axis in "zyx"),
    ]
    assert image["datasets"] == [
        {
            "path": "0",
            "coordinateTransformations": [
                {"type": "scale", "scale": [1, 2, 0.5, 0.5]},
                {"type": "translation", "translation": [0, 2, 1, 1.5]},
            ],
        }
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_output_appears_only_whole(tmp_path: Path, kind: str, error: type[BaseException]) -> None:
    path = tmp_path / f"v.{kind}"
    write(path)

    def write_half() -> None:
        with open_output(path, {"raw": ArraySpec(SHAPE, "u1", (4, 4, 4))}, blocks=BLOCKS) as output:
            output.write(*BLOCKS[0], {"raw": np.ones((8, 24, 28), "u1")})
            raise error

    with pytest.raises(error):
        write_half()
    assert np.array_equal(stored(path, "raw"), ARRAY)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_forgotten_blocks_are_no_output(tmp_path: Path, kind: str) -> None:
    with (
        pytest.raises(InputError, match=rf"v\.{kind} is not whole: 2 of 3 blocks are not written"),
        open_output(tmp_path / f"v.{kind}", SPEC, blocks=BLOCKS) as output,
    ):
        output.write(*BLOCKS[1], {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("finished", [0, 1, 3])
def test_resumes_behind_the_finished_blocks(tmp_path: Path, kind: str, finished: int) -> None:
    path = tmp_path / f"v.{kind}"
    begin(path, finished)
    assert not path.exists()
    with open_output(path, SPEC, blocks=BLOCKS, resume=True) as output:
        assert output.pending() == BLOCKS[finished:]
        for block in output.pending():
            output.write(*block, {"raw": ARRAY[within(block)]})
    assert np.array_equal(stored(path, "raw"), ARRAY)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_another_plan_is_refused_or_begun_anew(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"v.{kind}"
    begin(path, settings={"checkpoint": "abc", "overlap": 0.5})
    for change, message in (
        ({"settings": {"checkpoint": "def", "overlap": 0.5}}, 'settings.checkpoint was "abc", is "def"'),
        ({"settings": {"checkpoint": "abc"}}, r"settings.overlap was 0.5, is absent"),
        ({"blocks": [((0, 0, 0), SHAPE)]}, "blocks.count was 3, is 1"),
        ({"arrays": {"raw": ArraySpec(SHAPE, "u1", (8, 8, 8))}}, 'arrays.raw.dtype was "uint16", is "uint8"'),
    ):
        options = {
            "arrays": SPEC,
            "blocks": BLOCKS,
            "settings": {"checkpoint": "abc", "overlap": 0.5},
        } | change
        with (
            pytest.raises(
                InputError, match=rf"v\.{kind}\.partial was begun with other settings \(.*{message}"
            ),
            open_output(path, resume=True, **options),
        ):
            pass
    write(path, settings={"checkpoint": "def"})
    assert np.array_equal(stored(path, "raw"), ARRAY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lines", [1, 2])
def test_a_torn_manifest_line_and_what_follows_count_for_nothing(
    tmp_path: Path, kind: str, lines: int
) -> None:
    path = tmp_path / f"v.{kind}"
    begin(path, finished=3)
    manifest = tmp_path / f"v.{kind}.partial/manifest.0.jsonl"
    kept = manifest.read_bytes().splitlines(keepends=True)
    torn = kept[3 - lines].replace(b"block", b"blosk") if lines == 2 else kept[2][:-1]
    manifest.write_bytes(b"".join((*kept[: 3 - lines], torn, *kept[4 - lines :])))
    with open_output(path, SPEC, blocks=BLOCKS, resume=True) as output:
        assert output.pending() == BLOCKS[3 - lines :]
        for block in output.pending():
            output.write(*block, {"raw": ARRAY[within(block)]})
    assert np.array_equal(stored(path, "raw"), ARRAY)


def test_chunks_that_the_disk_lost_are_written_again(tmp_path: Path) -> None:
    begin(tmp_path / "v.h5", finished=3)
    log = tmp_path / "v.h5.partial/chunks.0"
    log.write_bytes(log.read_bytes()[:-100])
    with open_output(tmp_path / "v.h5", SPEC, blocks=BLOCKS, resume=True) as output:
        assert output.pending() == BLOCKS[2:]
        output.write(*BLOCKS[2], {"raw": ARRAY[within(BLOCKS[2])]})
    assert np.array_equal(stored(tmp_path / "v.h5", "raw"), ARRAY)


def test_damaged_log_is_no_output(tmp_path: Path) -> None:
    begin(tmp_path / "v.h5", finished=3)
    log = tmp_path / "v.h5.partial/chunks.0"
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    with pytest.raises(InputError, match=r"chunks\.0 is damaged at byte \d+"):
        write(tmp_path / "v.h5", resume=True)
    assert not (tmp_path / "v.h5").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_two_writers_of_one_output_are_refused(tmp_path: Path, kind: str) -> None:
    with open_output(tmp_path / f"v.{kind}", SPEC, blocks=BLOCKS) as output:
        for resume in (True, False):
            with pytest.raises(InputError, match=r"partial is being written by another process"):
                write(tmp_path / f"v.{kind}", resume=resume)
        for block in output.pending():
            output.write(*block, {"raw": ARRAY[within(block)]})
    assert np.array_equal(stored(tmp_path / f"v.{kind}", "raw"), ARRAY)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_one_rank_ends_all(tmp_path: Path, kind: str) -> None:
    barrier = threading.Barrier(2, timeout=20)
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            with open_output(
                tmp_path / f"v.{kind}", SPEC, blocks=BLOCKS, rank=rank, world=2, barrier=barrier.wait
            ) as output:
                for block in output.pending():
                    if rank:
                        raise InputError("nan")
                    output.write(*block, {"raw": ARRAY[within(block)]})
        except InputError as error:
            errors[rank] = error

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert "is not whole: 2 of 3 blocks" in str(errors[0])
    assert str(errors[1]) == "nan"
    assert not list(tmp_path.iterdir())
