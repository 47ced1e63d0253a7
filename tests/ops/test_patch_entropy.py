# SPDX-License-Identifier: BSD-3-Clause
"""patch_entropy computes what it says: by hand, by a loop, and against float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from fastseg import patch_entropy

from .pairs import all_pairs
from .patch_entropy_cases import implementations, make_mask, make_values, with_gradient
from .tolerances import EXACT, assert_close_to_truth

NAN, INF, LN3 = math.nan, math.inf, math.log(3)
H4 = 2 - 0.75 * math.log2(3)  # of 1/4 and of 3/4
TABLE = {  # name: values (channels, n), patch, stride, options, entropy, confidence
    "half": ([[0.5, 0.5]], 2, 1, {}, [[1.0]], [[0.5]]),
    "sure": ([[0.0, 1.0, 1.0]], 3, 1, {}, [[0.0]], [[2 / 3]]),
    "quarters": ([[0.25, 0.75, 0.5]], 1, 1, {}, [[H4, H4, 1.0]], [[0.25, 0.75, 0.5]]),
    "windows that fit": ([[0.0, 0.5, 0.5, 0.0, 0.5]], 2, 2, {}, [[0.5, 0.5]], [[0.25, 0.25]]),
    "gaps": ([[0.5, 0.0, 9.0, 0.5, 0.5, NAN]], 2, 3, {}, [[0.5, 1.0]], [[0.25, 0.5]]),
    "overlap": ([[1.0, 0.5, 0.0, 0.5]], 3, 1, {}, [[1 / 3, 2 / 3]], [[0.5, 1 / 3]]),
    "a rounding error outside": ([[-1e-7, 1.0000001]], 1, 1, {}, [[0.0, 0.0]], [[0.0, 1.0]]),
    "logits": ([[LN3, -LN3, 0.0]], 1, 1, {"from_logits": True}, [[H4, H4, 1.0]], [[0.75, 0.25, 0.5]]),
    "infinite logits": ([[INF, -INF, 1e30]], 1, 1, {"from_logits": True}, [[0, 0, 0]], [[1, 0, 1]]),
    "categorical": ([[0.5, 1.0], [0.25, 0], [0.25, 0]], 1, 1, {"mode": "categorical"}, [[1.5, 0.0]], None),
    "categorical logits": (
        [[math.log(2), 0.0, INF, 0.0], [0.0, -INF, 0.0, 0.0], [0.0, -INF, 0.0, 1000.0]],
        1,
        1,
        {"mode": "categorical", "from_logits": True},
        [[1.5, 0.0, NAN, 0.0]],
        [[0.5, 1, NAN, 0], [0.25, 0, NAN, 0], [0.25, 0, NAN, 1]],
    ),
    "mask": ([[0.5, NAN, 1.0, 0.0]], 4, 1, {"mask": [1, 0, 1, 1]}, [[1 / 3]], [[0.5]]),
    "too little of it": (
        [[0.5, 0.5, 0.5, 0.5]],
        2,
        1,
        {"mask": [1, 0, 0, 1], "min_valid": 0.5},
        [[1, NAN, 1]],
        [[0.5, NAN, 0.5]],
    ),
    "any of it": ([[0.5, 0.0, 0.0]], 2, 1, {"mask": [1, 0, 0], "min_valid": 0}, [[1, NAN]], [[0.5, NAN]]),
    "all of it": ([[0.5, 0, 0]], 2, 1, {"mask": [1, 1, 0], "min_valid": 1}, [[0.5, NAN]], [[0.25, NAN]]),
    "nan stays where it is": ([[NAN, 0.5, 0.5, 0.5]], 2, 1, {}, [[NAN, 1, 1]], [[NAN, 0.5, 0.5]]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TABLE)
@implementations
def test_by_hand(name, dtype, impl, device):
    values, patch, stride, options, entropy, confidence = TABLE[name]
    options = dict(options)
    if "mask" in options:
        options["mask"] = torch.tensor(options["mask"], dtype=torch.uint8, device=device).view(1, 1, -1)
    values = torch.tensor(values, dtype=dtype, device=device)[None]
    found = patch_entropy(values, patch, stride, impl=impl, **options)
    confidence = values[0] if confidence is None else confidence
    relative, absolute = EXACT[dtype]
    for result, expected in zip(found, (entropy, confidence), strict=True):
        expected = torch.as_tensor(expected, dtype=dtype, device=device)[None]
        torch.testing.assert_close(result, expected, rtol=relative, atol=absolute, equal_nan=True)
        assert ((result == 0) == (expected == 0)).all()  # 0 is exact


def test_169_windows():
    entropy, confidence = patch_entropy(torch.full((1, 4, 300, 300), 0.5), 50, 20)
    assert entropy.shape == confidence.shape == (1, 4, 13, 13)
    assert (entropy == 1).all()


def plain(values, patch, stride, mode, from_logits, mask, min_valid):
    """The definition, one window at a time."""
    batch, channels, *spatial = values.shape
    if from_logits:
        values = values.softmax(1) if mode == "categorical" else values.sigmoid()
    values = values.tolist()
    counts = [range((n - p) // s + 1) for n, p, s in zip(spatial, patch, stride, strict=True)]
    results = {}

    def bits(p):
        return -p * math.log2(p) if p > 0 else 0.0

    def at(nested, position):
        for i in position:
            nested = nested[i]
        return nested

    for b, k in itertools.product(range(batch), range(channels)):
        for window in itertools.product(*counts):
            axes = [range(w * s, w * s + p) for w, s, p in zip(window, stride, patch, strict=True)]
            voxels = list(itertools.product(*axes))
            if mask is not None:
                of_channel = mask[b, k if mask.shape[1] == channels else 0]
                kept = [v for v in voxels if of_channel[v] != 0]
            else:
                kept = voxels
            if len(kept) < max(1, min_valid * len(voxels)):
                results[(b, k, *window)] = (NAN, NAN)
                continue
            p = [at(values[b][k], v) for v in kept]
            if mode == "categorical":
                h = [sum(bits(at(values[b][j], v)) for j in range(channels)) for v in kept]
            else:
                h = [bits(q) + bits(1 - q) for q in p]
            results[(b, k, *window)] = (sum(h) / len(h), sum(p) / len(p))
    return results


@pytest.mark.parametrize(
    ("shape", "patch", "stride"),
    [((2, 2, 5, 6, 7), (2, 3, 4), (3, 2, 1)), ((1, 2, 9, 8), (4, 5), (3, 2)), ((1, 3, 11), (5,), (4,))],
)
@pytest.mark.parametrize("mode", ["binary", "categorical"])
@pytest.mark.parametrize("masked", [None, "full"])
@implementations
def test_definition_as_a_loop(impl, device, masked, mode, shape, patch, stride):
    for from_logits in (False, True):
        values = make_values(shape, torch.float64, mode, from_logits, device, seed=4)
        mask = make_mask(shape, masked, mode, device)
        expected = plain(values, patch, stride, mode, from_logits, mask, 0.5)
        options = {"mode": mode, "from_logits": from_logits, "mask": mask, "impl": impl}
        entropy, confidence = patch_entropy(values, patch, stride, **options)
        for (b, k, *window), (bits, mean) in expected.items():
            of_entropy = 0 if mode == "categorical" else k
            assert entropy[(b, of_entropy, *window)].item() == pytest.approx(bits, rel=1e-12, nan_ok=True)
            assert confidence[(b, k, *window)].item() == pytest.approx(mean, rel=1e-12, nan_ok=True)


def eager(values, patch, stride, *, mode, from_logits, mask=None):
    """What one writes in torch today, in the dtype of the values; windows too little valid are NaN."""
    dtype = torch.float32 if values.dtype in (torch.bfloat16, torch.float16) else values.dtype
    values = values.to(dtype)
    tiny = torch.finfo(dtype).tiny
    if mode == "categorical":
        p = values.softmax(1) if from_logits else values
        bits = -(p * p.clamp(min=tiny).log2()).sum(1, keepdim=True)
    else:
        p = values.sigmoid() if from_logits else values
        bits = -p * p.clamp(min=tiny).log2() - (1 - p) * (1 - p).clamp(min=tiny).log2()
    pool = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[values.dim()]
    if mask is None:
        return pool(bits, patch, stride), pool(p, patch, stride)
    valid = (mask != 0).to(dtype)
    share = pool(valid.expand(-1, bits.shape[1], *valid.shape[2:]), patch, stride)
    means = [pool(bits * valid, patch, stride) / share, pool(p * valid, patch, stride) / share]
    return [torch.where(share < 0.5, torch.nan, mean) for mean in means]


FACTORS = {
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
    "mode": ["binary", "categorical"],
    "from_logits": [False, True],
    "mask": [None, "shared", "full", "bool"],
    "geometry": [
        ((2, 3, 17, 12, 40), (4, 6, 8), (2, 3, 8)),
        ((1, 2, 9, 10, 64), (9, 4, 32), (1, 4, 16)),
        ((2, 2, 40, 41), (7, 9), (5, 13)),
        ((1, 1, 35, 600), (32, 33), (2, 1)),
        ((3, 4, 70), (20,), (7,)),
        ((1, 35, 6, 8), (3, 4), (1, 1)),
        ((2, 1, 1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ((1, 2, 50, 530), (50, 529), (1, 1)),
    ],
    "layout": ["contiguous", "channels_last", "strided"],
}
CASES = all_pairs(FACTORS)


def lay_out(values, layout):
    if layout == "strided":
        return torch.stack([values, values], -1)[..., 0]
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if layout == "channels_last" and values.dim() in formats:
        return values.to(memory_format=formats[values.dim()])
    return values


@pytest.mark.parametrize("number", range(len(CASES)))
@implementations
def test_against_float64(number, impl, device):
    case = CASES[number]
    shape, patch, stride = case["geometry"]
    options = {"mode": case["mode"], "from_logits": case["from_logits"]}
    values = make_values(shape, case["dtype"], **options, device=device, seed=number)
    # At 0 and 1 torch's slopes are infinite, and tests of their own look at ours.
    values = values if options["from_logits"] else values.clamp(0.01, 0.99)
    options["mask"] = make_mask(shape, case["mask"], case["mode"], device, number)
    truth = with_gradient(patch_entropy, values.double(), patch, stride, impl="reference", **options)
    torchs = with_gradient(eager, values, patch, stride, **options)
    ours = with_gradient(patch_entropy, lay_out(values, case["layout"]), patch, stride, impl=impl, **options)
    for value, of_torch, true in zip(ours, torchs, truth, strict=True):
        assert torch.equal(value.isnan(), true.isnan())
        assert_close_to_truth("patch_entropy", *(v.nan_to_num(0) for v in (value, of_torch, true)))
    assert ours[0].dtype == (torch.float64 if case["dtype"] == torch.float64 else torch.float32)
    assert ours[2].dtype == case["dtype"]
