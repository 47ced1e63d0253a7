# SPDX-License-Identifier: BSD-3-Clause
"""Networks of CUT: published sizes, layers by number, filters by hand, odd images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastseg.nets import CutGenerator, PatchDiscriminator, ProjectionHeads
from fastseg.nets.cut import BlurredHalving, taken_at


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def convolution(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2 + outputs


@pytest.mark.parametrize(("channels", "stated"), [(3, 11_378_179), (1, 11_365_633)])
def test_generator_has_the_parameters_of_the_paper(channels: int, stated: int) -> None:
    """CUT's log says 11.378 M for three channels."""
    by_hand = (
        convolution(channels, 64, 7)
        + convolution(64, 128, 3)
        + convolution(128, 256, 3)
        + 9 * 2 * convolution(256, 256, 3)
        + convolution(256, 128, 3)
        + convolution(128, 64, 3)
        + convolution(64, channels, 7)
    )
    assert parameters(CutGenerator(channels)) == by_hand == stated


@pytest.mark.parametrize(("channels", "stated"), [(3, 2_764_737), (1, 2_762_689)])
def test_discriminator_has_the_parameters_of_the_paper(channels: int, stated: int) -> None:
    """CUT's log says 2.765 M for three channels."""
    widths = [(channels, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    by_hand = sum(convolution(*pair, 4) for pair in widths)
    assert parameters(PatchDiscriminator(channels)) == by_hand == stated


def test_heads_have_the_parameters_of_the_paper() -> None:
    """CUT's log says 0.560 M for three channels."""
    heads = ProjectionHeads(CutGenerator(3).feature_channels)
    by_hand = sum(count * 256 + 256 + 256 * 256 + 256 for count in (3, 128, 256, 256, 256))
    assert parameters(heads) == by_hand == 560_384


def test_layers_bear_the_numbers_of_the_published_code() -> None:
    numbers = {name.split(".")[1] for name, _ in CutGenerator(1, width=4).named_parameters()}
    assert numbers == {str(n) for n in (1, 4, 8, *range(12, 21), 22, 26, 30)}
    assert "model.12.conv_block.5.weight" in CutGenerator(1, width=4).state_dict()
    judge = {name.split(".")[1] for name, _ in PatchDiscriminator(1, width=4).named_parameters()}
    assert judge == {"0", "3", "7", "11", "14"}


def test_layers_are_of_the_kinds_of_the_published_code() -> None:
    kinds = [type(layer).__name__ for layer in CutGenerator(1, width=4, blocks=2).model]
    normed = ["Conv2d", "InstanceNorm2d", "ReLU"]
    down, up = [*normed, "BlurredHalving"], ["Upsample", *normed]
    ends = ["ReflectionPad2d", "Conv2d", "Tanh"]
    assert kinds == ["ReflectionPad2d", *normed, *down, *down, *["ResidualBlock"] * 2, *up, *up, *ends]
    block = [type(layer).__name__ for layer in CutGenerator(1, width=4).model[12].conv_block]
    assert block == ["ReflectionPad2d", *normed, "ReflectionPad2d", "Conv2d", "InstanceNorm2d"]
    judge = PatchDiscriminator(1, width=4).model
    normed = ["Conv2d", "InstanceNorm2d", "LeakyReLU"]
    kinds = [type(layer).__name__ for layer in judge]
    halved = "BlurredHalving"
    assert kinds == ["Conv2d", "LeakyReLU", halved, *normed, halved, *normed, halved, *normed, "Conv2d"]
    assert all(layer.negative_slope == 0.2 for layer in judge if isinstance(layer, nn.LeakyReLU))
    torch.manual_seed(0)
    image = torch.randn(1, 16, 8, 8)
    block = CutGenerator(1, width=4).model[12]
    torch.testing.assert_close(block(image), image + block.conv_block(image))


def test_translate_gives_the_outputs_of_the_numbered_layers_in_one_pass() -> None:
    torch.manual_seed(0)
    network, image = CutGenerator(2, width=4), torch.randn(2, 2, 24, 32)
    translated, features = network.translate(image)
    expected, here = [], image
    for number, layer in enumerate(network.model):
        here = layer(here)
        if number in (0, 4, 8, 12, 16):
            expected.append(here.clone())
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(translated, here)
    torch.testing.assert_close(network(image), here)
    torch.testing.assert_close(network.encode(image), expected)
    assert [layer.shape[1] for layer in features] == [*network.feature_channels]
    assert [layer.shape[2] * layer.shape[3] for layer in features] == network.places(24, 32)
    assert translated.abs().max() < 1


def test_fewer_blocks_end_at_the_last_one() -> None:
    network = CutGenerator(1, width=4, blocks=3)
    assert network.feature_layers == (0, 4, 8, 12, 14)
    assert len(network.encode(torch.randn(1, 1, 16, 16))) == 5
    assert CutGenerator(1, width=4, blocks=5).feature_layers[-1] == 16


@pytest.mark.parametrize("size", [(8, 8), (9, 16), (30, 47), (33, 10)])
def test_odd_images_are_continued_and_cut(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network, image = CutGenerator(1, width=4, blocks=2), torch.randn(2, 1, *size)
    translated, features = network.translate(image)
    assert translated.shape == image.shape
    assert [layer.shape[2] * layer.shape[3] for layer in features] == network.places(*size)
    more = [-n % 4 for n in size]
    continued = F.pad(image, (0, more[1], 0, more[0]), mode="reflect")
    torch.testing.assert_close(network(continued)[..., : size[0], : size[1]], translated)


def test_each_image_is_a_matter_of_its_own() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 1, 32, 32) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1)
    for network in (CutGenerator(1, width=4, blocks=2), PatchDiscriminator(1, width=4)):
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


def test_halving_and_doubling_are_the_published_filters() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 11, 14)
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = (torch.outer(line, line) / 16).repeat(3, 1, 1, 1)
    expected = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=3)
    torch.testing.assert_close(BlurredHalving(3)(image), expected)
    line = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (torch.outer(line, line) / 64 * 4).repeat(3, 1, 1, 1)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    expected = F.conv_transpose2d(padded, kernel, stride=2, padding=2, groups=3)[..., 1:-1, 1:-1]
    doubling = CutGenerator(1, width=4, blocks=2).model[14]
    assert isinstance(doubling, nn.Upsample)
    torch.testing.assert_close(doubling(image), expected)


