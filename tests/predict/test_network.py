# SPDX-License-Identifier: BSD-3-Clause
"""Probabilities of raw windows: scaling, mirror images, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastseg.data.intensity import Intensity
from fastseg.predict import choose_batch, images_per_window, probability_of

CPU = torch.device("cpu")
INTENSITY = Intensity((100.0, 3.0), (0.1, 2.0))


class Shifted(nn.Module):
    """Looks one voxel back along every axis, so that mirror images differ."""

    def forward(self, image: Tensor) -> Tensor:
        return image.sum(1, keepdim=True).roll((1, 1, 1), (2, 3, 4))


def windows() -> Tensor:
    """Of values about the shift of either channel, so that no probability is 0 or 1."""
    values = np.random.default_rng(0).integers((90, 2), (111, 5), (3, 4, 5, 6, 2), dtype=np.uint8)
    return torch.from_numpy(values).movedim(-1, 1)


def by_hand(raw: Tensor, mirrors: list[tuple[int, ...]]) -> Tensor:
    shift, scale = (torch.tensor(v, dtype=torch.float64).view(1, 2, 1, 1, 1) for v in ((100, 3), (0.1, 2)))
    image = (raw.double() - shift) * scale
    return torch.stack([Shifted()(image.flip(m)).sigmoid().flip(m) for m in mirrors]).mean(0)


MIRRORS = {
    "none": [()],
    "plane": [(), (3,), (4,), (3, 4)],
    "volume": [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)],
}


@pytest.mark.parametrize("flips", MIRRORS)
def test_mean_over_mirror_images(flips: str) -> None:
    raw = windows()
    predict = probability_of(Shifted(), INTENSITY, device=CPU, flips=flips)
    torch.testing.assert_close(predict(raw), by_hand(raw, MIRRORS[flips]).float(), rtol=1e-5, atol=1e-6)


def test_exclusive_classes_share_one_with_a_background_of_logit_0() -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat((image[:, :1], -2 * image[:, 1:]), 1)

    raw = windows()
    found = probability_of(Two(), INTENSITY, device=CPU, exclusive=True)(raw)
    z = Two()(
        (raw.double() - torch.tensor([100, 3]).view(1, 2, 1, 1, 1))
        * torch.tensor([0.1, 2]).view(1, 2, 1, 1, 1)
    )
    expected = z.exp() / (1 + z.exp().sum(1, keepdim=True))
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flips", MIRRORS)
def test_the_network_sees_a_window_and_its_mirror_images_in_one_batch(flips: str) -> None:
    seen = []

    class Recording(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return image[:, :1]

    raw = windows()
    probability_of(Recording(), INTENSITY, device=CPU, flips=flips)(raw)
    assert [len(image) for image in seen] == [3 * images_per_window(flips)]
    assert images_per_window(flips) == len(MIRRORS[flips])
    assert seen[0].is_contiguous(memory_format=torch.channels_last_3d)
    for images, mirror in zip(seen[0].split(3), MIRRORS[flips], strict=True):
        torch.testing.assert_close(images, seen[0][:3].flip(mirror))


def test_half_precision_runs_the_network_alone_in_it() -> None:
    seen = []

    class Recording(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            assert image.dtype == torch.float32
            return nn.functional.conv3d(image, torch.ones(1, 2, 1, 1, 1))

    raw = torch.ones((1, 2, 2, 2, 2), dtype=torch.uint8)
    out = probability_of(Recording(), INTENSITY, device=CPU, precision=torch.bfloat16)(raw)
    assert seen == [True]
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("window", "batch"),
    [((1, 16, 64, 64), 4), ((1, 16, 65, 64), 2), ((3, 1, 8, 8), 4096), ((1, 64, 512, 512), 1)],
)
def test_batch_on_a_cpu(window: tuple[int, ...], batch: int) -> None:
    assert choose_batch(lambda raw: raw, window, np.dtype("u1"), CPU) == batch
    assert choose_batch(lambda raw: raw, window, np.dtype("u1"), CPU, images=4) == max(batch // 4, 1)
