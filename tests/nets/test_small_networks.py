# SPDX-License-Identifier: BSD-3-Clause
"""The light networks: parameter counts, dense against patch by patch, how far they see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastseg.nets import FCNN, PatchFeaturiser, SlidingCNN


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("channels", "count"), [(1, 204_226), (2, 205_026)])
def test_sliding_cnn_has_the_parameters_of_the_released_model(channels: int, count: int) -> None:
    assert parameters(SlidingCNN(channels)) == count
    assert parameters(SlidingCNN(channels, 2)) == count


@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (32, 32), (37, 50), (64, 41)])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_dense_answers_are_those_of_the_patches(shape: tuple[int, int], classes: int) -> None:
    torch.manual_seed(0)
    network = SlidingCNN(2, classes).double().eval()
    image = torch.randn(2, 2, *shape, dtype=torch.float64)
    dense = network(image)
    assert dense.shape == (2, classes, *shape)
    padded = F.pad(image, (16, 16, 16, 16))
    for i in range(0, shape[0], 4):
        for j in range(0, shape[1], 4):
            patch = padded[:, :, i : i + 32, j : j + 32]
            torch.testing.assert_close(dense[:, :, i, j], network.patch_logits(patch), rtol=1e-12, atol=1e-12)


def test_between_the_answers_it_interpolates() -> None:
    torch.manual_seed(0)
    network = SlidingCNN().double().eval()
    dense = network(torch.randn(1, 1, 30, 30, dtype=torch.float64))[0, 0]
    torch.testing.assert_close(dense[4, 9], 0.75 * dense[4, 8] + 0.25 * dense[4, 12])
    torch.testing.assert_close(dense[6, 8], 0.5 * dense[4, 8] + 0.5 * dense[8, 8])


def test_one_logit_is_the_softmax_of_two() -> None:
    torch.manual_seed(0)
    two = SlidingCNN(1, 2).eval()
    one = SlidingCNN(1, 1).eval()
    one.load_state_dict(two.state_dict())
    patches = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(
        one.patch_logits(patches)[:, 0].sigmoid(), two.patch_logits(patches).softmax(1)[:, 1]
    )


def test_fcnn_has_the_parameters_and_the_view_of_the_paper() -> None:
    assert parameters(FCNN()) == 7_372
    assert parameters(FCNN()) + parameters(PatchFeaturiser()) == 10_758
    assert FCNN().receptive_field == (167, 167)


@pytest.mark.parametrize(
    ("dims", "dilations", "field"),
    [(2, (1, 2), (15, 15)), (3, ((1, 2, 2), (1, 3, 1)), (11, 23, 15)), (2, (), (3, 3))],
)
def test_fcnn_sees_its_receptive_field_and_no_further(
    dims: int, dilations: tuple[int, ...], field: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = FCNN(dims, 2, 1, dilations=dilations).eval()
    assert network.receptive_field == field
    shape = tuple(f + 6 for f in field)
    image = torch.randn(1, 2, *shape, requires_grad=True)
    out = network(image)
    assert out.shape == (1, 1, *shape)
    out[(0, 0, *(s // 2 for s in shape))].backward()
    seen = image.grad[0].abs().sum(0).nonzero()
    assert tuple((seen.max(0).values - seen.min(0).values + 1).tolist()) == field


def test_featuriser_gives_unit_vectors() -> None:
    features = PatchFeaturiser().eval()(torch.rand(5, 1, 50, 50))
    assert features.shape == (5, 32)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SlidingCNN()(torch.zeros(1, 32, 32)), r"image must be \(B, C, H, W\), got \(1, 32, 32\)"),
        (lambda: SlidingCNN().patch_logits(torch.zeros(1, 1, 31, 32)), r"must be \(B, C, 32, 32\)"),
        (lambda: FCNN(4), "dims must be 2 or 3, got 4"),
        (lambda: FCNN(3, dilations=[(1, 2)]), r"3 of them per block, got \(1, 2\)"),
        (lambda: FCNN(2)(torch.zeros(3, 8, 8)), r"2 spatial axes, got \(3, 8, 8\)"),
        (lambda: PatchFeaturiser()(torch.zeros(1, 1, 49, 50)), r"must be \(N, 1, 50, 50\)"),
    ],
)
def test_wrong_shapes_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
