# SPDX-License-Identifier: BSD-3-Clause
"""Codes, sampling, the loader and augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseg.data.annotations import AnnotatedVolume, Annotation, index_labels
from fastseg.data.augment import Augmentation, augment
from fastseg.data.intensity import Intensity, measure_intensity
from fastseg.data.patches import PatchLoader, PatchSampler, Sampling
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError

SHAPE = (12, 20, 24)


def stored(folder: Path, name: str, array: np.ndarray) -> Volume:
    np.save(folder / f"{name}.npy", array)
    return open_volume(folder / f"{name}.npy")


@pytest.fixture
def scene(tmp_path: Path) -> AnnotatedVolume:
    """Slices 0, 4 and 8 annotated; ids 1 and 2; label 9 says nothing."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 9], SHAPE, p=[0.8, 0.1, 0.05, 0.05]).astype("u2")
    raw = rng.integers(0, 1000, SHAPE).astype("u2")
    return AnnotatedVolume(
        stored(tmp_path, "raw", raw),
        stored(tmp_path, "labels", labels),
        annotation=Annotation(0, (0, 4, 8)),
        classes=(1, 2),
        ignore_label=9,
    )


def test_target_and_codes_state_the_annotation(scene: AnnotatedVolume) -> None:
    assert scene.labels is not None
    labels = scene.labels[:][0]
    target, codes = scene.read_target((0, 0, 0), SHAPE)
    assert np.array_equal(target, np.stack([labels == 1, labels == 2]))
    expected = np.zeros(SHAPE, "u1")
    expected[[0, 4, 8]] = 1
    expected[labels == 9] = 0
    assert np.array_equal(codes[0], expected)
    part, part_codes = scene.read_target((3, 2, 1), (9, 8, 7))
    assert np.array_equal(part, target[:, 3:9, 2:8, 1:7])
    assert np.array_equal(part_codes, codes[:, 3:9, 2:8, 1:7])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_any_axis_count_in_the_file(tmp_path: Path, axis: int) -> None:
    volume = stored(tmp_path, "v", np.ones(SHAPE, "u1")).crop((2, 3, 4), SHAPE)
    scene = AnnotatedVolume(volume, volume, annotation=Annotation(axis, (5, 7)))
    codes = scene.read_target((0, 0, 0), volume.shape)[1][0]
    found = np.flatnonzero(codes.any(axis=tuple(a for a in range(3) if a != axis)))
    assert [int(f) + (2, 3, 4)[axis] for f in found] == [5, 7]
    assert {tuple(p) for p in index_labels(scene, 0).labelled} == {tuple(p) for p in np.argwhere(codes)}


def test_index_counts_and_places(scene: AnnotatedVolume) -> None:
    target, codes = scene.read_target((0, 0, 0), SHAPE)
    index = index_labels(scene, seed=0)
    assert index.labelled_voxels == np.count_nonzero(codes == 1)
    assert index.foreground_voxels == np.count_nonzero(codes[0] & target.any(axis=0))
    assert {tuple(p) for p in index.labelled} == {tuple(p) for p in np.argwhere(codes[0])}
    assert all(target[:, z, y, x].any() and codes[0, z, y, x] for z, y, x in index.foreground)


def test_mask_codes_beyond_2_are_placed(tmp_path: Path) -> None:
    mask = np.ones(SHAPE, "u1")
    mask[7, 8, 9] = 3
    raw = stored(tmp_path, "raw", np.zeros(SHAPE, "u1"))
    scene = AnnotatedVolume(raw, raw, stored(tmp_path, "mask", mask))
    with pytest.raises(InputError, match=r"mask .*must hold the codes .* got 3 at \(z, y, x\) = \(7, 8, 9\)"):
        index_labels(scene, seed=0)


def test_shapes_must_agree(tmp_path: Path) -> None:
    raw, labels = (
        stored(tmp_path, "raw", np.zeros(SHAPE)),
        stored(tmp_path, "labels", np.zeros((12, 20, 23), "u1")),
    )
    with pytest.raises(InputError, match=r"labels .*labels\.npy must have the shape of raw .*\(12, 20, 24\)"):
        AnnotatedVolume(raw, labels)


def loader(
    scene: AnnotatedVolume, threads: int = 1, seed: int = 0, sampling: Sampling | None = None
) -> PatchLoader:
    sampler = PatchSampler([scene], [index_labels(scene, 0)], (4, 8, 8), sampling or Sampling(), seed)
    return PatchLoader([scene], [Intensity((1.0,), (2.0,))], sampler, batch=3, threads=threads)


def test_stream_depends_on_the_step_alone(scene: AnnotatedVolume) -> None:
    whole = list(loader(scene, threads=1).batches(0, 12))
    later = list(loader(scene, threads=4).batches(5, 12))
    other = list(loader(scene, seed=1).batches(0, 12))
    for one, two in zip(whole[5:], later, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))
    assert not all(torch.equal(a.raw, b.raw) for a, b in zip(whole, other, strict=True))
    assert whole[0].raw.dtype == torch.uint16
    assert (whole[0].target.shape, whole[0].codes.shape) == ((3, 2, 4, 8, 8), (3, 1, 4, 8, 8))


