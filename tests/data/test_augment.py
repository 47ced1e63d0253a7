# SPDX-License-Identifier: BSD-3-Clause
"""Augmentation: exact where it can be, one resampling elsewhere, and the same for a seed, step and place."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastseg.data.augment import Augmentation, Probability, augment
from fastseg.data.augment_geometry import Displacement, Move, affine, move
from fastseg.data.buffers import Batch

CUBE = np.ones(3)
ALWAYS = Probability(**{field.name: 1.0 for field in fields(Probability)})
NONE = Augmentation(symmetry="none", contrast=0, brightness=0)
GEOMETRY = {"rotate": 180, "tilt": 20, "scale": 0.2, "elastic": 1.5, "elastic_grid": 8}
ALL = Augmentation(**GEOMETRY, gamma=0.3, noise=0.1, blur=1.0, missing=2)


def make_batch(raw: Tensor, step: int = 0, first: int = 0, voxel: np.ndarray = CUBE) -> Batch:
    """Labels say which voxel they are, codes are 1; no scaling."""
    count, channels = raw.shape[:2]
    ids = torch.arange(raw[0, 0].numel()).reshape(raw.shape[2:]).expand(count, 1, -1, -1, -1)
    return Batch(
        raw,
        ids.contiguous(),
        torch.ones(ids.shape, dtype=torch.uint8),
        torch.zeros(count, channels),
        torch.ones(count, channels),
        np.broadcast_to(voxel, (count, 3)),
        step,
        range(first, first + count),
    )


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@given(symmetry=st.sampled_from(["none", "plane", "volume"]), seed=st.integers(0, 999), cube=st.booleans())
def test_symmetries_move_image_target_and_codes_alike(symmetry: str, seed: int, cube: bool) -> None:
    shape = (6, 6, 6) if cube else (3, 5, 6)
    raw = torch.arange(2 * np.prod(shape)).reshape(2, 1, *shape)
    batch = replace(make_batch(raw), target=raw, codes=raw)
    image, target, codes = augment(batch, replace(NONE, symmetry=symmetry), shape, seed)
    assert torch.equal(image.long(), target)
    assert torch.equal(target, codes)
    assert torch.equal(target.flatten(1).sort().values, raw.flatten(1))
    assert image.shape == raw.shape


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.float32]
)
def test_raw_of_any_dtype(dtype: torch.dtype) -> None:
    raw = noise(4, 2, 4, 8, 8)
    for settings_ in (
        replace(NONE, symmetry="volume"),
        replace(ALL, probability=replace(ALWAYS, rotate=0.5)),
    ):
        expected = augment(make_batch((raw % 128).float()), settings_, (4, 8, 8), 0)
        found = augment(make_batch((raw % 128).to(dtype)), settings_, (4, 8, 8), 0)
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("symmetry", "shape", "count"),
    [("plane", (1, 2, 2), 8), ("volume", (2, 2, 2), 48), ("plane", (2, 2, 3), 8)],
)
def test_symmetries_are_all_reached(symmetry: str, shape: tuple[int, int, int], count: int) -> None:
    raw = torch.arange(np.prod(shape)).reshape(1, 1, *shape)
    settings_ = replace(NONE, symmetry=symmetry)
    drawn = {
        tuple(augment(make_batch(raw, step), settings_, shape, 0)[1].flatten().tolist())
        for step in range(600)
    }
    assert len(drawn) == count


@pytest.mark.parametrize("patch", [(4, 10, 10), (1, 12, 12)])
def test_every_sample_depends_on_seed_step_and_place_alone(patch: tuple[int, int, int]) -> None:
    margin = ALL.margin(patch, [CUBE])
    extent = [p + 2 * m for p, m in zip(patch, margin, strict=True)]
    raw = noise(4, 2, *extent)
    whole = augment(make_batch(raw, 7), ALL, patch, 3)
    for place in range(4):
        alone = augment(make_batch(raw[place : place + 1], 7, place), ALL, patch, 3)
        for one, two in zip(whole, alone, strict=True):
            assert torch.allclose(one[place], two[0], atol=1e-4)
            assert torch.equal(whole[1][place], alone[1][0])
    assert not torch.equal(whole[1], augment(make_batch(raw, 8), ALL, patch, 3)[1])
    assert not torch.equal(whole[1], augment(make_batch(raw, 7), ALL, patch, 4)[1])
    again = augment(make_batch(raw, 7), ALL, patch, 3)
    assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))
    assert whole[0].dtype == torch.float32
    assert whole[0].shape == (4, 2, *patch)
    assert whole[1].shape == whole[2].shape == (4, 1, *patch)


def test_one_switch_turns_all_off() -> None:
    raw = noise(2, 1, 4, 6, 6)
    batch = replace(make_batch(raw), shift=torch.full((2, 1), 3.0), scale=torch.full((2, 1), 0.5))
    off = replace(ALL, enabled=False)
    assert off.margin((4, 6, 6), [CUBE]) == (0, 0, 0)
    image, target, codes = augment(batch, off, (4, 6, 6), 0)
    assert torch.equal(image, (raw.float() - 3) * 0.5)
    assert torch.equal(target, batch.target)
    assert torch.equal(codes, batch.codes)


def test_what_one_kind_draws_does_not_depend_on_the_others() -> None:
    raw = noise(6, 1, 4, 8, 8)
    alone = augment(make_batch(raw), replace(NONE, gamma=0.5), (4, 8, 8), 0)[0]
    beside = augment(make_batch(raw), replace(NONE, gamma=0.5, scale=1e-7, symmetry="none"), (4, 8, 8), 0)[0]
    assert torch.allclose(alone, beside, atol=1e-2)
    plane = augment(make_batch(raw), replace(NONE, symmetry="plane"), (4, 8, 8), 0)[1]
    also = augment(
        make_batch(raw), replace(NONE, symmetry="plane", noise=1, contrast=1, missing=1), (4, 8, 8), 0
    )[1]
    assert torch.equal(plane, also)


def test_probabilities_are_shares_of_samples() -> None:
    raw = noise(1, 1, 4, 8, 8).expand(300, -1, -1, -1, -1)
    plain = raw.float()
    for name, on in {
        "rotate": {"rotate": 30.0}, "scale": {"scale": 0.3}, "elastic": {"elastic": 2.0, "elastic_grid": 4},
        "gamma": {"gamma": 0.5}, "contrast": {"contrast": 0.5}, "brightness": {"brightness": 0.5},
        "noise": {"noise": 0.5}, "blur": {"blur": 50.0}, "missing": {"missing": 2},
    }.items():  # fmt: skip
        for share in (0.0, 0.3, 1.0):
            chance = replace(ALWAYS, **{name: share})
            image = augment(make_batch(raw), replace(NONE, probability=chance, **on), (4, 8, 8), 0)[0]
            changed = (image != plain).flatten(1).any(1).float().mean().item()
            assert abs(changed - share) < (0.1 if share == 0.3 else 0.02), (name, share, changed)


def right_angle(
    matrix_of: Move, symmetry_of: Move, extent: tuple[int, ...], patch: tuple[int, int, int]
) -> None:
    raw = noise(1, 2, *extent)
    batch = make_batch(raw)
    exact = move(batch.raw, batch.target, batch.codes, [symmetry_of], patch)
    sampled = move(batch.raw, batch.target, batch.codes, [matrix_of], patch)
    assert torch.allclose(sampled[0], exact[0].float(), atol=1e-2)
    assert torch.equal(sampled[1], exact[1])
    assert torch.equal(sampled[2], exact[2])


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True), (False, True, False)])
def test_symmetries_within_the_resampling_are_the_exact_ones(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    plain = Move(order, flips)
    right_angle(Move(order, flips, np.eye(3)), plain, (8, 10, 12), (6, 6, 6))
    zero = Displacement(np.zeros((3, 2, 3, 2), np.float32))
    right_angle(Move(order, flips, np.eye(3), zero), plain, (6, 6, 6), (6, 6, 6))
    # A displacement is one of the specimen: displaced, then turned, is the same as both at once.
    field = Displacement(np.random.default_rng(0).normal(0, 1.5, (3, 3, 4, 2)).astype("f4"))
    batch = make_batch(noise(1, 1, 10, 10, 10))
    tensors = (batch.raw, batch.target, batch.codes)
    at_once = move(*tensors, [Move(order, flips, np.eye(3), field)], (6, 6, 6))
    displaced = move(*tensors, [Move((0, 1, 2), (False,) * 3, np.eye(3), field)], (6, 6, 6))
    assert torch.equal(at_once[1], move(*displaced, [plain], (6, 6, 6))[1])
    assert not torch.equal(at_once[1], move(*tensors, [plain], (6, 6, 6))[1])


@pytest.mark.parametrize(
    ("angles", "order", "flips"),
    [
        ((90, 0, 0), (0, 2, 1), (False, True, False)),
        ((180, 0, 0), (0, 1, 2), (False, True, True)),
        ((0, 90, 0), (2, 1, 0), (True, False, False)),
        ((0, 0, 90), (1, 0, 2), (True, False, False)),
    ],
)
def test_rotations_by_right_angles_are_the_exact_ones(
    angles: tuple[int, int, int], order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    turned = Move((0, 1, 2), (False, False, False), affine(np.radians(angles), 1.0, CUBE))
    batch = make_batch(noise(1, 1, 7, 7, 7))
    found = move(batch.raw, batch.target, batch.codes, [turned], (7, 7, 7))[1]
    axes = {(90, 0, 0): (1, 2), (180, 0, 0): (1, 2), (0, 90, 0): (0, 2), (0, 0, 90): (0, 1)}[angles]
    times = max(angles) // 90
    candidates = [torch.rot90(batch.target, k, [a + 2 for a in axes]) for k in (times, -times)]
    assert any(torch.equal(found, candidate) for candidate in candidates)
    exact = move(batch.raw, batch.target, batch.codes, [Move(order, flips)], (7, 7, 7))[1]
    assert any(torch.equal(exact, candidate) for candidate in candidates)


def test_rotation_is_one_of_the_specimen_where_voxels_are_not_cubes() -> None:
    """A ball of 40 nm, 5 x 10 x 5 nm voxels: a half ellipsoid that every rotation leaves as it is."""
    voxel, extent, patch = np.array([10.0, 20.0, 5.0]), (21, 13, 41), (13, 7, 25)
    axes = [(np.arange(n) - (n - 1) / 2) * v for n, v in zip(extent, voxel, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    ball = torch.from_numpy(((z**2 + y**2 + x**2) < 52**2).astype("u1") * 200)[None, None]
    batch = make_batch(ball)
    kept = move(ball, ball, batch.codes, [Move((0, 1, 2), (False,) * 3)], patch)[1].float()
    for angles in ((30, 0, 0), (0, 50, 0), (0, 0, 70), (20, -30, 40)):
        turned = Move((0, 1, 2), (False,) * 3, affine(np.radians(angles), 1.0, voxel))
        found = move(ball, ball, batch.codes, [turned], patch)[1].float()
        assert (found != kept).float().mean() < 0.06
        wrong = Move((0, 1, 2), (False,) * 3, affine(np.radians(angles), 1.0, CUBE))
        assert (move(ball, ball, batch.codes, [wrong], patch)[1].float() != kept).float().mean() > 0.1


def test_scaling_zooms_about_the_centre() -> None:
    half = torch.zeros(1, 1, 1, 21, 21, dtype=torch.uint8)
    half[..., 8:13, 8:13] = 1
    batch = make_batch(half)
    larger = move(
        half, half, batch.codes, [Move((0, 1, 2), (False,) * 3, affine(np.zeros(3), 3.0, CUBE))], (1, 21, 21)
    )
    expected = torch.zeros(21, 21, dtype=torch.uint8)
    expected[3:18, 3:18] = 1
    assert torch.equal(larger[1][0, 0, 0], expected)


def test_beyond_the_margin_raw_is_mirrored_and_nothing_is_labelled() -> None:
    raw = torch.arange(8, dtype=torch.uint8).reshape(1, 1, 1, 1, 8)
    batch = make_batch(raw)
    field = np.zeros((3, 1, 1, 2), np.float32)
    field[2] = 3
    shifted = Move((0, 1, 2), (False,) * 3, np.eye(3), Displacement(field))
    image, target, codes = move(batch.raw, batch.target, batch.codes, [shifted], (1, 1, 8))
    assert torch.allclose(image.flatten(), torch.tensor([3.0, 4, 5, 6, 7, 6, 5, 4]), atol=1e-4)
    assert target.flatten().tolist() == [3, 4, 5, 6, 7, 0, 0, 0]
    assert codes.flatten().tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("voxel", [CUBE, np.array([4.0, 1.0, 1.0])])
def test_margin_is_enough_for_rotation_and_scale_and_no_larger(voxel: np.ndarray) -> None:
    settings_ = replace(NONE, rotate=45.0, tilt=10.0, scale=0.3, probability=ALWAYS)
    patch = (6, 16, 16)
    margin = settings_.margin(patch, [voxel])
    corners = [np.radians(angles) for angles in itertools.product((-45, 0, 45), (-10, 10), (-10, 10))]
    moves = [Move((0, 1, 2), (False,) * 3, affine(angles, 1 / 1.3, voxel)) for angles in corners]

    def all_found(margin: tuple[int, ...]) -> bool:
        extent = [p + 2 * m for p, m in zip(patch, margin, strict=True)]
        batch = make_batch(noise(len(moves), 1, *extent), voxel=voxel)
        return bool(move(batch.raw, batch.target, batch.codes, moves, patch)[2].all())

    assert all_found(margin)
    for axis in range(3):
        less = list(margin)
        less[axis] -= 2
        assert min(less) < 0 or not all_found(tuple(less))
    assert settings_.margin((1, 16, 16), [voxel])[0] == 0
    bent = replace(settings_, elastic=2.0).margin(patch, [voxel])
    assert [b - m for b, m in zip(bent, margin, strict=True)] == [4 / voxel[0] if voxel[0] > 1 else 4, 4, 4]


def test_ids_of_any_size_stay_exact() -> None:
    raw = noise(2, 1, 6, 9, 9)
    ids = torch.randint(2**40, 2**41, raw.shape)
    batch = replace(make_batch(raw), target=ids)
    settings_ = replace(NONE, rotate=30.0, elastic=1.0, probability=ALWAYS)
    found = augment(batch, settings_, (6, 9, 9), 0)[1]
    assert found.dtype == torch.int64
    assert set(found.unique().tolist()) <= {0, *ids.unique().tolist()}
    assert not torch.equal(found, ids)


def test_samples_without_resampling_stay_exact_beside_others() -> None:
    raw = noise(12, 1, 4, 8, 8)
    half = replace(ALWAYS, rotate=0.5)
    batch = make_batch(raw)
    image, target, _ = augment(
        batch, replace(NONE, rotate=30.0, symmetry="plane", probability=half), (4, 8, 8), 0
    )
    exact = augment(batch, replace(NONE, symmetry="plane"), (4, 8, 8), 0)
    equal = [torch.equal(image[i], exact[0][i]) and torch.equal(target[i], exact[1][i]) for i in range(12)]
    assert 2 <= sum(equal) <= 10


def test_autocast_of_a_training_step_does_not_round_the_image() -> None:
    raw = noise(2, 1, 4, 10, 10)
    settings_ = replace(ALL, probability=ALWAYS)
    plain = augment(make_batch(raw), settings_, (4, 8, 8), 0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(make_batch(raw), settings_, (4, 8, 8), 0)[0], plain)


def test_a_single_slice_is_moved_within_itself() -> None:
    settings_ = replace(NONE, elastic=1.5, elastic_grid=6, rotate=180.0, tilt=45.0, probability=ALWAYS)
    patch = (1, 12, 12)
    extent = [p + 2 * m for p, m in zip(patch, settings_.margin(patch, [CUBE]), strict=True)]
    assert extent[0] == 1
    codes = augment(make_batch(noise(8, 1, 1, extent[1] + 8, extent[2] + 8)), settings_, patch, 0)[2]
    assert codes.all()
