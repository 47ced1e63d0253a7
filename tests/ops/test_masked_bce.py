# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce computes what it says: by hand, by a loop, and against float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastseg import masked_weighted_bce, masked_weighted_bce_terms

from .masked_bce_cases import implementations, make_case
from .pairs import all_pairs
from .tolerances import EXACT, assert_close_to_truth

LN2, LN3 = math.log(2), math.log(3)


# sigmoid(ln 3) = 3/4, softplus(ln 3) = ln 4, softplus(-ln 3) = ln 4/3; softplus(0) = ln 2.
L0, L1 = math.log(4), math.log(4 / 3)
TABLE = {  # name: logits, target, options, loss, gradient; all (1, 1, n), or (1, 2, n) with two rows
    "background": ([LN3], [0.0], {}, L0, [0.75]),
    "foreground": ([LN3], [1.0], {}, L1, [-0.25]),
    "negative logit": ([-LN3], [0.0], {}, L1, [0.25]),
    "zero logit": ([0.0], [1.0], {}, LN2, [-0.5]),
    "soft target": ([LN3], [0.5], {}, (L0 + L1) / 2, [0.25]),
    "far right": ([200.0], [0.0], {}, 200.0, [1.0]),
    "far left": ([-200.0], [1.0], {}, 200.0, [-1.0]),
    "right and sure": ([200.0], [1.0], {}, 0.0, [0.0]),
    "pos_weight": ([LN3, LN3], [1.0, 0.0], {"pos_weight": [3.0]}, (3 * L1 + L0) / 2, [-0.375, 0.375]),
    "pos_weight per channel": (
        [[LN3], [LN3]],
        [[1.0], [1.0]],
        {"pos_weight": [1.0, 3.0]},
        2 * L1,
        [[-0.125], [-0.375]],
    ),
    "voxels": (
        [LN3] * 4,
        [0.0] * 4,
        {"mask": [0, 1, 2, 3], "pseudo_weight": 0.5},
        1.5 * L0 / 4,
        [0, 0.75 / 4, 0.375 / 4, 0],
    ),
    "weight": (
        [LN3] * 3,
        [0.0] * 3,
        {"mask": [1, 2, 0], "pseudo_weight": 0.5, "normalize": "weight"},
        L0,
        [0.5, 0.25, 0],
    ),
    "terms": (
        [LN3] * 4,
        [0.0, 1.0, 0.0, 0.0],
        {"mask": [1, 1, 2, 0], "pseudo_weight": 0.5, "normalize": "terms"},
        (L0 + L1) / 2 + L0 / 2,
        [0.375, -0.125, 0.375, 0],
    ),
    "terms without pseudo": ([LN3] * 2, [0.0] * 2, {"mask": [1, 0], "normalize": "terms"}, L0, [0.75, 0]),
    "sum": (
        [LN3] * 2,
        [0.0] * 2,
        {"mask": [1, 2], "pseudo_weight": 2.0, "reduction": "sum"},
        3 * L0,
        [0.75, 1.5],
    ),
    "extra weight": (
        [LN3] * 2,
        [0.0] * 2,
        {"weight": [3.0, 0.5], "mask": [1, 2], "pseudo_weight": 2.0, "normalize": "weight"},
        L0,
        [0.75 * 3 / 4, 0.75 / 4],
    ),
    "mask shared by channels": (
        [[LN3, LN3], [LN3, LN3]],
        [[0.0, 0.0], [1.0, 1.0]],
        {"mask": [1, 0], "normalize": "weight"},
        (L0 + L1) / 2,
        [[0.375, 0], [-0.125, 0]],
    ),
    "all ignored": ([LN3], [0.0], {"mask": [0], "normalize": "weight"}, 0.0, [0.0]),
    "weights of zero": ([LN3], [0.0], {"weight": [0.0], "normalize": "weight"}, 0.0, [0.0]),
    "pseudo weight of zero": ([math.nan], [0.0], {"mask": [2], "pseudo_weight": 0.0}, 0.0, [0.0]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TABLE)
@implementations
def test_by_hand(name, dtype, impl, device):
    values, target, options, loss, gradient = TABLE[name]

    def tensor(values, dtype=dtype):
        values = torch.tensor(values, dtype=dtype, device=device)
        return values.reshape(1, -1, values.shape[-1])

    options = dict(options)
    if "mask" in options:
        options["mask"] = tensor(options["mask"], torch.uint8)
    if "weight" in options:
        options["weight"] = tensor(options["weight"])
    if "pos_weight" in options:
        options["pos_weight"] = torch.tensor(options["pos_weight"], device=device)
    logits = tensor(values).requires_grad_()
    result = masked_weighted_bce(logits, tensor(target), impl=impl, **options)
    result.backward()
    relative, absolute = EXACT[dtype]
    assert result.item() == pytest.approx(loss, rel=relative, abs=absolute)
    torch.testing.assert_close(logits.grad, tensor(gradient), rtol=relative, atol=absolute)


def eager(logits, target, mask=None, *, weight=None, pos_weight=None, pseudo_weight, normalize, reduction):
    """What one writes in torch today: a weight map, and everything in the dtype of logits."""
    dtype, ones = logits.dtype, torch.ones_like(logits)
    codes = ones.to(torch.uint8) if mask is None else mask.to(torch.uint8).expand_as(logits)
    extra = ones if weight is None else weight.to(dtype)
    w = torch.where(codes == 1, 1.0, torch.where(codes == 2, pseudo_weight, 0.0)).to(dtype) * extra
    if pos_weight is not None:
        pos_weight = pos_weight.to(dtype).view(-1, *[1] * (logits.dim() - 2))
    each = F.binary_cross_entropy_with_logits(
        logits, target.to(dtype), pos_weight=pos_weight, reduction="none"
    )
    if reduction == "none":
        return w * each
    if reduction == "sum" or normalize == "voxels":
        return (w * each).sum() / (1 if reduction == "sum" else logits.numel())
    if normalize == "weight":
        return (w * each).sum() / w.sum()
    terms = [((codes == code) * extra * each).sum() / (codes == code).sum().clamp(min=1) for code in (1, 2)]
    return terms[0] + pseudo_weight * terms[1]


SHAPES = [
    (2, 3, 5, 7, 11),
    (1, 1, 4, 8, 64),
    (2, 2, 33, 65),
    (3, 4, 50),
    (1, 5, 1, 1),
    (2, 1, 1),
    (1, 2, 20, 41, 30),
]
FACTORS = {
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
    "target": ["bool", "uint8", "soft", torch.float64, torch.float16],
    "mask": [None, "shared", "full", "bool"],
    "weight": [None, "shared", "full"],
    "pos_weight": [False, True],
    "shape": SHAPES,
    "layout": ["contiguous", "channels_last", "strided", "target differs"],
    "reduction": ["voxels", "weight", "terms", "sum", "none"],
    "pseudo_weight": [1.0, 0.25, 0.0],
}
CASES = all_pairs(FACTORS)


def run(function, case, weights, **options):
    """Loss and gradient; a map is contracted with `weights`, so that its gradient is not all ones."""
    logits = case["logits"].detach().clone().requires_grad_()
    result = function(**{**case, "logits": logits}, **options)
    (gradient,) = torch.autograd.grad((result * weights.to(result)).sum() if result.dim() else result, logits)
    return result.detach(), gradient


@pytest.mark.parametrize("number", range(len(CASES)))
@implementations
def test_against_float64(number, impl, device):
    options = dict(CASES[number])
    normalize, pseudo_weight = options.pop("reduction"), options.pop("pseudo_weight")
    reduction = normalize if normalize in ("sum", "none") else "mean"
    options |= {"device": device, "seed": number}
    case = make_case(**options)
    settings = {
        "pseudo_weight": pseudo_weight,
        "normalize": "voxels" if reduction != "mean" else normalize,
        "reduction": reduction,
    }
    weights = torch.linspace(0.5, 1, case["logits"].numel()).view(options["shape"])
    exact = {name: value.double() if value.is_floating_point() else value for name, value in case.items()}
    truth = run(masked_weighted_bce, exact, weights, impl="reference", **settings)
    torchs = run(eager, case, weights, **settings)
    ours = run(lambda **kw: masked_weighted_bce(impl=impl, **kw), case, weights, **settings)
    for value, of_torch, true in zip(ours, torchs, truth, strict=True):
        assert_close_to_truth("masked_bce", value, of_torch, true)
    assert ours[1].dtype == case["logits"].dtype


@implementations
def test_definition_as_a_loop(impl, device):
    shape, pseudo_weight = (2, 2, 3, 5), 0.3
    case = make_case(shape, torch.float64, "soft", "shared", "full", True, "contiguous", device, seed=7)
    sums, weights, counts = [0.0, 0.0], [0.0, 0.0], [0, 0]
    for b, c, h, w in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        z, y = case["logits"][b, c, h, w].item(), case["target"][b, c, h, w].item()
        source = case["mask"][b, 0, h, w].item() - 1
        if source not in (0, 1):
            continue
        extra = case["weight"][b, c, h, w].item()
        p = case["pos_weight"][c].item()
        sums[source] += extra * ((1 - y) * math.log1p(math.exp(z)) + p * y * math.log1p(math.exp(-z)))
        weights[source] += extra
        counts[source] += 1
    total = sums[0] + pseudo_weight * sums[1]
    expected = {
        "voxels": total / case["logits"].numel(),
        "weight": total / (weights[0] + pseudo_weight * weights[1]),
        "terms": sums[0] / counts[0] + pseudo_weight * sums[1] / counts[1],
    }
    for normalize, loss in expected.items():
        terms = masked_weighted_bce_terms(**case, pseudo_weight=pseudo_weight, normalize=normalize, impl=impl)
        assert [terms.labelled_count.item(), terms.pseudo_count.item()] == counts
        assert terms.loss.item() == pytest.approx(loss, rel=1e-9)
        assert terms.labelled.item() == pytest.approx(sums[0] / counts[0], rel=1e-9)
        assert terms.pseudo.item() == pytest.approx(sums[1] / counts[1], rel=1e-9)
