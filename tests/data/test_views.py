# SPDX-License-Identifier: BSD-3-Clause
"""Views: what they share is the same places, and what is drawn depends on seed, step and place alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastseg.data.augment import Augmentation
from fastseg.data.augment_geometry import Move, turn
from fastseg.data.buffers import Batch
from fastseg.data.views import draw_views


def batch_of(step: int, places: range, patch: tuple, margin: tuple, channels: int = 1) -> Batch:
    """Each voxel is the number of its place in its sample, in raw and in target."""
    extent = [p + 2 * m for p, m in zip(patch, margin, strict=True)]
    numbers = torch.arange(int(np.prod(extent)), dtype=torch.int32).view(1, 1, *extent)
    raw = numbers.repeat(len(places), channels, 1, 1, 1).float()
    one = torch.ones(len(places), channels)
    return Batch(
        raw,
        numbers.repeat(len(places), 1, 1, 1, 1),
        torch.zeros(len(places), 1, *extent, dtype=torch.uint8),
        0 * one,
        one,
        np.ones((len(places), 3)),
        step,
        places,
    )


@pytest.mark.parametrize(
    ("patch", "margin", "symmetry"),
    [
        ((1, 12, 12), (0, 4, 4), "plane"),
        ((6, 8, 10), (2, 3, 0), "plane"),
        ((8, 8, 8), (2, 2, 2), "volume"),
        ((1, 8, 8), (0, 0, 0), "none"),
    ],
)
def test_what_views_share_is_the_same_places(patch: tuple, margin: tuple, symmetry: str) -> None:
    shifted = set()
    for step in range(12):
        batch = batch_of(step, range(3, 7), patch, margin)
        first, second = draw_views(batch, Augmentation(symmetry=symmetry, contrast=0.1), patch, 5)
        assert first.image.shape == second.image.shape == (4, 1, *patch)
        a, b = first.shared(first.clean), second.shared(second.clean)
        assert torch.equal(a, b)
        assert a.numel() >= 4 * np.prod([p - 2 * m for p, m in zip(patch, margin, strict=True)])
        assert torch.equal(first.shared(first.target).float(), a)
        # As large as it can be: everything that both views saw.
        both = set(first.clean[0].flatten().tolist()) & set(second.clean[0].flatten().tolist())
        assert set(a[0].flatten().tolist()) == both
        shifted.add(tuple(a.shape[2:]))
    assert len(shifted) > 1 or margin == (0, 0, 0)


def test_gradients_come_back_through_what_is_shared() -> None:
    first, second = draw_views(batch_of(1, range(3), (1, 8, 8), (0, 2, 2)), Augmentation(), (1, 8, 8), 0)
    for view in (first, second):
        features = torch.randn(3, 2, 1, 8, 8, requires_grad=True)
        shared = view.shared(features)
        shared.sum().backward()
        assert features.grad is not None
        assert features.grad.sum() == shared.numel()


def test_views_differ_and_samples_too() -> None:
    batch = batch_of(0, range(4), (1, 16, 16), (0, 2, 2))
    first, second = draw_views(batch, Augmentation(), (1, 16, 16), 0)
    assert not torch.equal(first.image, second.image)
    assert len({(m.order, m.flips) for view in (first, second) for m in view.moves}) > 2
    # Intensities are changed in the image alone, and differently in each.
    ratio = [(view.image - view.clean).abs().amax((1, 2, 3, 4)) for view in (first, second)]
    assert (torch.cat(ratio) > 0).all()
    assert len(set(torch.cat(ratio).tolist())) == 8


def test_draws_depend_on_seed_step_and_place_alone() -> None:
    patch, margin, settings = (1, 8, 8), (0, 2, 2), Augmentation(gamma=0.3, noise=0.1)
    whole = draw_views(batch_of(7, range(4), patch, margin), settings, patch, 1)
    part = draw_views(batch_of(7, range(2, 4), patch, margin), settings, patch, 1)
    for all_of, some in zip(whole, part, strict=True):
        assert torch.equal(all_of.image[2:], some.image)
    for step, seed in ((8, 1), (7, 2)):
        other = draw_views(batch_of(step, range(4), patch, margin), settings, patch, seed)
        assert not torch.equal(other[0].image, whole[0].image)


def test_not_enabled_views_are_crops() -> None:
    first, _ = draw_views(
        batch_of(0, range(2), (1, 8, 8), (0, 3, 3)), Augmentation(enabled=False), (1, 8, 8), 0
    )
    assert torch.equal(first.image, first.clean)
    assert all(m == Move((0, 1, 2), (False,) * 3) for m in first.moves)
    assert first.shared(first.clean).data_ptr() >= first.clean.data_ptr()


def test_every_symmetry_is_undone() -> None:
    cube = torch.arange(27.0).view(1, 1, 3, 3, 3)
    for order in ((0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0), (1, 0, 2)):
        for flips in np.ndindex(2, 2, 2):
            move = Move(order, tuple(map(bool, flips)))
            there = turn(cube, [move], (3, 3, 3))
            assert torch.equal(turn(there, [move.undone()], (3, 3, 3)), cube)
