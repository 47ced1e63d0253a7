# SPDX-License-Identifier: BSD-3-Clause
"""The masked cross-entropy against torch's own, and against the masked BCE where there is one class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastseg.nn import MaskedCrossEntropy, MaskedWeightedBCE

SHAPE = (2, 3, 4, 5, 6)


def batch(
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, ids with 0 the background, their one-hot target, and codes."""
    torch.manual_seed(0)
    ids = torch.randint(0, 4, (2, *SHAPE[2:]))
    target = F.one_hot(ids, 4).movedim(-1, 1)[:, 1:].to(torch.uint8)
    codes = torch.randint(0, 3, (2, 1, *SHAPE[2:]), dtype=torch.uint8)
    return (3 * torch.randn(SHAPE, dtype=dtype)).requires_grad_(), ids, target, codes


def divisors(normalize: str, codes: torch.Tensor, pseudo_weight: float) -> tuple[float, float]:
    labelled, pseudo = int((codes == 1).sum()), int((codes == 2).sum())
    both = labelled + pseudo_weight * pseudo
    return {"voxels": (codes.numel(),) * 2, "weight": (both,) * 2, "terms": (labelled, pseudo)}[normalize]


@pytest.mark.parametrize("pos_weight", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("normalize", ["voxels", "weight", "terms"])
def test_it_is_torchs_cross_entropy_over_a_background_of_logit_0(
    normalize: str, pos_weight: list[float] | None
) -> None:
    logits, ids, target, codes = batch()
    weight = torch.tensor([1.0, *(pos_weight or [1.0] * 3)], dtype=torch.float64)
    with_background = torch.cat((torch.zeros_like(logits[:, :1]), logits), 1)
    voxels = F.cross_entropy(with_background, ids, weight, reduction="none")[:, None]
    n = divisors(normalize, codes, 0.25)
    expected = voxels[codes == 1].sum() / n[0] + 0.25 * voxels[codes == 2].sum() / n[1]
    loss = MaskedCrossEntropy(pseudo_weight=0.25, pos_weight=pos_weight, normalize=normalize)(
        logits, target, codes
    )
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_of_one_class_it_is_the_masked_bce(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    logits, target = torch.randn(2, 1, 9, 7).to(dtype), torch.rand(2, 1, 9, 7)
    codes = torch.randint(0, 3, (2, 1, 9, 7), dtype=torch.uint8)
    options = {"pseudo_weight": 0.5, "pos_weight": [3.0], "normalize": "terms"}
    ours, theirs = MaskedCrossEntropy(**options), MaskedWeightedBCE(**options)
    torch.testing.assert_close(ours(logits, target, codes), theirs(logits, target, codes))


def test_soft_targets_leave_the_rest_to_the_background() -> None:
    logits, _, _, codes = batch()
    target = torch.rand(SHAPE, dtype=torch.float64) / 3
    with_background = torch.cat((torch.zeros_like(logits[:, :1]), logits), 1)
    whole = torch.cat((1 - target.sum(1, keepdim=True), target), 1)
    expected = (
        F.cross_entropy(with_background, whole, reduction="none")[:, None][codes != 0].sum() / codes.numel()
    )
    torch.testing.assert_close(MaskedCrossEntropy()(logits, target, codes), expected)


def test_what_is_ignored_may_hold_anything() -> None:
    logits = torch.tensor([[[0.5, float("nan"), 1.0], [0.1, float("inf"), 0.0]]], requires_grad=True)
    target, mask = torch.zeros(1, 2, 3), torch.tensor([[[1, 0, 2]]], dtype=torch.uint8)
    loss = MaskedCrossEntropy(pseudo_weight=0.0)(logits, target, mask)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert (gradient[..., 0] != 0).all()
    assert (gradient[..., 1:] == 0).all()
    nothing = MaskedCrossEntropy(normalize="terms")(logits, target, torch.zeros_like(mask))
    assert float(nothing.detach()) == 0
    assert (torch.autograd.grad(nothing, logits)[0] == 0).all()


def test_bad_input_is_named() -> None:
    logits = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"target must have the shape of logits, \(2, 3, 4\), got \(2, 4\)"):
        MaskedCrossEntropy()(logits, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"mask must be \(B, 1, \*S\) = \(2, 1, 4\), got \(2, 3, 4\)"):
        MaskedCrossEntropy()(logits, logits, torch.zeros(2, 3, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="normalize must be one of voxels, weight, terms, got 'sum'"):
        MaskedCrossEntropy(normalize="sum")
