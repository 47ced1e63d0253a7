# SPDX-License-Identifier: BSD-3-Clause
"""Loaders: the same batches whatever the threads, processes and place of the data; buffers; memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.buffers import Batch
from fastseg.data.intensity import Intensity
from fastseg.data.loader import PatchLoader, mirrored
from fastseg.data.patches import PatchSampler, Sampling
from fastseg.data.resident import ResidentLoader, choose_loader, resident_bytes
from fastseg.errors import InputError
from tests.data.scenes import PATCH, SHAPE, make_loader, make_sampler, make_scene, stored

TENSORS = ("raw", "target", "codes", "shift", "scale")


def same(one: Batch, two: Batch, names: tuple[str, ...] = TENSORS) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


@pytest.fixture(params=[False, True], ids=["npy", "hdf5"])
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> AnnotatedVolume:
    return make_scene(tmp_path, chunked=request.param)


@pytest.mark.parametrize("margin", [(0, 0, 0), (2, 3, 9)])
def test_batches_hold_what_the_files_hold(scene: AnnotatedVolume, margin: tuple[int, int, int]) -> None:
    sampler = make_sampler(scene, patches_per_block=3)
    raw, (target, codes) = scene.raw[:], scene.read_target((0, 0, 0), SHAPE)
    pad = [(0, 0), *((m, m) for m in margin)]
    raw = np.pad(raw, pad, mode="reflect")
    target, codes = np.pad(target, pad), np.pad(codes, pad)
    for step, batch in enumerate(make_loader(scene, sampler, threads=2, margin=margin).batches(0, 30)):
        assert batch.raw.dtype == torch.uint16
        assert (batch.step, batch.places) == (step, range(3))
        for place in range(3):
            start = sampler.draw(step, place)[1]
            ranges = zip(start, PATCH, margin, strict=True)
            box = (slice(None), *(slice(a, a + p + 2 * m) for a, p, m in ranges))
            inside = all(
                m <= a and a + p + m <= n for a, p, m, n in zip(start, PATCH, margin, SHAPE, strict=True)
            )
            if inside or not any(margin):
                assert np.array_equal(batch.raw[place], raw[box])
            assert np.array_equal(batch.target[place], target[box])
            assert np.array_equal(batch.codes[place], codes[box])


def test_beyond_a_volume_raw_is_mirrored_and_codes_are_0(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    index = [index_labels(scene, 0)]
    sampler = PatchSampler([scene], index, SHAPE, Sampling(), 0)
    batch = make_loader(scene, sampler, margin=(3, 4, 5)).load(0)
    raw, (target, codes) = scene.raw[:], scene.read_target((0, 0, 0), SHAPE)
    pad = [(0, 0), (3, 3), (4, 4), (5, 5)]
    assert np.array_equal(batch.raw[0], np.pad(raw, pad, mode="reflect"))
    assert np.array_equal(batch.target[0], np.pad(target, pad))
    assert np.array_equal(batch.codes[0], np.pad(codes, pad))


@pytest.mark.parametrize("per_block", [1, 3])
def test_a_volume_smaller_than_a_patch_is_mirrored_up_to_it(scene: AnnotatedVolume, per_block: int) -> None:
    patch = (4, 32, 70)  # of 12, 20, 24
    sampler = PatchSampler(
        [scene], [index_labels(scene, 0)], patch, Sampling(), 0, patches_per_block=per_block
    )
    options = {"margin": (0, 0, 2)}
    streamed = make_loader(scene, sampler, **options)
    resident = ResidentLoader([scene], [Intensity((1.0,), (2.0,))], sampler, torch.device("cpu"), **options)
    pad = [(0, 0), (0, 0), (0, 12), (2, 48)]
    raw = np.pad(scene.raw[:], pad, mode="reflect")
    target, codes = (np.pad(array, pad) for array in scene.read_target((0, 0, 0), SHAPE))
    starts = set()
    for step in range(12):
        _, (z, y, x) = sampler.draw(step, 0)
        assert (y, x) == (0, 0)
        starts.add(z)
        batch = streamed.load(step)
        for found, expected in ((batch.raw, raw), (batch.target, target), (batch.codes, codes)):
            assert np.array_equal(found[0], expected[:, z : z + 4])
        assert same(batch, resident.load(step))
    assert len(starts) > 3


@given(before=st.integers(0, 30), inside=st.integers(1, 12), after=st.integers(0, 30))
def test_mirrored_is_numpys_reflection(before: int, inside: int, after: int) -> None:
    expected = np.pad(np.arange(inside), (before, after), mode="reflect")
    assert np.array_equal(mirrored(before, inside, before + inside + after), expected)


@given(
    threads=st.integers(1, 4),
    per_block=st.sampled_from([1, 4]),
    first=st.integers(0, 11),
    cache=st.sampled_from([1, 1 << 20]),
    resident=st.booleans(),
)
def test_stream_depends_on_the_step_alone(
    tmp_path_factory: pytest.TempPathFactory,
    threads: int,
    per_block: int,
    first: int,
    cache: int,
    resident: bool,
) -> None:
    scene = make_scene(tmp_path_factory.mktemp("scene"), chunked=True)
    margin = (1, 2, 0)
    whole = list(
        make_loader(scene, make_sampler(scene, patches_per_block=per_block), margin=margin).batches(0, 12)
    )
    sampler = make_sampler(scene, patches_per_block=per_block)
    if resident:
        cpu = torch.device("cpu")
        other = ResidentLoader([scene], [Intensity((1.0,), (2.0,))], sampler, cpu, margin=margin)
    else:
        other = make_loader(scene, sampler, threads, margin=margin, cache_bytes=cache)
    later = list(other.batches(first, 12))
    assert len(later) == 12 - first
    assert all(same(one, two) for one, two in zip(whole[first:], later, strict=True))
    assert not same(whole[0], whole[1])


@pytest.mark.parametrize("per_block", [1, 4])
def test_two_processes_see_the_batch_of_one(scene: AnnotatedVolume, per_block: int) -> None:
    def loader(places: range) -> PatchLoader:
        return make_loader(scene, make_sampler(scene, batch=4, patches_per_block=per_block), 2, places=places)

    streams = [loader(places).batches(3, 9) for places in (range(4), range(2), range(2, 4))]
    for whole, first, second in zip(*streams, strict=True):
        for name in TENSORS:
            assert torch.equal(getattr(whole, name), torch.cat([getattr(b, name) for b in (first, second)]))
        assert (first.places, second.places) == (range(2), range(2, 4))


def test_kept_batches_stay_what_they_are(scene: AnnotatedVolume) -> None:
    """A buffer comes back when its last tensor is gone, views of it included, and never before."""
    loader = make_loader(scene, make_sampler(scene), threads=2)
    kept = list(loader.batches(0, 9))
    again = make_loader(scene, make_sampler(scene))
    assert all(same(batch, again.load(step)) for step, batch in enumerate(kept))
    views = [batch.codes[0, :, 1:] for batch in kept]
    copies = [view.clone() for view in views]
    del kept
    for _ in loader.batches(20, 40):
        pass
    assert all(torch.equal(view, copy) for view, copy in zip(views, copies, strict=True))


def test_buffers_are_reused_and_bounded(scene: AnnotatedVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(scene, make_sampler(scene), threads=2, cache_bytes=1 << 16)
    made = []
    monkeypatch.setattr("fastseg.data.buffers.Buffer", lambda *_: made.append(1))
    addresses = {batch.raw.data_ptr() for batch in loader.batches(0, 50)}
    assert len(addresses) <= loader.threads + 2
    assert not made
    voxels = 3 * int(np.prod(PATCH))
    assert loader.memory_bytes == (2 + 2) * voxels * (2 + 2 + 1) + (1 << 16)
    assert len(loader.ring.free) == loader.threads + 2


def test_loader_that_is_left_early_reads_no_further(
    scene: AnnotatedVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def slow(*_: object) -> None:
        started.append(1)
        time.sleep(0.05)

    monkeypatch.setattr("fastseg.data.loader.read_mirrored", slow)
    batches = make_loader(scene, make_sampler(scene), threads=1).batches(0, 10)
    next(batches)
    batches.close()
    assert len(started) <= 4  # the first batch, and what was being read


def test_loader_that_is_left_early_can_be_used_again(scene: AnnotatedVolume) -> None:
    loader = make_loader(scene, make_sampler(scene), threads=2)
    batches = loader.batches(0, 10**9)
    first = next(batches)
    batches.close()
    assert same(first, make_loader(scene, make_sampler(scene)).load(0))
    del first
    assert same(loader.load(5), make_loader(scene, make_sampler(scene)).load(5))


def test_reader_errors_reach_the_caller(tmp_path: Path) -> None:
    raw = np.zeros(SHAPE, "f4")
    raw[:, :, 0:24:4] = np.nan
    labels = stored(tmp_path, "labels", np.ones(SHAPE, "u1"))
    scene = AnnotatedVolume(stored(tmp_path, "raw", raw), labels)
    with pytest.raises(InputError, match=r"raw\.npy holds nan at"):
        list(make_loader(scene, make_sampler(scene), threads=2).batches(0, 5))


def test_volumes_of_several_dtypes_meet_in_one_that_holds_them(tmp_path: Path) -> None:
    labels = stored(tmp_path, "labels", np.ones(SHAPE, "u1"))
    volumes = [
        AnnotatedVolume(stored(tmp_path, f"raw{d}", np.full(SHAPE, 200, d)), labels)
        for d in ("u1", "u2", "i4", "f4")
    ]
    intensities = [Intensity((float(i),), (1.0,)) for i in range(4)]

    def loaders(chosen: list[int]) -> list[PatchLoader | ResidentLoader]:
        scenes = [volumes[i] for i in chosen]
        indexes = [index_labels(scene, 0) for scene in scenes]
        sampler = PatchSampler(scenes, indexes, PATCH, Sampling(), 0, batch=8)
        return [
            choose_loader(
                scenes,
                [intensities[i] for i in chosen],
                sampler,
                torch.device("cpu"),
                resident=resident,
                most_bytes=0,
                cache_bytes=1,
                threads=1,
            )
            for resident in (False, True)
        ]

    streamed, resident = loaders([0, 1])
    assert isinstance(resident, ResidentLoader)
    one, two = streamed.load(0), resident.load(0)
    assert one.raw.dtype == torch.uint16
    assert same(one, two)
    assert set(one.shift.flatten().tolist()) == {0.0, 1.0}
    with pytest.raises(InputError, match=r"must have dtypes that fit in 4 bytes together, got .*rawi4\.npy"):
        loaders([2, 3])


def test_auto_keeps_what_fits(scene: AnnotatedVolume) -> None:
    voxels = int(np.prod(SHAPE))
    assert resident_bytes([scene]) == voxels * (2 + 2 + 1)
    for most, kind in ((5 * voxels, ResidentLoader), (5 * voxels - 1, PatchLoader)):
        loader = choose_loader(
            [scene],
            [Intensity((0.0,), (1.0,))],
            make_sampler(scene),
            torch.device("cpu"),
            resident="auto",
            most_bytes=most,
            cache_bytes=1 << 20,
            threads=1,
        )
        assert type(loader) is kind
