# SPDX-License-Identifier: BSD-3-Clause
"""patch_entropy: mean entropy and mean confidence of every window of a confidence map."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.integers import as_int
from fastseg.ops.masked_bce import dtype_names, is_number
from fastseg.ops.reference.patch_entropy import patch_entropy_reference

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BYTES = (torch.uint8, torch.bool)
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
    _check_tensors(confidence, mask, mode)
    spatial = confidence.shape[2:]
    patch_size = per_axis("patch_size", patch_size, len(spatial))
    stride = per_axis("stride", stride, len(spatial))
    if any(patch > size for patch, size in zip(patch_size, spatial, strict=True)):
        raise ValueError(f"patch_size must fit in {tuple(spatial)}, got {tuple(patch_size)}")
    if type(min_valid) is not float and not is_number(min_valid):
        raise TypeError(f"min_valid must be a number, got {type(min_valid).__name__}")
    if not 0 <= min_valid <= 1:
        raise ValueError(f"min_valid must be in [0, 1], got {min_valid}")
    # Less than a millionth of a voxel is a rounding error of min_valid.
    min_count = max(1, math.ceil(round(min_valid * math.prod(patch_size), 6)))
    arguments = (confidence, mask, patch_size, stride, mode == "categorical", bool(from_logits), min_count)
    if not use_fused("patch_entropy", impl, confidence.device):
        return WindowEntropy(*patch_entropy_reference(*arguments))
    entropy, means, _ = _patch_entropy(*arguments)
    return WindowEntropy(entropy, means)


def _check_tensors(confidence, mask, mode) -> None:
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
    check_tensor("confidence", confidence, _FLOATS)
    if not 3 <= confidence.dim() <= 5:
        raise ValueError(
            f"confidence must be (B, K, *S) with 1 to 3 spatial axes, got {tuple(confidence.shape)}"
        )
    if mode == "categorical" and confidence.shape[1] == 0:
        raise ValueError(
            f'confidence must have at least one class for mode="categorical", got {tuple(confidence.shape)}'
        )
    if mask is None:
        return
    check_tensor("mask", mask, _BYTES, "confidence", confidence)
    batch, channels, *spatial = confidence.shape
    allowed = [1] if mode == "categorical" else [1, channels]
    if tuple(mask.shape) not in [(batch, k, *spatial) for k in allowed]:
        wanted = ", ".join([" or ".join(map(str, dict.fromkeys(allowed))), *map(str, spatial)])
        meaning = "(B, 1, *S)" if mode == "categorical" else "(B, 1 or K, *S)"
        raise ValueError(f"mask must be {meaning} = ({batch}, {wanted}), got {tuple(mask.shape)}")


def check_tensor(
    name: str, tensor, dtypes: tuple[torch.dtype, ...], other_name: str = "", other: Tensor | None = None
) -> None:
    """That `tensor` is one, of one of the dtypes, and on the device of `other`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {dtype_names(dtypes)}, got {dtype_names((tensor.dtype,))}")
    if other is not None and tensor.device != other.device:
        raise ValueError(f"{name} must be on {other.device}, where {other_name} is, got {tensor.device}")


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
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device=values.device)

    of_entropy = (batch, 1 if categorical else channels, *windows)
    return (
        empty(*of_entropy),
        empty(batch, channels, *windows),
        empty(*((0,) if mask is None else of_entropy)),
    )


@torch.library.register_fake("fastseg::patch_entropy_backward")
def _(grad_entropy, grad_confidence, values, *_):
    return torch.empty(values.shape, dtype=values.dtype, device=values.device)


def _save(ctx, inputs, output):
    values, mask, *ctx.options = inputs
    counts = output[2]
    if counts is not None:
        ctx.mark_non_differentiable(counts)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(values, mask, None if mask is None else counts)


def _backward(ctx, grad_entropy, grad_confidence, _):
    if grad_entropy is None and grad_confidence is None:
        return (None,) * 7
    gradient = _patch_entropy_backward(grad_entropy, grad_confidence, *ctx.saved_tensors, *ctx.options)
    return gradient, *(None,) * 6


def _no_second_gradient(ctx, *grads):
    raise NotImplementedError('patch_entropy has no second gradient; use impl="reference"')


_patch_entropy = open_doors("patch_entropy", _save, _backward)
_patch_entropy_backward = open_doors("patch_entropy_backward", None, _no_second_gradient)
