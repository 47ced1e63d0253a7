# SPDX-License-Identifier: BSD-3-Clause
"""The loss of patch contrast: against the paper's formulas in plain PyTorch, and what must hold of it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastseg import patch_entropy
from fastseg.nets import PatchFeaturiser
from fastseg.nn import PatchContrast, PatchContrastTerms
from tests.gloo import in_processes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import patch_contrast_plain as plain

EXACT = {"rtol": 1e-8, "atol": 1e-10}


def blobs(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Confidences with sure and unsure regions, float64."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((*shape[:2], *(4 for _ in shape[2:])), generator=generator, dtype=torch.float64)
    mode = "bilinear" if len(shape) == 4 else "trilinear"
    return nn.functional.interpolate(4 * coarse, shape[2:], mode=mode).sigmoid().requires_grad_()


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def places(criterion: PatchContrast, parity: Tensor, seed: int) -> list[Tensor]:
    """Which of each channel's positives, in the order of (image, window), are its anchors."""
    rows, exists = criterion._choose_anchors(parity, seed)
    assert exists.all()
    batch, channels, n = parity.shape
    numbers = torch.full((batch * channels * n,), -1)
    for k in range(channels):
        of_channel = torch.arange(batch * channels * n).view(batch, channels, n)[:, k][parity[:, k]]
        numbers[of_channel] = torch.arange(len(of_channel))
    return list(numbers[rows].view(channels, -1))


def bce(anchor: Tensor, others: Tensor) -> Tensor:
    return (anchor * others.log2() + (1 - anchor) * (1 - others).log2()).flatten(1).mean(1)


def cosine(featuriser: nn.Module):
    def similarity(anchor: Tensor, others: Tensor) -> Tensor:
        one, many = (featuriser(t.mean(1, keepdim=True)) for t in (anchor[None], others))
        return nn.functional.cosine_similarity(one, many)

    return similarity


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize(
    ("shape", "colours", "size", "stride", "similarity"),
    [
        ((3, 3, 40, 44), 3, 10, 6, "neg_mse"),
        ((2, 1, 30, 30), 1, [8, 12], [4, 3], "neg_mse"),
        ((2, 2, 12, 20, 20), 1, [4, 8, 8], [4, 6, 6], "neg_mse"),
        ((3, 2, 40, 44), 3, 10, 6, "bce"),
        ((2, 2, 70, 70), 3, 50, 10, "features"),
    ],
)
def test_it_is_the_loss_of_the_paper(
    shape: tuple[int, ...], colours: int, size: int, stride: int, similarity: str, impl: str
) -> None:
    confidence, image = blobs(shape), 0.05 + 0.9 * noise(shape[0], colours, *shape[2:])
    if similarity == "bce":  # away from the smallest value that its logarithm is taken of
        confidence = (0.01 + 0.98 * confidence.detach()).requires_grad_()
    torch.manual_seed(0)
    featuriser = PatchFeaturiser().double().eval() if similarity == "features" else None
    criterion = PatchContrast(
        size, stride, 9, anchors=6, similarity=similarity, featuriser=featuriser, impl=impl
    )
    terms = criterion(confidence, image, 5)
    measure = {"neg_mse": None, "bce": bce, "features": cosine(featuriser) if featuriser else None}
    samples = terms.samples
    intra, inter = plain.loss(
        confidence,
        image,
        samples.corners,
        samples.parity,
        places(criterion, samples.parity, 5),
        size,
        measure[similarity],
    )
    torch.testing.assert_close(terms.intra, intra.detach(), **EXACT)
    torch.testing.assert_close(terms.inter, inter.detach(), **EXACT)
    torch.testing.assert_close(terms.loss, (intra + inter).sum(), **EXACT)
    (ours,) = torch.autograd.grad(terms.loss, confidence)
    (theirs,) = torch.autograd.grad((intra + inter).sum(), confidence)
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_windows_are_those_of_the_paper() -> None:
    half, sure = torch.full((1, 1, 300, 300), 0.5), torch.ones(1, 1, 300, 300)
    assert patch_entropy(half, 50, 20).entropy.unique().tolist() == [1.0]
    assert patch_entropy(sure, 50, 20).entropy.unique().tolist() == [0.0]
    assert patch_entropy(0 * sure, 50, 20).entropy.unique().tolist() == [0.0]
    assert patch_entropy(half, 50, 20).entropy.numel() == 169


