# SPDX-License-Identifier: BSD-3-Clause
"""The ops under torch.func.vmap give what a loop over the mapped axis gives, without torch's warning."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

import fastseg

MAPPED = 3  # differs from the batch of 2, so that a wrong axis cannot pass


def tensors(seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(MAPPED, 2, 4, 8, 8, generator=draw)
    target = torch.rand(MAPPED, 2, 4, 8, 8, generator=draw) > 0.5
    mask = torch.randint(0, 3, (MAPPED, 2, 1, 8, 8), generator=draw, dtype=torch.uint8)
    regions = torch.randint(-1, 5, (MAPPED, 2, 8, 8), generator=draw)
    return logits, target, mask, regions


def bce(logits, target, mask, regions):
    return fastseg.masked_weighted_bce(logits, target, mask, pseudo_weight=0.5, normalize="terms")


def bce_map(logits, target, mask, regions):
    weight = logits.new_tensor([1.0, 2.0, 0.5, 1.0])
    return fastseg.masked_weighted_bce(logits, target, mask, pos_weight=weight, reduction="none")


def bce_map_of_weights(logits, target, mask, regions):
    return fastseg.masked_weighted_bce(
        logits, target, mask, pos_weight=logits[0, :, 0, 0].exp(), reduction="none"
    )


def pool(logits, target, mask, regions):
    return fastseg.region_pool(logits, regions, 5)


def stats(logits, target, mask, regions):
    return fastseg.region_stats(logits, regions, 5)


def soft(logits, target, mask, regions):
    found = fastseg.soft_region_pool(logits, logits.flip(1), from_logits=True, grey=logits[:, :1])
    return found.mass, found.mean, found.grey_variance


def entropy(logits, target, mask, regions):
    return fastseg.patch_entropy(logits, 4, 2, from_logits=True)


def categorical(logits, target, mask, regions):
    return fastseg.patch_entropy(logits, 4, 2, from_logits=True, mode="categorical", mask=mask, min_valid=0.0)


def windows(logits, target, mask, regions):
    samples = fastseg.sample_patches(
        *fastseg.patch_entropy(logits, 4, 2, from_logits=True), 5, seed=3, stride=2
    )
    return samples.corners, fastseg.extract_patches(logits, samples.corners, 4)


def contrast(logits, target, mask, regions):
    rows = logits.flatten(2).transpose(1, 2).flatten(0, 1)
    return fastseg.region_contrast(rows, anchor_ids=regions.flatten(), temperature=0.2)


@pytest.mark.filterwarnings("error")  # torch warns where it falls back to a loop of its own
@pytest.mark.parametrize("in_dims", [0, (1, 1, 1, 0), (0, None, 0, 0)], ids=["first", "second", "one target"])
@pytest.mark.parametrize(
    "function",
    [bce, bce_map, bce_map_of_weights, pool, stats, soft, entropy, categorical, windows, contrast],
    ids=lambda function: function.__name__,
)
def test_vmap_is_a_loop(function, in_dims):
    given = list(tensors())
    dims = [in_dims] * 4 if isinstance(in_dims, int) else list(in_dims)
    each = [
        [tensor[0] if dim is None else tensor[i] for tensor, dim in zip(given, dims, strict=True)]
        for i in range(MAPPED)
    ]
    given = [
        tensor[0] if dim is None else tensor.movedim(0, dim) for tensor, dim in zip(given, dims, strict=True)
    ]
    looped = [function(*arguments) for arguments in each]
    found = vmap(function, in_dims=tuple(dims))(*given)
    if isinstance(found, torch.Tensor):
        looped, found = [(part,) for part in looped], (found,)
    for part, parts in zip(found, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(part, torch.stack(parts), equal_nan=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", [bce, pool, entropy, contrast], ids=lambda function: function.__name__)
def test_gradients_flow_out_of_vmap(function):
    logits, *others = tensors()

    def total(found):
        parts = (found,) if isinstance(found, torch.Tensor) else found
        return sum(part.square().sum() for part in parts)

    mapped = logits.clone().requires_grad_()
    total(vmap(function)(mapped, *others)).backward()
    looped = logits.clone().requires_grad_()
    sum(total(function(looped[i], *(part[i] for part in others))) for i in range(MAPPED)).backward()
    torch.testing.assert_close(mapped.grad, looped.grad)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", [bce_map, pool, stats, soft, entropy, windows], ids=lambda f: f.__name__)
def test_batches_of_gradients(function):
    """``is_grads_batched`` maps the backward ops."""
    logits, *others = (part[0] for part in tensors())
    logits.requires_grad_()
    found = function(logits, *others)
    (found, *_) = (found,) if isinstance(found, torch.Tensor) else [p for p in found if p.requires_grad]
    grads = torch.randn(MAPPED, *found.shape, generator=torch.Generator().manual_seed(1))
    (batched,) = torch.autograd.grad(found, logits, grads, is_grads_batched=True, retain_graph=True)
    for i in range(MAPPED):
        (one,) = torch.autograd.grad(found, logits, grads[i], retain_graph=True)
        torch.testing.assert_close(batched[i], one)
