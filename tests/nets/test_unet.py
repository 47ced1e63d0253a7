# SPDX-License-Identifier: BSD-3-Clause
"""The U-Net's parameter counts, shapes, layouts and refusals."""

from __future__ import annotations

import pytest
import torch

from fastseg.nets import UNet
from fastseg.nets.unet import CONV


def parameters(**options: object) -> int:
    return sum(p.numel() for p in UNet(**options).parameters())


def test_parameter_counts_of_the_paper() -> None:
    # Cicek et al. 2016, counted with convolution biases, no norm and no bias in the up-convolutions.
    assert parameters(in_channels=3, out_channels=3, width=32, norm="none") == 19_069_955
    assert parameters(in_channels=1, out_channels=1, width=32, norm="none") == 19_068_097


@pytest.mark.parametrize(
    ("dims", "pooling", "shape"),
    [
        (2, (2, 2, 2), (16, 24)),
        (2, ((1, 2), 4), (8, 16)),
        (3, (2, 2), (8, 4, 12)),
        (3, ((1, 2, 2), (2, 2, 2)), (2, 8, 4)),
        (3, ((1, 2, 2), (1, 2, 2)), (1, 8, 4)),
        (3, (), (3, 5, 7)),
    ],
)
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_logits_have_the_image_s_axes(dims: int, pooling: tuple, shape: tuple[int, ...], norm: str) -> None:
    network = UNet(dims, 2, 3, width=2, pooling=pooling, norm=norm)
    assert network(torch.randn(2, 2, *shape)).shape == (2, 3, *shape)


def test_every_parameter_takes_part() -> None:
    network = UNet(3, 1, 1, width=2)
    network(torch.randn(1, 1, 16, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_channels_last_gives_the_same() -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 1, width=4)
    image = torch.randn(1, 1, 8, 16, 16)
    plain = network(image)
    last = network.to(memory_format=torch.channels_last_3d)(image.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-4)


def test_two_slices_train_under_bfloat16() -> None:
    """oneDNN's bfloat16 weight gradient over exactly two slices is not to be trusted: they are convolved in float32."""
    convolution = CONV[3](16, 16, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        for slices, dtype in ((1, torch.bfloat16), (2, torch.float32), (3, torch.bfloat16)):
            assert convolution(torch.zeros(1, 16, slices, 4, 4)).dtype == dtype
    torch.manual_seed(0)
    network = UNet(3, 1, 1, width=4, pooling=(2, 2, 2)).to(memory_format=torch.channels_last_3d)
    image = torch.randn(2, 1, 16, 8, 8)  # small, as a CPU without bfloat16 takes 100 times as long
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(image).float().square().mean()
        network.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 4}, "dims must be 2 or 3, got 4"),
        ({"pooling": ((2, 2),)}, r"pooling must hold 3 positive strides per level, got \(2, 2\)"),
        ({"pooling": (0,)}, r"pooling must hold 3 positive strides per level, got \(0, 0, 0\)"),
    ],
)
def test_unusable_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**options)


def test_unusable_images() -> None:
    network = UNet(3, 1, 1, width=2)
    with pytest.raises(
        ValueError, match=r"multiples of \(8, 8, 8\), the network's pooling, got \(8, 12, 8\)"
    ):
        network(torch.randn(1, 1, 8, 12, 8))
    with pytest.raises(
        ValueError, match=r"image must be \(B, C, \*S\) with 3 spatial axes, got \(1, 1, 8, 8\)"
    ):
        network(torch.randn(1, 1, 8, 8))