def test_discriminator_scores_places() -> None:
    network = PatchDiscriminator(1, width=4)
    assert network(torch.randn(2, 1, 64, 96)).shape == (2, 1, 6, 10)
    assert network(torch.randn(1, 1, 32, 33)).shape == (1, 1, 2, 2)
    assert PatchDiscriminator(1, width=4, layers=1)(torch.randn(1, 1, 32, 32)).shape == (1, 1, 14, 14)
    assert PatchDiscriminator(1, width=2, layers=4)(torch.randn(1, 1, 64, 64)).shape == (1, 1, 2, 2)


def test_weights_begin_as_published() -> None:
    torch.manual_seed(0)
    weight = CutGenerator(1, width=64, blocks=2).model[12].conv_block[1].weight
    assert float(weight.detach().std()) == pytest.approx(0.02 * (2 / (2 * 256 * 9)) ** 0.5, rel=0.02)
    assert all(not p.any() for n, p in PatchDiscriminator(1).named_parameters() if n.endswith("bias"))


def test_vectors_are_taken_at_their_places() -> None:
    features = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    places = torch.tensor([[0, 7, 19], [3, 3, 10]])
    found = taken_at(features, places)
    for image in range(2):
        for number, place in enumerate(places[image].tolist()):
            assert torch.equal(found[image, number], features[image, :, place // 5, place % 5])
    heads = ProjectionHeads((3, 3), dimensions=6)
    projected = heads([features, features], [places, places])
    torch.testing.assert_close(projected[1], heads.heads[1](found))
    assert not torch.allclose(projected[0], projected[1])


def test_bad_input_is_named() -> None:
    network = CutGenerator(1, width=4, blocks=2)
    for shape in ((1, 1, 7, 32), (1, 2, 32, 32), (1, 32, 32)):
        with pytest.raises(ValueError, match=r"image must be \(B, 1, H, W\) with H and W at least 8, got"):
            network(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"H and W at least 32, got \(1, 1, 31, 64\)"):
        PatchDiscriminator(1, width=4)(torch.zeros(1, 1, 31, 64))
    with pytest.raises(ValueError, match=r"H and W at least 64, got"):
        PatchDiscriminator(1, width=4, layers=4)(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="blocks must be at least 2, got 1"):
        CutGenerator(1, blocks=1)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        PatchDiscriminator(1, layers=0)
