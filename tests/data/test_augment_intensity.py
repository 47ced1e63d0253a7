# SPDX-License-Identifier: BSD-3-Clause
"""Changes of intensity: each by its formula, and of the samples that it is meant for alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastseg.data.augment_intensity import Change, change

UNCHANGED = Change(1.0, 1.0, 0.0, 0.0, (0.0, 0.0, 0.0), (0, 0), False, 0)


def changed(image: Tensor, **values: object) -> Tensor:
    return change(image, [replace(UNCHANGED, **values), UNCHANGED])


@pytest.mark.parametrize(
    "values",
    [
        {"gamma": 1.4},
        {"factor": 1.2},
        {"offset": 0.3},
        {"noise": 0.2},
        {"blur": (0.5, 1.0, 2.0)},
        {"sections": (1, 3)},
    ],
)
def test_changes_of_one_sample_leave_the_other(values: dict[str, object]) -> None:
    image = torch.randn(2, 2, 5, 8, 9)
    result = changed(image, **values)
    assert not torch.equal(result[0], image[0])
    assert torch.equal(result[1], image[1])
    assert torch.equal(result, changed(image, **values))


def test_intensities_by_their_formulas() -> None:
    image = torch.rand(2, 1, 4, 6, 6) * 3 - 1
    low, high = image[0].min(), image[0].max()
    expected = ((image[0] - low) / (high - low)) ** 1.5 * (high - low) + low
    assert torch.allclose(changed(image, gamma=1.5)[0], expected, atol=1e-5)
    assert torch.allclose(changed(image, factor=1.5, offset=0.25)[0], image[0] * 1.5 + 0.25)
    dark, faint = (changed(image, sections=(1, 3), dark=dark)[0] for dark in (True, False))
    assert (dark[:, 1:3] == low).all()
    assert torch.equal(dark[:, [0, 3]], image[0][:, [0, 3]])
    assert torch.allclose(faint[:, 1:3].mean((2, 3)), image[0][:, 1:3].mean((2, 3)), atol=1e-6)
    assert torch.allclose(faint[:, 1:3].std((2, 3)), 0.1 * image[0][:, 1:3].std((2, 3)), atol=1e-6)
    constant = torch.ones(2, 1, 2, 4, 4)
    assert torch.equal(changed(constant, gamma=1.5), constant)


def test_blur_is_a_gaussian_per_axis() -> None:
    point = torch.zeros(2, 1, 1, 41, 41)
    point[..., 20, 20] = 1
    blurred = changed(point, blur=(3.0, 1.0, 2.0))[0, 0, 0]
    offset = torch.arange(41.0) - 20
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert ((blurred.sum(1) * offset**2).sum() ** 0.5).item() == pytest.approx(1, rel=0.05)
    assert ((blurred.sum(0) * offset**2).sum() ** 0.5).item() == pytest.approx(2, rel=0.05)
    two = change(point, [replace(UNCHANGED, blur=(0, s, t)) for s, t in ((1.0, 0.1), (3.0, 2.0))])
    assert torch.allclose(two[0, 0, 0].sum(1), blurred.sum(1), atol=1e-6)
    assert torch.equal(two[0, 0, 0].sum(0) > 0, offset == 0)
    assert torch.allclose(two[1, 0, 0].sum(0), blurred.sum(0), atol=1e-6)


def test_noise_has_the_deviation_it_states() -> None:
    image = torch.zeros(2, 1, 20, 40, 40)
    assert changed(image, noise=0.2, seed=5)[0].std().item() == pytest.approx(0.2, rel=0.03)
    assert not torch.equal(changed(image, noise=0.2, seed=5), changed(image, noise=0.2, seed=6))
