# SPDX-License-Identifier: BSD-3-Clause
"""masked_bce across processes, as far as one process shows it; tests/train/test_ranks.py has two."""

from __future__ import annotations

import pytest
import torch

from fastseg import masked_weighted_bce, masked_weighted_bce_across_ranks
from fastseg.nn import MaskedWeightedBCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("normalize", ["voxels", "weight", "terms"])
def test_alone_it_is_the_loss_of_the_batch(normalize: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 5, 6, 7).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    target, mask = torch.rand(2, 2, 5, 6, 7) > 0.5, torch.randint(0, 3, (2, 1, 5, 6, 7), dtype=torch.uint8)
    results = []
    for loss_of in (masked_weighted_bce, masked_weighted_bce_across_ranks):
        own = logits.clone().requires_grad_()
        loss = loss_of(own, target, mask, pseudo_weight=0.5, normalize=normalize)
        (3 * loss).backward()
        results.append((loss.detach(), own.grad))
    torch.testing.assert_close(results[1], results[0])
    assert results[1][0].dtype == results[0][0].dtype


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_what_is_ignored_may_hold_anything(impl: str) -> None:
    logits = torch.tensor([[[0.5, float("nan"), float("inf")]]], requires_grad=True)
    mask = torch.tensor([[[1, 0, 2]]], dtype=torch.uint8)
    target = torch.ones(1, 1, 3)
    for normalize in ("voxels", "weight", "terms"):
        loss = masked_weighted_bce_across_ranks(
            logits, target, mask, pseudo_weight=0.0, normalize=normalize, impl=impl
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert (gradient[..., 1:] == 0).all()


def test_bad_input_is_named() -> None:
    logits = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match=r"normalize must be one of voxels, weight, terms, got 'sum'"):
        masked_weighted_bce_across_ranks(logits, logits, normalize="sum")
    with pytest.raises(ValueError, match=r"target requires a gradient"):
        masked_weighted_bce_across_ranks(logits, torch.zeros(1, 1, 4, requires_grad=True), impl="fused")
    with pytest.raises(ValueError, match=r'across_ranks needs reduction="mean", got \'none\''):
        MaskedWeightedBCE(across_ranks=True, reduction="none")
