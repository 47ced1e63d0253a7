# SPDX-License-Identifier: BSD-3-Clause
"""Codes, the index of labels, and where patches are taken."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastseg.data.annotations import AnnotatedVolume, Annotation, index_labels
from fastseg.data.patches import PatchSampler, Sampling
from fastseg.errors import InputError
from tests.data.scenes import PATCH, SHAPE, make_sampler, make_scene, stored


@pytest.fixture
def scene(tmp_path: Path) -> AnnotatedVolume:
    return make_scene(tmp_path)


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


def test_ways_of_drawing_hit_what_they_name(scene: AnnotatedVolume) -> None:
    target, codes = scene.read_target((0, 0, 0), SHAPE)
    labelled = codes[0] > 0
    for per_block in (1, 3):
        for sampling, wanted in (
            (Sampling(0, 1, 0), labelled),
            (Sampling(0, 0, 1), labelled & target.any(axis=0)),
        ):
            sampler = make_sampler(scene, sampling=sampling, patches_per_block=per_block)
            for step in range(60):
                _, start = sampler.draw(step, 0)
                assert wanted[tuple(slice(a, a + p) for a, p in zip(start, PATCH, strict=True))].any()
        sampler = make_sampler(scene, sampling=Sampling(1, 0, 0), patches_per_block=per_block)
        starts = np.array([sampler.draw(step, 0)[1] for step in range(900)])
        assert (starts.min(axis=0) == 0).all()
        assert (starts.max(axis=0) == np.subtract(SHAPE, PATCH)).all()


# Chi-square quantile 1 - 1e-6: mean + 4.75 deviations, plus the cubic term of Wilson and Hilferty.
def _most_chi_square(freedom: int) -> float:
    return freedom * (1 - 2 / (9 * freedom) + 4.75 * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize("sampling", [Sampling(1, 0, 0), Sampling(0, 1, 0), Sampling(0, 0, 1)])
def test_grouped_patches_are_distributed_as_single_ones(tmp_path: Path, sampling: Sampling) -> None:
    """Against the exact distribution, counted over every candidate and offset; also for the last of each group."""
    scene = make_scene(tmp_path, chunked=True)
    scene = AnnotatedVolume(
        *(v.crop((1, 2, 3), (9, 14, 16)) for v in (scene.raw, scene.labels)),
        annotation=Annotation(0, (4, 8)),
    )
    single = make_sampler(scene, sampling=sampling)
    limit = single.limits[0]
    exact = np.zeros(limit + 1)
    candidates = single.ways[0].candidates
    if candidates is None:
        exact += 1
    else:
        offsets = np.stack(np.meshgrid(*map(np.arange, PATCH), indexing="ij"), -1).reshape(-1, 3)
        for centre in candidates[0]:
            np.add.at(exact, tuple(np.clip(centre - offsets, 0, limit).T), 1)
    exact /= exact.sum()
    for per_block, members in ((1, (0,)), (4, (0, 1, 2, 3)), (4, (3,))):
        sampler = make_sampler(
            scene, sampling=sampling, batch=2, patches_per_block=per_block, shuffle_steps=2
        )
        window = per_block * 2
        steps = [s for s in range(1500 * window // len(members)) if s % window // 2 in members]
        # Of one window only one patch of each group, so that the counts are independent.
        if len(members) > 1:
            rng = np.random.default_rng(1)
            steps = [w * window + 2 * int(rng.integers(4)) + i for w in range(1500) for i in range(2)]
        drawn = Counter(sampler.draw(step, place)[1] for step in steps for place in range(2))
        total = sum(drawn.values())
        assert all(exact[start] > 0 for start in drawn)
        common = exact * total >= 5
        found = np.array([drawn[tuple(place)] for place in np.argwhere(common).tolist()])
        expected = exact[common] * total
        assert np.sum((found - expected) ** 2 / expected) < _most_chi_square(common.sum())


def test_groups_share_a_cell_and_are_dealt_out_evenly(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, chunked=True)
    batch, per_block, shuffle = 3, 4, 5
    sampler = make_sampler(
        scene, sampling=Sampling(1, 0, 0), batch=batch, patches_per_block=per_block, shuffle_steps=shuffle
    )
    assert sampler.cells[0].tolist() == [4, 6, 7]
    for window in range(3):
        drawn: dict[int, list[np.ndarray]] = {}
        for step in range(window * 20, window * 20 + 20):
            member, column = divmod(step % 20, shuffle)
            order = sampler._order(window, member)
            groups = [int(order[column * batch + place]) for place in range(batch)]
            assert len(set(groups)) == batch
            for place, group in enumerate(groups):
                drawn.setdefault(group, []).append(np.array(sampler.draw(step, place)[1]))
        assert len(drawn) == batch * shuffle
        for starts in drawn.values():
            assert len(starts) == per_block
            assert len({tuple(start // (4, 6, 7)) for start in starts}) == 1
    assert len({tuple(sampler._order(w, m)) for w in range(3) for m in range(4)}) == 12


def test_positions_depend_on_seed_step_and_place_alone(scene: AnnotatedVolume) -> None:
    one, two = (make_sampler(scene, patches_per_block=4) for _ in range(2))
    wanted = [(step, place) for step in range(40) for place in range(3)]
    drawn = {at: one.draw(*at) for at in wanted}
    assert {at: two.draw(*at) for at in reversed(wanted)} == drawn
    other = make_sampler(scene, seed=1, patches_per_block=4)
    assert sum(other.draw(*at) == drawn[at] for at in wanted) < len(wanted) / 4


def test_cells_are_whole_chunks_of_at_least_half_a_patch(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    scene.raw.chunks = (1, 5, 2)
    assert make_sampler(scene).cells[0].tolist() == [2, 5, 4]


def test_weights_are_shares_of_the_patches(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    empty = AnnotatedVolume(scene.raw, stored(tmp_path, "none", np.zeros(SHAPE, "u1")), classes=(1, 2))
    volumes = [scene, scene, empty]
    indexes = [index_labels(volume, 0) for volume in volumes]
    for sampling, expected in ((Sampling(1, 0, 0), (0.3, 0.1, 0.6)), (Sampling(0, 0, 1), (0.75, 0.25, 0.0))):
        sampler = PatchSampler(volumes, indexes, PATCH, sampling, 0, weights=[3, 1, 6])
        drawn = np.bincount([sampler.draw(step, 0)[0] for step in range(4000)], minlength=3) / 4000
        assert np.allclose(drawn, expected, atol=0.04)
        if sampling.uniform:
            by_size = PatchSampler(volumes, indexes, PATCH, sampling, 0)
            drawn = np.bincount([by_size.draw(step, 0)[0] for step in range(4000)], minlength=3) / 4000
            assert np.allclose(drawn, 1 / 3, atol=0.04)


def test_unusable_samplers(scene: AnnotatedVolume, tmp_path: Path) -> None:
    nothing = AnnotatedVolume(scene.raw, scene.labels, stored(tmp_path, "mask", np.zeros(SHAPE, "u1")))
    with pytest.raises(InputError, match=r"no annotated voxel in .*raw\.npy"):
        PatchSampler([nothing], [index_labels(nothing, 0)], (4, 8, 8), Sampling(), 0)


def test_volumes_without_labels_have_patches_anywhere(tmp_path: Path) -> None:
    volume = AnnotatedVolume(make_scene(tmp_path).raw)
    index = index_labels(volume, 0)
    assert (index.labelled_voxels, index.foreground_voxels) == (0, 0)
    target, codes = volume.read_target((0, 0, 0), (2, 3, 4))
    assert target.shape == (1, 2, 3, 4)
    assert not target.any()
    assert not codes.any()
    sampler = PatchSampler([volume], [index], PATCH, Sampling(), 0)
    starts = {sampler.draw(step, 0)[1] for step in range(200)}
    assert len(starts) > 150
    with pytest.raises(InputError, match="around labelled voxels or foreground alone, and there are none"):
        PatchSampler([volume], [index], PATCH, Sampling(0, 1, 1), 0)
