# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce: binary cross-entropy with logits where labels are sparse and partly pseudo-labels."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops.checks import (
    BYTES,
    FLOATS,
    check_device,
    check_dtype,
    check_map,
    check_option,
    check_shape,
    check_types,
    check_volume,
    empty_like,
    is_number,
    name_of,
    real_dtype,
)
from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.reference.masked_bce import masked_bce_reference

MODES = {name: int(value) for name, value in _C.BceNormalize.__members__.items()}
_REDUCTIONS = ("mean", "sum", "none")  # of which the last two are modes, too
_NORMALIZE = tuple(name for name in MODES if name not in _REDUCTIONS)
_NONE = MODES["none"]
_OR_NONE = (Tensor, type(None))


class BCETerms(NamedTuple):
    """The loss, and what it is made of, detached: mean losses and voxel counts of both sources."""

    loss: Tensor
    labelled: Tensor
    pseudo: Tensor
    labelled_count: Tensor
    pseudo_count: Tensor


def masked_weighted_bce(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    pseudo_weight: float = 1.0,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    normalize: str = "voxels",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """Binary cross-entropy with logits over labelled and pseudo-labelled voxels, in one pass and without a
    weight map.

    For logit z, target y, pos_weight p::

        l = (1 - y) * softplus(z) + p * y * softplus(-z)
        w = weight * {0: 0, 1: 1, 2: pseudo_weight}[mask]
        loss = sum(w * l) / N

    Args:
        logits: (B, C, *S) with 1 to 3 spatial axes, float32, float64, bfloat16 or float16.
        target: the shape of logits; bool or uint8 (anything but 0 is foreground), or a float in [0, 1].
        mask: (B, 1 or C, *S), uint8 or bool: 0 ignored, 1 labelled, 2 pseudo-labelled. Any other code is
            ignored too: values are not read back to be checked. None: all labelled.
        pseudo_weight: finite, at least 0: the weight of a pseudo-labelled voxel against a labelled one.
        weight: (B, 1 or C, *S), floating: a further factor per voxel.
        pos_weight: (C,), floating: a factor of the foreground term per channel.
        normalize: what "mean" divides by: "voxels", N = logits.numel(); "weight", N = sum(w); "terms",
            the mean over the labelled voxels + pseudo_weight * the mean over the pseudo-labelled ones.
        reduction: "mean", "sum" (N = 1) or "none" (w * l of every voxel, in the dtype of logits).
        impl: "auto" (the fused kernel where there is one, else the reference), "fused" or "reference".

    Returns:
        The loss, float64 for float64 logits, else float32; or the map for reduction="none".

    Edge rules:
        Ignored voxels are cut out: NaN or inf there, in any argument, changes nothing, and their gradient is
        0. With pseudo_weight=0 that holds for the pseudo-labelled voxels too. Elsewhere NaN propagates, and
        so does inf where the formula gives NaN (0 * inf). Nothing to sum (an empty batch, all ignored, or a
        sum of weights of 0): loss 0, gradient 0.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or option; also when target, weight or
            pos_weight requires a gradient, which only impl="reference" gives.

    Numerics:
        float32 arithmetic (float64 for float64 logits), summed in float32 over at most 1024 voxels and in
        float64 beyond. Bit-repeatable, and on the CPU the same for any number of threads. Twice
        differentiable only with impl="reference". torch.compile takes it into one graph and recompiles for
        every new pseudo_weight: keep a loss whose pseudo_weight is ramped out of the compiled part.

    Cost:
        bfloat16 logits with uint8 target and mask: 4 bytes read per voxel forward; 4 read and 2 written
        backward, and nothing is stored per voxel in between. Contiguous and channels_last(_3d) tensors are
        read in place; any other layout, or a layout other than that of logits, costs one copy.

    Source:
        The masked, weighted loss of sparsely supervised 2D-to-3D training; divided by all voxels, as there,
        unless `normalize` says otherwise. pos_weight as in torch.nn.BCEWithLogitsLoss.
    """
    tensors = (logits, target, mask, weight, pos_weight)
    return run(masked_bce, tensors, pseudo_weight, normalize, reduction, impl)[0]


def masked_weighted_bce_terms(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    pseudo_weight: float = 1.0,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    normalize: str = "voxels",
    reduction: str = "mean",
    impl: str = "auto",
) -> BCETerms:
    """`masked_weighted_bce` together with what it is made of, for logging, from the same pass.

    Arguments are those of `masked_weighted_bce`; reduction="none" takes a second pass.

    Returns:
        BCETerms(loss, labelled, pseudo, labelled_count, pseudo_count): the loss; the mean of weight * l over
        the labelled and over the pseudo-labelled voxels, without pseudo_weight, 0 where there are none; and
        the number of each. All but the loss are detached.
    """
    tensors = (logits, target, mask, weight, pos_weight)
    loss, stats = run(masked_bce.whole, tensors, pseudo_weight, normalize, reduction, impl)
    if reduction == "none":
        with torch.no_grad():
            _, stats = run(masked_bce.whole, tensors, pseudo_weight, normalize, "sum", impl)
    sums, counts = stats[0:2], stats[4:6]
    means = (sums / counts.clamp(min=1)).to(real_dtype(logits))
    counts = counts.long()
    return BCETerms(loss, means[0], means[1], counts[0], counts[1])


def run(op: Any, tensors: tuple[Any, Any, Any, Any, Any], pseudo_weight, normalize, reduction, impl) -> Any:
    """The loss, and by the whole `op` its stats."""
    logits, target, mask, weight, pos_weight = tensors
    check_arguments(logits, target, mask, weight, pos_weight, pseudo_weight, normalize, reduction)
    mode = normalize if reduction == "mean" else reduction
    if use_fused("masked_bce", impl, logits):
        if target.requires_grad or weight is not None or pos_weight is not None:
            check_no_grad(impl, target=target, weight=weight, pos_weight=pos_weight)
        return op(logits, target, mask, weight, pos_weight, pseudo_weight, MODES[mode])
    check_tensors(*tensors)
    return masked_bce_reference(*tensors, pseudo_weight, mode)


def check_arguments(logits, target, mask, weight, pos_weight, pseudo_weight, normalize, reduction) -> None:
    """What neither C++ nor torch.library would name."""
    required = isinstance(logits, Tensor) and isinstance(target, Tensor)
    if not (required and isinstance(mask, _OR_NONE) and weight is None and pos_weight is None):
        maps = {"mask": mask, "weight": weight, "pos_weight": pos_weight}
        check_types({"logits": logits, "target": target}, maps)
    check_options(pseudo_weight, normalize, reduction)


def check_options(pseudo_weight: float, normalize: str, reduction: str) -> None:
    if type(pseudo_weight) is not float and not is_number(pseudo_weight):
        raise TypeError(f"pseudo_weight must be a number, got {type(pseudo_weight).__name__}")
    if not 0 <= pseudo_weight < math.inf:
        raise ValueError(f"pseudo_weight must be finite and at least 0, got {pseudo_weight}")
    if normalize not in _NORMALIZE or reduction not in _REDUCTIONS:
        check_option("normalize", normalize, _NORMALIZE)
        check_option("reduction", reduction, _REDUCTIONS)


def check_no_grad(impl: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, which the fused kernel gives only for logits: "
                f'pass {name}.detach(), or impl="reference"'
            )


def check_tensors(logits, target, mask, weight, pos_weight, *_: object) -> None:
    check_dtype("logits", logits, FLOATS)
    check_volume("logits", logits)
    if target.dtype not in BYTES + FLOATS:
        raise TypeError(
            f"target must be bool, uint8 or floating, got {name_of(target.dtype)}; pass labels of 0 and 1 as "
            "target.to(torch.uint8)"
        )
    check_device("target", target, "logits", logits)
    check_shape("target", target, "the shape of logits", logits.shape)
    for name, tensor, dtypes in (("mask", mask, BYTES), ("weight", weight, FLOATS)):
        if tensor is not None:
            check_dtype(name, tensor, dtypes)
            check_device(name, tensor, "logits", logits)
            check_map(name, tensor, "(B, 1 or C, *S)", logits)
    if pos_weight is not None:
        check_dtype("pos_weight", pos_weight, FLOATS)
        check_device("pos_weight", pos_weight, "logits", logits)
        check_shape("pos_weight", pos_weight, "(C,)", (logits.shape[1],))


@torch.library.register_fake("fastseg::masked_bce")
def _(logits, target, mask, weight, pos_weight, pseudo_weight, normalize):
    loss = empty_like(logits) if normalize == _NONE else logits.new_empty((), dtype=real_dtype(logits))
    return loss, logits.new_empty(0 if normalize == _NONE else 8, dtype=torch.float64)


@torch.library.register_fake("fastseg::masked_bce_backward")
def _(grad, logits, *_):
    return empty_like(logits)


def _save(ctx, inputs, output):
    *tensors, ctx.pseudo_weight, mode = inputs
    ctx.save_for_backward(*tensors, None if mode == _NONE else output[1])


def _backward(ctx, grad, *_):
    grad_logits = None if grad is None else masked_bce_backward(grad, *ctx.saved_tensors, ctx.pseudo_weight)
    return grad_logits, None, None, None, None, None, None


masked_bce = open_doors("masked_bce", _save, _backward, check=check_tensors, differentiable=1, results=1)
masked_bce_backward = open_doors(
    "masked_bce_backward", backward='masked_weighted_bce has no second gradient; use impl="reference"'
)
