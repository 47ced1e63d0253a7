# SPDX-License-Identifier: BSD-3-Clause
"""patch_entropy: mean entropy and mean confidence of every window of a confidence map."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg.ops.checks import (
    BYTES,
    FLOATS,
    as_int,
    check_device,
    check_dtype,
    check_map,
    check_option,
    check_types,
    check_volume,
    is_number,
    real_dtype,
)
from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.reference.patch_entropy import patch_entropy_reference

_MODES = ("binary", "categorical")


class WindowEntropy(NamedTuple):
    """Means over the windows: entropy in bits, (B, K or 1, *W), and confidence, (B, K, *W)."""

    entropy: Tensor
    confidence: Tensor


def patch_entropy(
    confidence: Tensor,
    patch_size: int | Sequence[int],
    stride: int | Sequence[int],
    *,
    mode: str = "binary",
    from_logits: bool = False,
    mask: Tensor | None = None,
    min_valid: float = 0.5,
    impl: str = "auto",
) -> WindowEntropy:
    """Mean entropy in bits and mean confidence of every window, from one read of the map.

    For the probability p of a voxel (sigmoid or softmax of the logit with from_logits=True)::

        binary:       h_k = -p_k log2(p_k) - (1 - p_k) log2(1 - p_k)      for each channel k
        categorical:  h   = -sum_k p_k log2(p_k)
        entropy[w], confidence[w] = means of h and of p over the valid voxels of window w

    Args:
        confidence: (B, K, *S) with 1 to 3 spatial axes, float32, float64, bfloat16 or float16:
            probabilities, or logits. Fewer than 2**31 - 1 voxels on an axis.
        patch_size: voxels of a window on each spatial axis, or one number for all; at most the size of S.
        stride: voxels from one window to the next, likewise. Window w begins at voxel w * stride. Only
            windows that fit count: (S - patch_size) // stride + 1 on each axis.
        mode: "binary", every channel is a question of its own; "categorical", the channels exclude one
            another and their probabilities sum to 1 (which is not checked).
        from_logits: whether `confidence` holds logits.
        mask: (B, 1 or K, *S), for categorical (B, 1, *S); uint8 or bool, voxels with 0 are not valid.
        min_valid: in [0, 1]: a window with a smaller share of valid voxels, or with none, is NaN.
        impl: "auto" (the fused kernel where there is one, else the reference), "fused" or "reference".

    Returns:
        WindowEntropy(entropy, confidence): (B, K, *W) each; for categorical, entropy is (B, 1, *W), between
        0 and log2(K). float64 for float64, else float32. Both are differentiable in `confidence`.

    Edge rules:
        Probabilities outside [0, 1] count as 0 or 1 and have gradient 0. Entropy is exactly 0 at 0 and 1 (at
        infinite logits), where its slope is infinite: the gradient there is that at the smallest normal
        number of the arithmetic, 126 bits in float32. Voxels that are not valid are cut out: NaN there
        changes nothing, and their gradient is 0, as it is wherever no upstream gradient arrives. A valid NaN
        makes the windows that hold it NaN, and no others. `sample_patches` never draws a NaN window.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or option.

    Numerics:
        float32 arithmetic (float64 for float64), summed in it over at most 32 voxels on the CPU and over a
        cell of at most 16 x 16 rows on a GPU, in float64 beyond. No sum is ever subtracted from. From
        logits nothing cancels. Bit-repeatable, on the CPU for any number of threads. Not twice
        differentiable, but for impl="reference".

    Cost:
        Every voxel is read once, backward it is read once and its gradient written. Voxels are added up to
        the cells that window edges cut out (for a stride of 8 and patches of 16, 8 x 8 x 8 voxels), and
        cells to windows axis by axis, at two to four additions per cell whatever the size of a window. A
        layout that is not contiguous costs one copy.

    Source:
        The patch scores of Boserup and Selvan (2023), "Efficient self-supervision using patch-based
        contrastive learning for histopathology image segmentation".
    """
    check_types({"confidence": confidence}, {"mask": mask})
    check_option("mode", mode, _MODES)
    check_volume("confidence", confidence, "(B, K, *S)")
    patch_size = per_axis("patch_size", patch_size, confidence.dim() - 2)
    stride = per_axis("stride", stride, confidence.dim() - 2)
    if type(min_valid) is not float and not is_number(min_valid):
        raise TypeError(f"min_valid must be a number, got {type(min_valid).__name__}")
    if not 0 <= min_valid <= 1:
        raise ValueError(f"min_valid must be in [0, 1], got {min_valid}")
    # Less than a millionth of a voxel is a rounding error of min_valid.
    min_count = max(1, math.ceil(round(min_valid * math.prod(patch_size), 6)))
    arguments = (confidence, mask, patch_size, stride, mode == "categorical", bool(from_logits), min_count)
    if use_fused("patch_entropy", impl, confidence):
        return WindowEntropy(*_patch_entropy(*arguments))
    _check(*arguments)
    return WindowEntropy(*patch_entropy_reference(*arguments))


def _check(confidence, mask, patch_size, stride, categorical, *_: object) -> None:
    check_dtype("confidence", confidence, FLOATS)
    if categorical and confidence.shape[1] == 0:
        raise ValueError(
            f'confidence must have at least one class for mode="categorical", got {tuple(confidence.shape)}'
        )
    check_fits(patch_size, confidence)
    if mask is not None:
        check_dtype("mask", mask, BYTES)
        check_device("mask", mask, "confidence", confidence)
        check_map("mask", mask, "(B, 1, *S)" if categorical else "(B, 1 or K, *S)", confidence, categorical)


def check_fits(patch_size: Sequence[int], volume: Tensor) -> None:
    if any(patch > size for patch, size in zip(patch_size, volume.shape[2:], strict=True)):
        raise ValueError(f"patch_size must fit in {tuple(volume.shape[2:])}, got {tuple(patch_size)}")


def per_axis(name: str, value, axes: int) -> list[int]:
    """One positive number per spatial axis."""
    one_for_all = type(value) is int or isinstance(value, str) or not isinstance(value, Sequence)
    values = [value] * axes if one_for_all else value
    whole: list[int] = [as_int(name, v, "an int or a sequence of ints") for v in values]
    if len(whole) != axes:
        raise ValueError(f"{name} must have {axes} entries, one per spatial axis, got {value!r}")
    for v in whole:
        if not 1 <= v < 2**31:
            raise ValueError(f"{name} must be {'at least 1' if v < 1 else 'below 2**31'}, got {value!r}")
    return whole


@torch.library.register_fake("fastseg::patch_entropy")
def _(values, mask, patch_size, stride, categorical, from_logits, min_count):
    batch, channels, *spatial = values.shape
    windows = [(n - p) // s + 1 for n, p, s in zip(spatial, patch_size, stride, strict=True)]
    of_entropy, of_confidence = (batch, 1 if categorical else channels, *windows), (batch, channels, *windows)
    shapes = (of_entropy, of_confidence, (0,) if mask is None else of_entropy)
    return tuple(values.new_empty(shape, dtype=real_dtype(values)) for shape in shapes)


@torch.library.register_fake("fastseg::patch_entropy_backward")
def _(grad_entropy, grad_confidence, values, *_):
    return values.new_empty(values.shape)


def _save(ctx, inputs, output):
    values, mask, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(values, mask, None if mask is None else output[2])


def _backward(ctx, grad_entropy, grad_confidence, *_):
    if grad_entropy is None and grad_confidence is None:
        return (None,) * 7
    gradient = _patch_entropy_backward(grad_entropy, grad_confidence, *ctx.saved_tensors, *ctx.options)
    return gradient, *(None,) * 6


_patch_entropy = open_doors("patch_entropy", _save, _backward, check=_check, differentiable=2, results=2)
_patch_entropy_backward = open_doors(
    "patch_entropy_backward", backward='patch_entropy has no second gradient; use impl="reference"'
)
