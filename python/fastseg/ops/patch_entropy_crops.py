# SPDX-License-Identifier: BSD-3-Clause
"""extract_patches: equal patches cut out of a volume, all in one call."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.ops.checks import check_device, check_dtype, check_types, check_volume
from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.patch_entropy import check_fits, per_axis
from fastseg.ops.reference.patch_entropy_crops import extract_patches_reference


def extract_patches(
    volume: Tensor, corners: Tensor, patch_size: int | Sequence[int], *, impl: str = "auto"
) -> Tensor:
    """Cut patches of one size out of every sample of a volume::

        result[b, ..., c, i] = volume[b, c, corners[b, ...] + i]        for i in the patch

    Args:
        volume: (B, C, *S) with 1 to 3 spatial axes, of any dtype: image, labels, features. Read in place
            whatever its strides.
        corners: (B, *N, d), int64 or int32, on the device of `volume`: the first voxel of each patch of
            sample b. d is the number of spatial axes, N any axes, such as the (K, n) of `sample_patches`.
        patch_size: voxels of a patch on each spatial axis, or one number for all; at most the size of S.
        impl: "auto" (the fused kernel where there is one, else the reference), "fused" or "reference".

    Returns:
        (B, *N, C, *patch_size), of the dtype of `volume` and contiguous. Differentiable in a floating
        `volume`: its gradient is the sum of the gradients of the patches that hold a voxel.

    Edge rules:
        A patch that does not lie wholly inside the volume, such as one at the corners of -1 that
        `sample_patches` leaves behind its count, is 0, and nothing flows back from it. Corners are not read
        back to be checked, on no device.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or option.

    Numerics:
        The gradient is summed in float32 (float64 for float64) in the order of the patches, without
        atomics: bit-repeatable.

    Cost:
        Every voxel of a patch is read and written once. Backward, every voxel of the volume is written once
        and those of the patches read once; each plane looks at all corners of its sample.
    """
    check_types({"volume": volume, "corners": corners})
    check_volume("volume", volume)
    axes, shape = volume.dim() - 2, corners.shape
    if len(shape) < 2 or shape[0] != volume.shape[0] or shape[-1] != axes:
        raise ValueError(
            f"corners must be (B, *N, d) = ({volume.shape[0]}, *N, {axes}), got {tuple(corners.shape)}"
        )
    patch_size = per_axis("patch_size", patch_size, axes)
    if corners.dtype != torch.int64:
        check_dtype("corners", corners, (torch.int64, torch.int32))
        corners = corners.long()
    if len(shape) != 3:
        corners = corners.reshape(shape[0], math.prod(shape[1:-1]), axes)
    if use_fused("patch_entropy", impl, volume):
        patches = _crops(volume, corners, patch_size)
    else:
        _check(volume, corners, patch_size)
        patches = extract_patches_reference(volume, corners, patch_size)
    return patches if len(shape) == 3 else patches.reshape(*shape[:-1], *patches.shape[2:])


def _check(volume: Tensor, corners: Tensor, patch_size: Sequence[int]) -> None:
    check_device("corners", corners, "volume", volume)
    check_fits(patch_size, volume)


@torch.library.register_fake("fastseg::patch_entropy_crops")
def _(volume, corners, patch_size):
    return volume.new_empty((*corners.shape[:2], volume.shape[1], *patch_size))


@torch.library.register_fake("fastseg::patch_entropy_crops_backward")
def _(grad, corners, spatial):
    return grad.new_empty((grad.shape[0], grad.shape[2], *spatial))


def _save(ctx, inputs, output):
    volume, corners, ctx.patch_size = inputs
    ctx.spatial = volume.shape[2:]
    ctx.save_for_backward(corners)


def _backward(ctx, grad):
    return _crops_backward(grad, *ctx.saved_tensors, ctx.spatial), None, None


# The adjoint of the adjoint is the crop again.
def _save_backward(ctx, inputs, output):
    grad, corners, _ = inputs
    ctx.patch_size = grad.shape[3:]
    ctx.save_for_backward(corners)


def _second(ctx, grad):
    return _crops(grad, *ctx.saved_tensors, ctx.patch_size), None, None


_crops = open_doors("patch_entropy_crops", _save, _backward, check=_check)
_crops_backward = open_doors("patch_entropy_crops_backward", _save_backward, _second)
