# SPDX-License-Identifier: BSD-3-Clause
"""The ops under torch.func.vmap: one call with a larger batch where samples do not mix, else a call per sample."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastseg import _C

# Every tensor that goes in or comes out has the batch as its first axis: the mapped axis joins it.
_BY_SAMPLE = (
    "region_pool",
    "region_pool_backward",
    "soft_region_pool",
    "patch_entropy",
    "patch_entropy_crops",
)

# A loss of all samples, or numbers drawn by the place in the batch.
_ONE_BY_ONE = (
    "masked_bce_backward",
    "patch_entropy_backward",
    "patch_entropy_crops_backward",
    "patch_entropy_sample",
    "region_contrast",
    "region_contrast_backward",
    "soft_region_pool_backward",
)


def _joined(info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """The arguments with the mapped axis in the batch; what is not mapped is repeated."""
    joined = []
    for dim, value in zip(in_dims, args, strict=True):
        if isinstance(value, Tensor):
            mapped = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            value = mapped.flatten(0, 1)
        joined.append(value)
    return joined


def _in_one_call(op: Any) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        found = op(*_joined(info, in_dims, args))
        parts = (found,) if isinstance(found, Tensor) else found
        # A result that was not asked for has shape (0,), whatever the batch.
        dims = tuple(None if part.shape == (0,) else 0 for part in parts)
        parts = tuple(
            part if dim is None else part.unflatten(0, (info.batch_size, -1))
            for part, dim in zip(parts, dims, strict=True)
        )
        return (parts[0], dims[0]) if isinstance(found, Tensor) else (parts, dims)

    return rule


def _one_by_one(op: Any) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        def argument(dim: int | None, value: Any, i: int) -> Any:
            return value.select(dim, i) if isinstance(value, Tensor) and dim is not None else value

        found = [
            op(*(argument(dim, value, i) for dim, value in zip(in_dims, args, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        parts = tuple(torch.stack(part) for part in zip(*found, strict=True))
        return parts, (0,) * len(parts)

    return rule


def _masked_bce(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    op, pos_weight, mode = torch.ops.fastseg.masked_bce, 4, args[6]
    if (
        mode != int(_C.BceNormalize.__members__["none"]) or in_dims[pos_weight] is not None
    ):  # (C,), one for all samples of a call
        return _one_by_one(op)(info, in_dims, *args)
    joined = _joined(info, in_dims, args)
    joined[pos_weight] = args[pos_weight]
    loss, stats = op(*joined)
    return (loss.unflatten(0, (info.batch_size, -1)), stats), (0, None)


for _names, _rule in ((_BY_SAMPLE, _in_one_call), (_ONE_BY_ONE, _one_by_one)):
    for _name in _names:
        torch.library.register_vmap(f"fastseg::{_name}", _rule(getattr(torch.ops.fastseg, _name)))
torch.library.register_vmap("fastseg::masked_bce", _masked_bce)
