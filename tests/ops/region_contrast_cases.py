# SPDX-License-Identifier: BSD-3-Clause
"""Random arguments for the tests of region_contrast, what one writes in torch instead, and the implementations."""

import pytest
import torch
import torch.nn.functional as F

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
implementations = pytest.mark.parametrize(
    ("impl", "device"), [(impl, device) for device in DEVICES for impl in ("fused", "reference")]
)
SIMILARITIES = ("cosine", "dot", "neg_mse")
DENOMINATORS = ("all", "negatives")


def make_case(
    rows, size, dtype=torch.float32, bank=None, classes=8, groups=None, absent=True, device="cpu", seed=0
):
    """`rows` anchors and, if given, `bank` candidates; with absent some take no part."""
    draw = torch.Generator().manual_seed(seed)
    lowest = -1 if absent else 0
    case = {}
    for side, count in (("anchor", rows), ("bank", bank)):
        if count is None:
            continue
        values = torch.randn(count, size, generator=draw, dtype=torch.float64).to(dtype)
        case["anchors" if side == "anchor" else side] = values
        case[f"{side}_ids"] = torch.randint(lowest, classes, (count,), generator=draw)
        if groups:
            case[f"{side}_groups"] = torch.randint(0, groups, (count,), generator=draw)
    return {name: value.to(device) for name, value in case.items()}


def exact(case):
    return {name: value.double() if value.is_floating_point() else value for name, value in case.items()}


def run(function, case, weights=None, temperature=0.5, **options):
    """Loss and gradients of anchors, bank and temperature; losses per row are contracted with `weights`."""
    case = dict(case)
    dtype = torch.float64 if case["anchors"].dtype == torch.float64 else torch.float32
    number = torch.tensor(temperature, dtype=dtype, device=case["anchors"].device)
    inputs = {name: case[name].detach().clone() for name in ("anchors", "bank") if name in case}
    inputs["temperature"] = number
    for value in inputs.values():
        value.requires_grad_()
    loss = function(**{**case, **inputs}, **options)
    total = (loss * weights.to(loss)).sum() if loss.dim() else loss
    gradients = torch.autograd.grad(total, list(inputs.values()))
    return [loss.detach(), *gradients]


def eager(
    anchors,
    bank=None,
    *,
    anchor_ids,
    bank_ids=None,
    anchor_groups=None,
    bank_groups=None,
    temperature,
    similarity,
    denominator,
    reduction,
):
    """What one writes in torch today: the whole matrix, in the dtype of anchors."""
    own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device) if bank is None else False
    if bank is None:
        bank, bank_ids, bank_groups = anchors, anchor_ids, anchor_groups
    # Rows that take no part are dropped first.
    from_rows, to_rows = anchor_ids >= 0, bank_ids >= 0
    if own is not False:
        own = own[from_rows][:, to_rows]
    ids, others = anchor_ids[from_rows, None], bank_ids[None, to_rows]
    positive = (ids == others) & ~torch.as_tensor(own, device=anchors.device)
    negative = ids != others
    if anchor_groups is not None:
        negative &= anchor_groups[from_rows, None] == bank_groups[None, to_rows]
    a, b = anchors[from_rows], bank[to_rows]
    if similarity == "cosine":
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    if similarity == "neg_mse":
        s = -(a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T) / a.shape[1]
    else:
        s = a @ b.T
    z = s / temperature.to(s.dtype)
    counted = negative if denominator == "negatives" else negative | positive
    has_loss = positive.any(1) & counted.any(1)
    z, positive, counted = z[has_loss], positive[has_loss], counted[has_loss]
    log_sum = z.masked_fill(~counted, -torch.inf).logsumexp(1)
    each = log_sum - (z * positive).sum(1) / positive.sum(1)
    if reduction == "none":
        rows = torch.arange(len(anchors), device=anchors.device)[from_rows][has_loss]
        return torch.zeros(len(anchors), dtype=each.dtype, device=anchors.device).index_put((rows,), each)
    return each.sum() / (max(len(each), 1) if reduction == "mean" else 1)