def test_ways_of_drawing_hit_what_they_name(scene: AnnotatedVolume) -> None:
    for sampling, hit in (
        (Sampling(0, 1, 0), lambda b: b.codes.bool().flatten(1).any(1)),
        (Sampling(0, 0, 1), lambda b: (b.codes.bool() & b.target.bool()).flatten(1).any(1)),
    ):
        assert all(hit(batch).all() for batch in loader(scene, sampling=sampling).batches(0, 40))
    starts = np.array([loader(scene, sampling=Sampling(1, 0, 0)).sampler.draw(s, 0)[1] for s in range(600)])
    assert (starts.min(axis=0) == 0).all()
    assert (starts.max(axis=0) == np.subtract(SHAPE, (4, 8, 8))).all()


def test_reader_errors_reach_the_caller(tmp_path: Path) -> None:
    raw = np.zeros(SHAPE, "f4")
    raw[:, :, 0:24:4] = np.nan
    labels = stored(tmp_path, "labels", np.ones(SHAPE, "u1"))
    scene = AnnotatedVolume(stored(tmp_path, "raw", raw), labels)
    with pytest.raises(InputError, match=r"raw\.npy holds nan at"):
        list(loader(scene, threads=2).batches(0, 5))


def test_unusable_samplers(scene: AnnotatedVolume, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"patch \(4, 32, 8\) \(z, y, x\) is larger than the volume .*raw\.npy"
    ):
        PatchSampler([scene], [index_labels(scene, 0)], (4, 32, 8), Sampling(), 0)
    nothing = AnnotatedVolume(scene.raw, scene.labels, stored(tmp_path, "mask", np.zeros(SHAPE, "u1")))
    with pytest.raises(InputError, match=r"no annotated voxel in .*raw\.npy"):
        PatchSampler([nothing], [index_labels(nothing, 0)], (4, 8, 8), Sampling(), 0)


@settings(max_examples=30, deadline=None)
@given(symmetry=st.sampled_from(["none", "plane", "volume"]), seed=st.integers(0, 999), cube=st.booleans())
def test_symmetries_move_image_target_and_codes_alike(symmetry: str, seed: int, cube: bool) -> None:
    shape = (6, 6, 6) if cube else (3, 5, 6)
    values = torch.arange(2 * np.prod(shape)).reshape(2, 1, *shape)
    settings_ = Augmentation(symmetry, contrast=0, brightness=0)
    image, target, codes = augment(values.float(), values, values, settings_, np.random.default_rng(seed))
    assert torch.equal(image.long(), target)
    assert torch.equal(target, codes)
    assert torch.equal(target.flatten(1).sort().values, values.flatten(1))
    assert image.shape == values.shape


def test_plane_symmetries_are_all_reached_and_keep_z() -> None:
    square = torch.arange(4).reshape(1, 1, 1, 2, 2)
    rng = np.random.default_rng(0)
    drawn = {
        tuple(augment(square.float(), square, square, Augmentation(), rng)[1].flatten().tolist())
        for _ in range(200)
    }
    assert len(drawn) == 8


def test_intensity_jitter_leaves_target_and_codes() -> None:
    image, labels = torch.randn(4, 1, 2, 8, 8), torch.ones(4, 1, 2, 8, 8, dtype=torch.uint8)
    settings_ = Augmentation("none", contrast=0.2, brightness=0.2, noise=0.1)
    out, target, codes = augment(image, labels, labels, settings_, np.random.default_rng(0))
    again, _, _ = augment(image, labels, labels, settings_, np.random.default_rng(0))
    assert torch.equal(out, again)
    assert not torch.equal(out, image)
    assert torch.equal(target, labels)
    assert torch.equal(codes, labels)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
def test_zscore_gives_mean_0_and_deviation_1(tmp_path: Path, dtype: str) -> None:
    array = (
        np.random.default_rng(0).normal(100, 8, (70, 90, 100)) + (10_000 if dtype == "f4" else 0)
    ).astype(dtype)
    intensity = measure_intensity(stored(tmp_path, "v", array), "zscore")
    scaled = (array.astype("f8") - intensity.shift[0]) * intensity.scale[0]
    assert abs(scaled.mean()) < 1e-6
    assert abs(scaled.std() - 1) < 1e-6


def test_zscore_of_a_large_volume_samples_it(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "v.npy", mode="w+", dtype="u1", shape=(600, 256, 256))
    array[:] = np.linspace(0, 255, 600, dtype="u1")[:, None, None]
    intensity = measure_intensity(open_volume(tmp_path / "v.npy"), "zscore")
    assert abs(intensity.shift[0] - 127.5) < 4
    assert abs(1 / intensity.scale[0] - 255 / 12**0.5) < 4


def test_constant_volume_has_finite_scale(tmp_path: Path) -> None:
    assert measure_intensity(stored(tmp_path, "v", np.full(SHAPE, 7, "u1")), "zscore") == Intensity(
        (7.0,), (1.0,)
    )
    assert measure_intensity(stored(tmp_path, "v", np.full(SHAPE, 7, "u1")), "range") == Intensity(
        (0.0,), (1 / 255,)
    )
