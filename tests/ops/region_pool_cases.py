# SPDX-License-Identifier: BSD-3-Clause
"""Random arguments for the tests of region pooling, and what one writes in torch today."""

import torch

from .masked_bce_cases import CHANNELS_LAST

REDUCE = ["sum", "mean", "var", "min", "max"]


def lay_out(tensor, layout):
    """The same values: contiguous, channels last where there is such a layout, or neither."""
    if layout == "channels_last" and tensor.dim() > 3:
        return tensor.to(memory_format=CHANNELS_LAST[tensor.dim()])
    if layout == "strided":
        return torch.stack([tensor, tensor], -1)[..., 0].transpose(0, 1).contiguous().transpose(0, 1)
    return tensor


def make_labels(shape, num_regions, labels, label_dtype, seed=0):
    """(B, *S): random, in blocks, or one region; some out of range on both sides where the dtype allows."""
    draw = torch.Generator().manual_seed(seed)
    if labels == "one":
        return torch.full(shape, num_regions // 2).to(label_dtype)
    ids = torch.randint(-2, num_regions + 2, shape, generator=draw)
    if labels == "blocks":  # runs of up to 11 voxels
        ids = ids[..., ::11].repeat_interleave(11, -1)[..., : shape[-1]].contiguous()
    if label_dtype in (torch.uint8, torch.int8):
        ids = ids.clamp(max=127)
    return ids.to(label_dtype) if label_dtype.is_signed else ids.clamp(min=0).to(label_dtype)


def make_case(shape, dtype, num_regions, labels, label_dtype, layout, device="cpu", seed=0):
    draw = torch.Generator().manual_seed(seed)
    features = lay_out((torch.randn(shape, generator=draw) + 0.5).to(dtype), layout)
    regions = make_labels((shape[0], *shape[2:]), num_regions, labels, label_dtype, seed)
    return features.to(device), regions.to(device)


def eager(features, regions, num_regions, reduce):
    """Permute, expand the index, scatter: in the dtype that the op answers in."""
    real = torch.float64 if features.dtype == torch.float64 else torch.float32
    rows = features.to(real).flatten(2).transpose(1, 2)
    ids = regions.flatten(1).to(torch.int64)
    ids = torch.where((ids < 0) | (ids >= num_regions), num_regions, ids).unsqueeze(-1).expand_as(rows)
    empty = rows.new_zeros(rows.shape[0], num_regions + 1, rows.shape[2])
    if reduce in ("min", "max"):
        return empty.scatter_reduce(1, ids, rows, f"a{reduce}", include_self=False)[:, :num_regions]
    if reduce in ("sum", "mean"):
        return empty.scatter_reduce(1, ids, rows, reduce, include_self=False)[:, :num_regions]
    mean = empty.scatter_reduce(1, ids, rows, "mean", include_self=False)
    distance = (rows - mean.gather(1, ids)).square()
    return empty.scatter_reduce(1, ids, distance, "mean", include_self=False)[:, :num_regions]


def make_soft_case(shape, dtype, parts, assignment_dtype, grey, layout, device="cpu", seed=0):
    """features, assignment (logits) and grey or None."""
    draw = torch.Generator().manual_seed(seed)

    def normal(channels, dtype):
        return torch.randn((shape[0], channels, *shape[2:]), generator=draw).to(dtype)

    tensors = [normal(shape[1], dtype), normal(parts, assignment_dtype), normal(1, dtype) if grey else None]
    return [None if tensor is None else lay_out(tensor, layout).to(device) for tensor in tensors]


def soft_eager(features, assignment, grey, from_logits, variance):
    """mass, mean, variance, grey mean and grey variance by softmax and einsum."""
    real = torch.promote_types(torch.promote_types(features.dtype, assignment.dtype), torch.float32)
    weights = assignment.to(real).flatten(2)
    weights = weights.softmax(1) if from_logits else weights
    mass = weights.sum(-1)
    results = [mass]
    for values, spread in ((features, variance), (grey, True)):
        if values is None:
            results += [None, None]
            continue
        values = values.to(real).flatten(2)
        mean = torch.einsum("bkn,bcn->bkc", weights, values) / mass.unsqueeze(-1)
        distance = (values.unsqueeze(1) - mean.unsqueeze(-1)).square()
        results += [
            mean,
            torch.einsum("bkn,bkcn->bkc", weights, distance) / mass.unsqueeze(-1) if spread else None,
        ]
    return results
