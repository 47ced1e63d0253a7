# SPDX-License-Identifier: BSD-3-Clause
"""soft_region_pool: moments of features over regions that overlap, each voxel shared out among them."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastseg.ops.checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_types,
    check_volume,
    empty_like,
    real_dtype,
)
from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.reference.region_pool import soft_region_pool_reference

_MAX_PARTS = 256


class SoftRegions(NamedTuple):
    """Of every region: its mass (B, K), the (B, K, C) mean of the features and, if asked for, their variance;
    and mean and variance (B, K, Cg) of the grey image, if there is one. None where not asked for."""

    mass: Tensor
    mean: Tensor
    variance: Tensor | None
    grey_mean: Tensor | None
    grey_variance: Tensor | None


def soft_region_pool(
    features: Tensor,
    assignment: Tensor,
    *,
    from_logits: bool = False,
    variance: bool = False,
    grey: Tensor | None = None,
    impl: str = "auto",
) -> SoftRegions:
    """Mass, mean and variance of the features of K overlapping regions, in one pass, with the softmax fused.

    With A the assignment, or its softmax over K::

        mass[b, k]        = sum over p of A[b, k, p]
        mean[b, k, c]     = sum over p of A[b, k, p] * features[b, c, p] / mass[b, k]
        variance[b, k, c] = sum over p of A[b, k, p] * (features[b, c, p] - mean[b, k, c]) ** 2 / mass[b, k]

    Args:
        features: (B, C, *S) with 1 to 3 spatial axes, float32, float64, bfloat16 or float16.
        assignment: (B, K, *S), K from 1 to 256, one of the same dtypes: weights of at least 0, or logits.
        from_logits: take the softmax of the assignment over K first; it is never stored.
        variance: also the variance of the features.
        grey: (B, Cg, *S), one of the same dtypes: further channels, such as the image itself, whose mean and
            variance are taken in the same pass.
        impl: "auto" (the fused kernel where there is one, else the reference), "fused" or "reference".

    Returns:
        SoftRegions(mass, mean, variance, grey_mean, grey_variance), float64 if any argument is, else
        float32. Differentiable in features, grey and assignment.

    Edge rules:
        A region of mass 0 has mean and variance 0, with gradient 0. NaN and inf propagate, also from
        voxels of weight 0 (0 * inf); where the variance is asked for, inf gives NaN.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or option.

    Numerics:
        Products are float32 (float64 for float64 arguments) over a few hundred voxels, float64 beyond on the
        CPU. For the variance features are taken relative to a mean nearby (of the tile, or on CUDA of the
        begin of the block's voxels) and merged from parts in float64. On CUDA a product of float32 is three
        of TF32 on the matrix units, to float32's precision. Bit-repeatable, on the CPU for any number of
        threads. Differentiable any number of times; from the second time on in plain PyTorch.

    Cost:
        Forward reads assignment and features once (assignment once for every 64 channels on the CPU, for 40
        on CUDA; features on CUDA once for every 16 regions); backward reads both and writes their gradients.
        Extra memory O(K C), on CUDA 8 bytes a voxel besides for logits of more than 16 regions. Contiguous
        and channels_last(_3d) tensors are read in place, any other layout costs a copy.

    Source:
        The region pooling of region contrast pretraining: g_k (grey) and r_k (mean) with their gradients
        dL/df(p) = sum_k A_k(p) / S_k dL/dr_k and dL/dA_k(p) = <f(p) - r_k, dL/dr_k> / S_k.
    """
    check_types({"features": features, "assignment": assignment}, {"grey": grey})
    if not use_fused("region_pool", impl, features):
        _check(features, grey, assignment)
        return _reference(features, assignment, from_logits, variance, grey)
    mass, mean, spread = _soft_region_pool(features, grey, assignment, from_logits, variance)
    if grey is None:
        return SoftRegions(mass, mean, spread if variance else None, None, None)
    channels = (features.shape[1], grey.shape[1])
    mean, grey_mean = mean.split(channels, -1)
    of_features, of_grey = spread.split(channels, -1) if variance else (None, spread)
    return SoftRegions(mass, mean, of_features, grey_mean, of_grey)


def _reference(features, assignment, from_logits, variance, grey):
    dtypes = [tensor.dtype for tensor in (features, assignment, grey) if tensor is not None]
    if torch.float64 in dtypes:
        features = features.double()
    results = soft_region_pool_reference(features, assignment, from_logits, variance)
    if grey is None:
        return SoftRegions(*results, None, None)
    if torch.float64 in dtypes:
        grey = grey.double()
    return SoftRegions(*results, *soft_region_pool_reference(grey, assignment, from_logits, True)[1:])


def _check(features: Tensor, grey: Tensor | None, assignment: Tensor, *_: object) -> None:
    batch, spatial = features.shape[:1], features.shape[2:]
    for name, tensor in (("features", features), ("assignment", assignment), ("grey", grey)):
        if tensor is None:
            continue
        check_dtype(name, tensor, FLOATS)
        check_volume(name, tensor)
        check_device(name, tensor, "features", features)
        if (tensor.shape[:1], tensor.shape[2:]) != (batch, spatial):
            expected = ", ".join(map(str, (*batch, "any", *spatial)))
            raise ValueError(f"{name} must be (B, any, *S) = ({expected}), got {tuple(tensor.shape)}")
    if not 1 <= assignment.shape[1] <= _MAX_PARTS:
        raise ValueError(f"assignment must have 1 to {_MAX_PARTS} regions, got {assignment.shape[1]}")


@torch.library.register_fake("fastseg::soft_region_pool")
def _(features, grey, assignment, from_logits, variance):
    batch, parts = assignment.shape[:2]
    of_grey = 0 if grey is None else grey.shape[1]
    channels = features.shape[1] + of_grey

    def empty(*shape):
        return features.new_empty(shape, dtype=real_dtype(features, grey, assignment))

    spread = channels if variance else of_grey
    return empty(batch, parts), empty(batch, parts, channels), empty(batch, parts, spread)


@torch.library.register_fake("fastseg::soft_region_pool_backward")
def _(features, grey, assignment, from_logits, variance, *rest):
    tensors = (features, grey, assignment)
    absent = features.new_empty(0, dtype=real_dtype(*tensors))
    return tuple(
        empty_like(tensor) if wanted else absent.clone()
        for tensor, wanted in zip(tensors, rest[6:], strict=True)
    )


def _save(ctx, inputs, output):
    *tensors, ctx.from_logits, ctx.variance = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, *grads):
    if all(grad is None for grad in grads):
        return (None,) * 5
    features, grey, assignment, *results = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    found = _soft_region_pool_backward(
        *(features, grey, assignment, ctx.from_logits, ctx.variance), *results, *grads, *wanted
    )
    return *(grad if want else None for grad, want in zip(found, wanted, strict=True)), None, None


def _save_backward(ctx, inputs, output):
    ctx.from_logits = inputs[3]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], *inputs[5:11])


def _gradient(from_logits, features, grey, assignment, mass, mean, spread, grad_mass, grad_mean, grad_spread):
    """What the backward op computes, in PyTorch: the gradients of features, grey and assignment. The names are those of
    SoftGradient and SoftResultGradients in the kernels, which have the formulas."""
    # Where there is no mass, there is no mean either, and any divisor will do. Nothing depends on the shift.
    total, column = mass.sum(1, keepdim=True), mass.unsqueeze(-1)
    shift = ((column * mean).sum(1) / total.masked_fill(total == 0, 1)).detach()
    divisor = column.masked_fill(column == 0, torch.inf)
    direct = torch.zeros_like(mean) if grad_mean is None else grad_mean / divisor
    curved = torch.zeros_like(spread) if grad_spread is None else grad_spread / divisor
    back, plain = shift.unsqueeze(1) - mean, mean.shape[-1] - spread.shape[-1]
    bent = back[..., plain:]
    offset = (back * direct).sum(-1) + ((bent * bent - spread) * curved).sum(-1)
    if grad_mass is not None:
        offset = offset + grad_mass
    direct = torch.cat([direct[..., :plain], direct[..., plain:] + 2 * bent * curved], -1)

    values = features if grey is None else torch.cat([features.to(mean.dtype), grey.to(mean.dtype)], 1)
    distance = values.flatten(2).to(mean.dtype) - shift.unsqueeze(-1)
    weights = assignment.flatten(2).to(mean.dtype)
    if from_logits:
        weights = weights.softmax(1)
    bent = distance[:, plain:]
    of_values = torch.einsum("bkn,bkc->bcn", weights, direct)
    of_bent = 2 * bent * torch.einsum("bkn,bkc->bcn", weights, curved)
    of_values = torch.cat([of_values[:, :plain], of_values[:, plain:] + of_bent], 1)
    of_weights = offset.unsqueeze(-1) + torch.einsum("bkc,bcn->bkn", direct, distance)
    of_weights = of_weights + torch.einsum("bkc,bcn->bkn", curved, bent * bent)
    if from_logits:
        of_weights = weights * (of_weights - (weights * of_weights).sum(1, keepdim=True))
    channels = features.shape[1]
    of_grey = None if grey is None else of_values[:, channels:].reshape(grey.shape).to(grey.dtype)
    of_features = of_values[:, :channels].reshape(features.shape).to(features.dtype)
    return of_features, of_grey, of_weights.reshape(assignment.shape).to(assignment.dtype)


def _second_backward(ctx, *grads):
    third, saved = torch.is_grad_enabled(), ctx.saved_tensors
    with torch.enable_grad():
        # Views, so that the gradients found here are of these tensors alone.
        views = [
            tensor
            if tensor is None
            else (tensor if tensor.requires_grad else tensor.detach().requires_grad_()).view_as(tensor)
            for tensor in saved
        ]
        pairs = [
            (value, grad)
            for value, grad in zip(_gradient(ctx.from_logits, *views), grads, strict=True)
            if grad is not None
        ]
        second = iter(
            torch.autograd.grad(
                [value for value, _ in pairs],
                [view for view in views if view is not None],
                [grad for _, grad in pairs],
                create_graph=third,
                allow_unused=True,
            )
        )
    found = [view if view is None else next(second) for view in views]
    return *found[:3], None, None, *found[3:], None, None, None


_soft_region_pool = open_doors("soft_region_pool", _save, _backward, check=_check)
_soft_region_pool_backward = open_doors("soft_region_pool_backward", _save_backward, _second_backward)
