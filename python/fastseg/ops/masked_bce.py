# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce: binary cross-entropy with logits where labels are sparse and partly pseudo-labels."""

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.reference.masked_bce import masked_bce_map_reference, masked_bce_reference

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BYTES = (torch.uint8, torch.bool)
_OR_NONE = (Tensor, type(None))
NORMALIZE = {name: int(value) for name, value in _C.BceNormalize.__members__.items()}
_NORMALIZE = tuple(name for name in NORMALIZE if name != "sum")  # which is a reduction here


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
    options = (pseudo_weight, normalize, reduction)
    tensors = (logits, target, mask, weight, pos_weight)
    check_types(*tensors)
    check_options(*options)
    if reduction == "none":
        return _map(*tensors, pseudo_weight, impl)
    return _reduced(*tensors, *options, impl)[0]


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
    check_types(*tensors)
    check_options(pseudo_weight, normalize, reduction)
    if reduction == "none":
        loss = _map(*tensors, pseudo_weight, impl)
        with torch.no_grad():
            _, stats = _reduced(*tensors, pseudo_weight, normalize, "sum", impl)
    else:
        loss, stats = _reduced(*tensors, pseudo_weight, normalize, reduction, impl)
    sums, counts = stats[0:2], stats[4:6]
    means = (sums / counts.clamp(min=1)).to(loss_dtype(logits))
    counts = counts.long()
    return BCETerms(loss, means[0], means[1], counts[0], counts[1])


def loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _reduced(logits, target, mask, weight, pos_weight, pseudo_weight, normalize, reduction, impl):
    mode = "sum" if reduction == "sum" else normalize
    if not use_fused("masked_bce", impl, logits.device):
        check_tensors(logits, target, mask, weight, pos_weight)
        return masked_bce_reference(logits, target, mask, weight, pos_weight, pseudo_weight, mode)
    if target.requires_grad or weight is not None or pos_weight is not None:
        check_no_grad(impl, target=target, weight=weight, pos_weight=pos_weight)
    return masked_bce(logits, target, mask, weight, pos_weight, pseudo_weight, NORMALIZE[mode])


def _map(logits, target, mask, weight, pos_weight, pseudo_weight, impl):
    if not use_fused("masked_bce", impl, logits.device):
        check_tensors(logits, target, mask, weight, pos_weight)
        return masked_bce_map_reference(logits, target, mask, weight, pos_weight, pseudo_weight)
    check_no_grad(impl, target=target, weight=weight, pos_weight=pos_weight)
    return _masked_bce_map(logits, target, mask, weight, pos_weight, pseudo_weight)


def check_no_grad(impl: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, which the fused kernel gives only for logits: "
                f'pass {name}.detach(), or impl="reference"'
            )


def check_types(
    logits: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | None, pos_weight: Tensor | None
) -> None:
    required = isinstance(logits, Tensor) and isinstance(target, Tensor)
    if required and isinstance(mask, _OR_NONE) and weight is None and pos_weight is None:
        return  # as most calls are
    given = {"logits": logits, "target": target, "mask": mask, "weight": weight, "pos_weight": pos_weight}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) and (tensor is not None or name in ("logits", "target")):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def check_tensors(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    *_: object,
) -> None:
    """What C++ checks, for the reference and for tensors that C++ does not see: fake ones of a tracer."""
    _check_tensor("logits", logits, _FLOATS, logits)
    if not 3 <= logits.dim() <= 5:
        raise ValueError(f"logits must be (B, C, *S) with 1 to 3 spatial axes, got {tuple(logits.shape)}")
    if target.dtype not in _BYTES + _FLOATS:
        raise TypeError(
            f"target must be bool, uint8 or floating, got {_name(target.dtype)}; pass labels of 0 and 1 as "
            "target.to(torch.uint8)"
        )
    _check_tensor("target", target, _BYTES + _FLOATS, logits)
    if target.shape != logits.shape:
        raise ValueError(
            f"target must be the shape of logits = {tuple(logits.shape)}, got {tuple(target.shape)}"
        )
    for name, tensor, dtypes in (("mask", mask, _BYTES), ("weight", weight, _FLOATS)):
        if tensor is None:
            continue
        _check_tensor(name, tensor, dtypes, logits)
        batch, channels, *spatial = logits.shape
        if tuple(tensor.shape) not in ((batch, 1, *spatial), (batch, channels, *spatial)):
            expected = ", ".join(["1" if channels == 1 else f"1 or {channels}", *map(str, spatial)])
            raise ValueError(
                f"{name} must be (B, 1 or C, *S) = ({batch}, {expected}), got {tuple(tensor.shape)}"
            )
    if pos_weight is not None:
        _check_tensor("pos_weight", pos_weight, _FLOATS, logits)
        if tuple(pos_weight.shape) != (logits.shape[1],):
            raise ValueError(f"pos_weight must be (C,) = ({logits.shape[1]},), got {tuple(pos_weight.shape)}")