def test_patches_that_are_all_alike_have_the_loss_of_their_numbers() -> None:
    confidence = torch.full((4, 2, 30, 30), 0.4, dtype=torch.float64)
    terms = PatchContrast(10, 5)(confidence, torch.ones(4, 3, 30, 30, dtype=torch.float64), 1)
    parity = terms.samples.parity
    for k in range(2):
        positives = int(parity[:, k].sum())
        negatives, others = 4 * 10 - positives, int(parity[:, 1 - k].sum())
        assert positives
        assert negatives
        assert terms.intra[k].item() == pytest.approx(positives * math.log(negatives) / (10 * 4))
        assert terms.inter[k].item() == pytest.approx(positives * math.log(others) / (10 * 4))


def test_gradients_stay_within_the_windows() -> None:
    confidence, image = blobs((2, 2, 60, 60)), noise(2, 3, 60, 60)
    terms = PatchContrast(10, 5, 3)(confidence, image, 2)
    terms.loss.backward()
    drawn = torch.zeros_like(confidence, dtype=torch.bool)
    for b in range(2):
        for k in range(2):
            for y, x in terms.samples.corners[b, k].tolist():
                drawn[b, k, y : y + 10, x : x + 10] = True
    assert (confidence.grad[~drawn] == 0).all()
    assert (confidence.grad[drawn] != 0).float().mean() > 0.99
    assert not drawn.all()


def test_distances_are_means_over_all_pairs() -> None:
    confidence, image = blobs((3, 2, 40, 40)), noise(3, 1, 40, 40)
    for similarity in ("neg_mse", "bce"):
        criterion = PatchContrast(8, 8, similarity=similarity)
        terms = criterion(confidence, image, 4)
        chosen = places(criterion, terms.samples.parity, 4)
        for k in range(2):
            kinds: dict[bool, list[Tensor]] = {True: [], False: []}
            for b in range(3):
                for corner, parity in zip(
                    terms.samples.corners[b, k].tolist(), terms.samples.parity[b, k].tolist(), strict=True
                ):
                    y, x = corner
                    patch = (confidence[b, k] * image[b])[:, y : y + 8, x : x + 8].detach()
                    kinds[parity].append(patch.clamp(1e-6, 1 - 1e-6))
            anchors = torch.stack([kinds[True][i] for i in chosen[k].tolist()])
            for found, others in ((terms.positive_distance, True), (terms.negative_distance, False)):
                bank = torch.stack(kinds[others])
                s = bce if similarity == "bce" else lambda a, o: -(a - o).square().flatten(1).mean(1)
                expected = torch.stack([-s(anchor, bank).mean() for anchor in anchors]).mean()
                torch.testing.assert_close(found[k], expected, rtol=1e-6, atol=1e-9)


def void_case() -> tuple[Tensor, Tensor]:
    """Channel 1 is sure that nothing is foreground, so that it has no positives."""
    confidence = blobs((2, 2, 40, 40)).detach()
    confidence[:, 1] = 0
    return confidence.requires_grad_(), noise(2, 1, 40, 40)


def test_a_step_without_positives_of_some_channel_is_left_out() -> None:
    confidence, image = void_case()
    terms = PatchContrast(8, 8)(confidence, image, 0)
    assert terms.void
    assert terms.loss == 0
    terms.loss.backward()
    assert (confidence.grad == 0).all()


