# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast computes what it says: by hand, by a loop, and against float64."""

import math

import pytest
import torch

from fastseg import region_contrast, region_contrast_rows

from .pairs import all_pairs
from .region_contrast_cases import DENOMINATORS, SIMILARITIES, eager, exact, implementations, make_case, run
from .tolerances import EXACT, assert_close_to_truth

LN2, LN3 = math.log(2), math.log(3)
X, Y = [1.0, 0.0], [0.0, 1.0]

# T = 1 and "dot" unless said otherwise, so that exp(s) of [ln 3, 0] with [1, 0] is 3.
TABLE = {  # name: anchors, ids, further arguments, loss of every row
    "one positive, one negative": ([X, X, Y], [0, 0, 1], {}, [math.log1p(math.exp(-1))] * 2 + [0]),
    "only positives": ([X, Y], [0, 0], {}, [0, 0]),
    "two positives": ([X, X, X, Y], [0, 0, 0, 1], {}, [math.log(2 + math.exp(-1))] * 3 + [0]),
    "no positive": ([X, Y], [0, 1], {}, [0, 0]),
    "takes no part": ([X, X, Y, X], [0, 0, 1, -1], {}, [math.log1p(math.exp(-1))] * 2 + [0, 0]),
    "negatives": ([X, X, Y], [0, 0, 1], {"denominator": "negatives"}, [-1, -1, 0]),
    "no negative": ([X, X], [0, 0], {"denominator": "negatives"}, [0, 0]),
    "temperature": ([X, X, Y], [0, 0, 1], {"temperature": 0.5}, [math.log1p(math.exp(-2))] * 2 + [0]),
    "cosine": (
        [[2.0, 0.0], [5.0, 0.0], [0.0, 3.0]],
        [0, 0, 1],
        {"similarity": "cosine"},
        [math.log1p(math.exp(-1))] * 2 + [0],
    ),
    "neg_mse": ([X, X, Y], [0, 0, 1], {"similarity": "neg_mse"}, [math.log1p(math.exp(-1))] * 2 + [0]),
    "neg_mse of another length": (
        [[2.0], [0.0], [1.0]],
        [0, 0, 1],
        {"similarity": "neg_mse"},
        [math.log1p(math.exp(3)), math.log1p(math.exp(3)), 0],
    ),
    "a negative of another group": (
        [X, X, Y, Y],
        [0, 0, 1, 2],
        {"anchor_groups": [0, 0, 0, 1]},
        [math.log1p(math.exp(-1))] * 2 + [0, 0],
    ),
    "a positive of another group": (
        [X, X, Y],
        [0, 0, 1],
        {"anchor_groups": [0, 1, 1]},
        [0, math.log1p(math.exp(-1)), 0],
    ),
    "bank": (
        [[LN3, 0.0]],
        [0],
        {"bank": [X, [2.0, 0.0], Y, Y], "bank_ids": [0, 1, 1, -1]},
        [math.log1p(3 + 1 / 3)],
    ),
    "bank with itself": (
        [X, Y],
        [0, 0],
        {"bank": [X, X, Y], "bank_ids": [1, 0, 0], "self_offset": 1},
        [math.log(1 + math.e), math.log(2)],
    ),
    "bank of itself without an offset": ([X], [0], {"bank": [X], "bank_ids": [0]}, [0]),
    "empty bank": ([X], [0], {"bank": [], "bank_ids": []}, [0]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TABLE)
@implementations
def test_by_hand(name, dtype, impl, device):
    if device == "cuda" and dtype == torch.float64 and impl == "fused":
        pytest.skip("no float64 kernel on a GPU")
    anchors, ids, options, losses = TABLE[name]
    options = {"temperature": 1.0, "similarity": "dot"} | options
    for key in ("bank", "bank_ids", "anchor_groups"):
        if key in options:
            kind = dtype if key == "bank" else torch.int64
            options[key] = torch.tensor(options[key], dtype=kind, device=device)
    if "bank" in options:
        options["bank"] = options["bank"].reshape(-1, 2)
    anchors = torch.tensor(anchors, dtype=dtype, device=device)
    ids = torch.tensor(ids, device=device)
    rows = region_contrast(anchors, anchor_ids=ids, reduction="none", impl=impl, **options)
    relative, absolute = EXACT[dtype]
    expected = torch.tensor(losses, dtype=dtype, device=device)
    torch.testing.assert_close(rows, expected, rtol=relative, atol=absolute)
    total = region_contrast(anchors, anchor_ids=ids, reduction="sum", impl=impl, **options)
    assert total.item() == pytest.approx(sum(losses), rel=relative, abs=absolute)


FACTORS = {
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
    "rows": [1, 2, 33, 130, 300],
    "size": [1, 8, 17, 64, 128, 200, 300],
    "bank": [None, 1, 40, 270],
    "classes": [1, 5, 60],
    "groups": [None, 1, 3],
    "absent": [False, True],
    "similarity": list(SIMILARITIES),
    "denominator": list(DENOMINATORS),
    "reduction": ["mean", "sum", "none"],
    "temperature": [0.1, 1.0, 3.0],
}
CASES = all_pairs(FACTORS)


@pytest.mark.parametrize("number", range(len(CASES)))
@implementations
def test_against_float64(number, impl, device):
    options = dict(CASES[number])
    if device == "cuda" and options["dtype"] == torch.float64 and impl == "fused":
        pytest.skip("no float64 kernel on a GPU")
    settings = {key: options.pop(key) for key in ("similarity", "denominator", "reduction", "temperature")}
    if settings["similarity"] == "dot":  # keep z of a size at which 16 bits say something
        settings["temperature"] *= math.sqrt(options["size"])
    case = make_case(**options, device=device, seed=number)
    weights = torch.linspace(0.5, 1, options["rows"])
    truth = run(region_contrast, exact(case), weights, impl="reference", **settings)
    torchs = run(eager, case, weights, **settings)
    ours = run(region_contrast, case, weights, impl=impl, **settings)
    for value, of_torch, true in zip(ours, torchs, truth, strict=True):
        assert_close_to_truth("region_contrast", value, of_torch, true)
    assert ours[1].dtype == options["dtype"]
    assert ours[0].dtype == (torch.float64 if options["dtype"] == torch.float64 else torch.float32)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@implementations
def test_definition_as_a_loop(impl, device, similarity, denominator):
    if device == "cuda" and impl == "fused":
        pytest.skip("no float64 kernel on a GPU")
    temperature, offset = 0.7, 3
    case = make_case(9, 4, torch.float64, bank=14, classes=3, groups=2, device=device, seed=5)
    anchors, bank = case["anchors"].tolist(), case["bank"].tolist()
    ids, bank_ids = case["anchor_ids"].tolist(), case["bank_ids"].tolist()
    groups, bank_groups = case["anchor_groups"].tolist(), case["bank_groups"].tolist()

    def similar(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        if similarity == "cosine":
            return dot / math.hypot(*a) / math.hypot(*b)
        if similarity == "dot":
            return dot
        return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)

    expected = []
    for i in range(len(anchors)):
        positives, negatives = [], []
        for j in range(len(bank)):
            if ids[i] < 0 or bank_ids[j] < 0 or j == i + offset:
                continue
            z = similar(anchors[i], bank[j]) / temperature
            if ids[i] == bank_ids[j]:
                positives.append(z)
            elif groups[i] == bank_groups[j]:
                negatives.append(z)
        counted = negatives if denominator == "negatives" else negatives + positives
        if not positives or not counted:
            expected.append((0.0, len(positives), None, None))
            continue
        log_sum = math.log(sum(map(math.exp, counted)))
        mean = sum(positives) / len(positives)
        expected.append((log_sum - mean, len(positives), mean * temperature, log_sum))

    options = {"temperature": temperature, "similarity": similarity, "denominator": denominator}
    rows = region_contrast_rows(**case, **options, self_offset=offset, impl=impl)
    assert rows.loss.tolist() == pytest.approx([row[0] for row in expected], rel=1e-12)
    assert rows.positives.tolist() == [row[1] for row in expected]
    for number, (_, _, mean, log_sum) in enumerate(expected):
        if mean is not None:
            assert rows.similarity[number].item() == pytest.approx(mean, rel=1e-12)
            assert rows.log_denominator[number].item() == pytest.approx(log_sum, rel=1e-12)
        else:
            assert rows.log_denominator[number].item() == -math.inf
    with_loss = [row[0] for row in expected if row[2] is not None]
    mean = region_contrast(**case, **options, self_offset=offset, impl=impl)
    assert 1 < len(with_loss) < 9
    assert mean.item() == pytest.approx(sum(with_loss) / len(with_loss), rel=1e-12)
