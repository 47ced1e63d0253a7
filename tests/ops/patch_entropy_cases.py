# SPDX-License-Identifier: BSD-3-Clause
"""Random arguments for the tests of patch_entropy, and the implementations they run."""

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
implementations = pytest.mark.parametrize(
    ("impl", "device"), [(impl, device) for device in DEVICES for impl in ("fused", "reference")]
)
devices = pytest.mark.parametrize("device", DEVICES)


def make_values(shape, dtype, mode, from_logits, device="cpu", seed=0):
    """A confidence map with exact zeros and ones, or logits."""
    draw = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(shape, generator=draw, dtype=torch.float64)
    if not from_logits:
        values = values.softmax(1) if mode == "categorical" else values.sigmoid()
        if mode == "binary":
            values = values.where(torch.rand(shape, generator=draw) > 0.1, values.round())
    return values.to(dtype).to(device)


def make_mask(shape, kind, mode, device="cpu", seed=0):
    if kind is None:
        return None
    channels = shape[1] if kind == "full" and mode == "binary" else 1
    draw = torch.Generator().manual_seed(seed + 1)
    valid = torch.rand((shape[0], channels, *shape[2:]), generator=draw) > 0.45
    return (valid if kind == "bool" else valid.to(torch.uint8) * 255).to(device)


def with_gradient(function, values, *arguments, **options):
    """Entropy, confidence, and the gradient of their sum with unequal weights over the windows that count."""
    values = values.detach().clone().requires_grad_()
    results = function(values, *arguments, **options)
    total = 0
    for result in results:
        weights = torch.linspace(0.5, 1.5, result.numel(), device=result.device).view(result.shape)
        total = total + (torch.where(result.isnan(), 0, result) * weights).sum()
    (gradient,) = torch.autograd.grad(total, values)
    return [*(result.detach() for result in results), gradient]