def test_without_skipping_the_other_channels_go_on() -> None:
    confidence, image = void_case()
    terms = PatchContrast(8, 8, skip_void=False)(confidence, image, 0)
    assert terms.void
    assert terms.loss == terms.intra[0]
    assert terms.loss > 0
    # No positives, so no anchors, and nothing for channel 0 to be told from.
    assert terms.intra[1] == 0
    assert (terms.inter == 0).all()
    terms.loss.backward()
    assert confidence.grad.isfinite().all()
    assert (confidence.grad[:, 1] == 0).all()


def test_anchors_are_drawn_evenly_from_the_positives_of_their_channel() -> None:
    parity = torch.rand(5, 2, 6, generator=torch.Generator().manual_seed(3)) < 0.4
    criterion = PatchContrast(8, 8, 6, anchors=500)
    counts = torch.zeros(parity.numel())
    for seed in range(20):
        rows, exists = criterion._choose_anchors(parity, seed)
        assert exists.all()
        counts += torch.bincount(rows, minlength=parity.numel())
    for k in range(2):
        of_channel = counts.view(parity.shape)[:, k]
        assert (of_channel[~parity[:, k]] == 0).all()
        assert stats.chisquare(of_channel[parity[:, k]].numpy()).pvalue > 1e-3


def test_the_seed_decides_the_draws() -> None:
    confidence, image = blobs((2, 2, 40, 40)), noise(2, 3, 40, 40)
    criterion = PatchContrast(8, 4)
    first, again, other = (criterion(confidence, image, seed) for seed in (1, 1, 2))
    assert first.loss == again.loss
    assert first.loss != other.loss
    assert not torch.equal(first.samples.index, other.samples.index)


def test_nothing_is_read_back_from_the_device() -> None:
    with FakeTensorMode():
        # A tensor without values cannot be read: every .item(), if or nonzero() raises.
        confidence = torch.rand(2, 3, 40, 40, requires_grad=True)
        terms = PatchContrast(8, 4)(confidence, torch.rand(2, 3, 40, 40), 1)
        terms.loss.backward()
        assert isinstance(terms, PatchContrastTerms)
        assert confidence.grad.shape == (2, 3, 40, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity": "mse"}, r"similarity must be one of neg_mse, bce, features, got 'mse'"),
        ({"similarity": "features"}, r'featuriser goes with similarity="features"'),
        ({"featuriser": nn.Identity()}, r'featuriser goes with similarity="features"'),
    ],
)
def test_bad_options(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchContrast(8, 4, **arguments)


def test_images_must_fit_the_maps() -> None:
    with pytest.raises(ValueError, match=r"image must be \(B, C, \*S\) .* got \(2, 3, 40, 41\)"):
        PatchContrast(8, 4)(torch.rand(2, 1, 40, 40), torch.rand(2, 3, 40, 41), 0)


def share(rank: int, processes: int) -> tuple[torch.Tensor, ...]:
    confidence, image = blobs((4, 2, 40, 40)), noise(4, 3, 40, 40)
    mine = confidence.detach().chunk(processes)[rank].clone().requires_grad_()
    terms = PatchContrast(8, 4, across_ranks=True)(mine, image.chunk(processes)[rank], 3)
    terms.loss.backward()
    assert mine.grad is not None
    return terms.loss.detach(), terms.entropy, terms.samples.corners, mine.grad / processes


@pytest.mark.long
def test_two_processes_have_the_loss_of_one(tmp_path: Path) -> None:
    parts = in_processes(share, 2, tmp_path, 2)
    confidence = blobs((4, 2, 40, 40))
    terms = PatchContrast(8, 4)(confidence, noise(4, 3, 40, 40), 3)
    terms.loss.backward()
    for loss, entropy, _, _ in parts:
        torch.testing.assert_close(loss, terms.loss.detach(), **EXACT)
        torch.testing.assert_close(entropy, terms.entropy, **EXACT)
    assert torch.equal(torch.cat([corners for _, _, corners, _ in parts]), terms.samples.corners)
    # Both processes see the whole loss: what DistributedDataParallel averages is the gradient of one.
    torch.testing.assert_close(torch.cat([grad for _, _, _, grad in parts]), confidence.grad, **EXACT)
