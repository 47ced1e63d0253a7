# SPDX-License-Identifier: BSD-3-Clause
"""The U-Net on ResNet-50: its size, its shapes, its gradients."""

from __future__ import annotations

import pytest
import torch

from fastseg.nets import ResNetUNet


def test_the_way_down_is_resnet_50() -> None:
    network = ResNetUNet(2, 3, 1)
    # torchvision's resnet50 has 25,557,032 parameters, 2,049,000 of them in the layer that classifies.
    assert sum(p.numel() for m in (network.stem, network.stages) for p in m.parameters()) == 23_508_032
    assert network.divisor == (32, 32)


@pytest.mark.parametrize(
    ("dims", "pooling", "shape"),
    [(2, [2, 2, 2, 2, 2], (64, 96)), (3, [[1, 2, 2], [1, 2, 2], 2, 2, 1], (4, 32, 48))],
)
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_logits_have_the_shape_of_the_image(dims: int, pooling: list, shape: tuple, norm: str) -> None:
    network = ResNetUNet(dims, 2, 3, width=4, pooling=pooling, norm=norm)
    logits = network(torch.randn(2, 2, *shape))
    assert logits.shape == (2, 3, *shape)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_levels_halve_and_skips_reach_the_logits() -> None:
    network = ResNetUNet(2, 1, 1, width=4, norm="none").eval()
    levels = network.encode(torch.randn(1, 1, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (4, 32, 32),
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
        (128, 2, 2),
    ]
    whole = network.decode(levels)
    for number in range(len(levels)):
        without = [torch.zeros_like(v) if i == number else v for i, v in enumerate(levels)]
        assert not torch.allclose(network.decode(without), whole)


@pytest.mark.parametrize("pooling", [[2, 2, 2], [2, 2, 2, 2, 0], [2, 2, 2, 2, [2, 2, 2]]])
def test_bad_pooling(pooling: list) -> None:
    with pytest.raises(ValueError, match="pooling must hold 5 strides of one or 2 positive ints"):
        ResNetUNet(2, pooling=pooling)


def test_images_must_divide() -> None:
    with pytest.raises(ValueError, match=r"multiples of \(32, 32\), the network's pooling, got \(64, 48\)"):
        ResNetUNet(2, width=4)(torch.zeros(1, 1, 64, 48))