def is_number(value: object) -> bool:
    return isinstance(value, numbers.Real | torch.SymFloat) and not isinstance(value, bool)


def check_options(pseudo_weight: float, normalize: str, reduction: str) -> None:
    if type(pseudo_weight) is not float and not is_number(pseudo_weight):
        raise TypeError(f"pseudo_weight must be a number, got {type(pseudo_weight).__name__}")
    if not 0 <= pseudo_weight < math.inf:
        raise ValueError(f"pseudo_weight must be finite and at least 0, got {pseudo_weight}")
    if normalize not in _NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(_NORMALIZE)}, got {normalize!r}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be one of mean, sum, none, got {reduction!r}")


def _check_tensor(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], logits: Tensor) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {dtype_names(dtypes)}, got {_name(tensor.dtype)}")
    if tensor.device != logits.device:
        raise ValueError(f"{name} must be on {logits.device}, where logits is, got {tensor.device}")


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    *first, last = map(_name, dtypes)
    return f"{', '.join(first)} or {last}" if first else last


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _empty_map(logits: Tensor) -> Tensor:
    """A map as the kernels allocate it: channels last where logits is, else contiguous."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(logits.dim())
    if channels_last and not logits.is_contiguous() and logits.is_contiguous(memory_format=channels_last):
        return torch.empty(
            logits.shape, dtype=logits.dtype, device=logits.device, memory_format=channels_last
        )
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@torch.library.register_fake("fastseg::masked_bce")
def _(logits, target, mask, weight, pos_weight, pseudo_weight, normalize):
    stats = torch.empty(8, dtype=torch.float64, device=logits.device)
    return torch.empty((), dtype=loss_dtype(logits), device=logits.device), stats


@torch.library.register_fake("fastseg::masked_bce_map")
def _(logits, target, mask, weight, pos_weight, pseudo_weight):
    return _empty_map(logits)


@torch.library.register_fake("fastseg::masked_bce_backward")
def _(grad, logits, target, mask, weight, pos_weight, scale, pseudo_weight):
    return _empty_map(logits)


def _save(ctx, inputs, output):
    logits, target, mask, weight, pos_weight, ctx.pseudo_weight = inputs[:6]
    scale = None
    if isinstance(output, tuple):
        _, stats = output
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        scale = stats
    ctx.save_for_backward(logits, target, mask, weight, pos_weight, scale)


def _backward(ctx, grad, *_):
    logits, target, mask, weight, pos_weight, stats = ctx.saved_tensors
    inputs = 6 if stats is None else 7
    if grad is None:
        return (None,) * inputs
    grad_logits = masked_bce_backward(
        grad, logits, target, mask, weight, pos_weight, stats, ctx.pseudo_weight
    )
    return grad_logits, *(None,) * (inputs - 1)


def _no_second_gradient(ctx, *grads):
    raise NotImplementedError('masked_weighted_bce has no second gradient; use impl="reference"')


masked_bce = open_doors("masked_bce", _save, _backward, check_tensors)
_masked_bce_map = open_doors("masked_bce_map", _save, _backward, check_tensors)
masked_bce_backward = open_doors("masked_bce_backward", None, _no_second_gradient)
