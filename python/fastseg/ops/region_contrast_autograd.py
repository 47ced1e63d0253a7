# SPDX-License-Identifier: BSD-3-Clause
"""The ops region_contrast and region_contrast_backward at both doors: shapes, gradients, and the GPU kernels."""

import importlib.util

import torch

from fastseg import _C
from fastseg.ops.checks import real_dtype
from fastseg.ops.doors import open_doors
from fastseg.ops.region_contrast_checks import REDUCTIONS, check_tensors

_NONE = REDUCTIONS["none"]
_STATS = 6
_MOST_KEPT = 256 * 256  # pairs, kContrastBlock squared


@torch.library.register_fake("fastseg::region_contrast")
def _(anchors, bank, anchor_ids, bank_ids, anchor_groups, bank_groups, temperature, *options):
    reduction, rows = options[4], anchors.shape[0]
    loss = anchors.new_empty((rows,) if reduction == _NONE else (), dtype=real_dtype(anchors))
    if anchors.device.type == "cuda":  # sorted rows and lengths, for the backward pass
        from fastseg.triton.region_contrast import kept_floats

        kept = kept_floats(rows, None if bank is None else bank.shape[0], anchors.shape[1], anchors.dtype)
    else:  # products
        candidates = rows if bank is None else bank.shape[0]
        kept = rows * candidates if rows * candidates <= _MOST_KEPT else 0
    return loss, loss.new_empty((_STATS, rows)), loss.new_empty(()), loss.new_empty((kept,))


@torch.library.register_fake("fastseg::region_contrast_backward")
def _(grad, anchors, bank, *others):
    need_anchors, need_bank = others[-2:]
    absent = anchors.new_empty((0,), dtype=real_dtype(anchors))
    return (
        anchors.new_empty(anchors.shape) if need_anchors else absent,
        bank.new_empty(bank.shape) if need_bank else absent.new_empty((0,)),
        absent.new_empty(()),
    )


# Triton is imported by the first call with tensors on a GPU, not before, and launches on the current device.
def _forward_by_triton(anchors, *others):
    from fastseg.triton.region_contrast import region_contrast

    with torch.cuda.device(anchors.get_device()):
        return region_contrast(anchors, *others)


def _backward_by_triton(grad, *others):
    from fastseg.triton.region_contrast import region_contrast_backward

    with torch.cuda.device(grad.get_device()):
        return region_contrast_backward(grad, *others)


if importlib.util.find_spec("triton") is not None:
    torch.library.impl("fastseg::region_contrast", "CUDA")(_forward_by_triton)
    torch.library.impl("fastseg::region_contrast_backward", "CUDA")(_backward_by_triton)


def _forward(anchors, *others):
    """At the eager door; C++ checks what it is given, Triton does not."""
    if not anchors.is_cuda:
        return _C.region_contrast(anchors, *others)
    check_tensors(anchors, *others)
    return _forward_by_triton(anchors, *others)


def _gradients(grad, *others):
    return (_backward_by_triton if grad.is_cuda else _C.region_contrast_backward)(grad, *others)


def _save(ctx, inputs, output):
    tensors, (ctx.fixed_temperature, ctx.self_offset, *ctx.options, _) = inputs[:7], inputs[7:]
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx, grad, *_):
    needed = ctx.needs_input_grad
    gradients = [None] * len(needed)
    if grad is None:
        return tuple(gradients)
    tensors = ctx.saved_tensors
    gradients[0], gradients[1], of_temperature = region_contrast_backward(
        grad, *tensors, ctx.fixed_temperature, ctx.self_offset, *ctx.options, *needed[:2]
    )
    if needed[6]:
        gradients[6] = of_temperature.to(tensors[6].dtype)
    return tuple(gradient if need else None for gradient, need in zip(gradients, needed, strict=True))


region_contrast = open_doors(
    "region_contrast",
    _save,
    _backward,
    check=check_tensors,
    eager=_forward,
    differentiable=1,
    results=1,
)
region_contrast_backward = open_doors(
    "region_contrast_backward",
    backward='region_contrast has no second gradient; use impl="reference"',
    eager=_gradients,
)
