# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast at the edges: rows without pairs, NaN, zeros, far-out numbers, threads, memory."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseg import region_contrast, region_contrast_rows

from .region_contrast_cases import DENOMINATORS, DEVICES, SIMILARITIES, exact, implementations, make_case, run

devices = pytest.mark.parametrize("device", DEVICES)
similarities = pytest.mark.parametrize("similarity", SIMILARITIES)
denominators = pytest.mark.parametrize("denominator", DENOMINATORS)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("bank", [None, 300])
@similarities
@implementations
def test_nothing_leaks_from_rows_that_take_no_part(impl, device, similarity, bank, poison):
    case = make_case(290, 20, bank=bank, classes=5, groups=2, device=device)
    options = {"similarity": similarity, "impl": impl, "temperature": 1.0}
    clean = run(region_contrast, case, **options)
    for side, name in (("anchor", "anchors"), ("bank", "bank")):
        if name in case:
            absent = case[f"{side}_ids"] < 0
            case[name] = case[name].masked_fill(absent[:, None], poison)
    found = run(region_contrast, case, **options)
    for value, expected in zip(found, clean, strict=True):
        assert torch.equal(value, expected)
    assert (found[1][case["anchor_ids"] < 0] == 0).all()
    assert (found[1] != 0).any(1).sum() > 200


@similarities
@implementations
def test_nan_propagates_from_rows_that_count(impl, device, similarity):
    case = make_case(40, 4, absent=False, device=device)
    case["anchors"][7, 2] = math.nan
    rows = region_contrast(**case, similarity=similarity, reduction="none", impl=impl)
    assert rows.isnan().all()


@denominators
@similarities
@pytest.mark.parametrize("rows", [(0, None), (0, 5), (5, 0), (1, None)])
@implementations
def test_empty(impl, device, rows, similarity, denominator):
    case = make_case(rows[0], 6, bank=rows[1], absent=False, device=device)
    for reduction in ("mean", "sum", "none"):
        options = {"similarity": similarity, "denominator": denominator, "reduction": reduction, "impl": impl}
        loss, *gradients = run(region_contrast, case, torch.ones(rows[0]), **options)
        assert loss.shape == ((rows[0],) if reduction == "none" else ())
        assert (loss == 0).all()
        assert all((gradient == 0).all() for gradient in gradients)


@denominators
@pytest.mark.parametrize("ids", ["absent", "different", "equal"])
@implementations
def test_rows_without_pairs(impl, device, ids, denominator):
    case = make_case(270, 5, device=device)
    numbers = torch.arange(270, device=device)
    case["anchor_ids"] = {"absent": -1 - numbers, "different": numbers, "equal": 0 * numbers}[ids]
    loss, gradient, tilt = run(region_contrast, case, denominator=denominator, impl=impl)
    if ids == "equal" and denominator == "all":
        assert loss > 1
    else:
        assert loss == 0
        assert (gradient == 0).all()
        assert tilt == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@similarities
@implementations
def test_identical_rows(impl, device, similarity, dtype):
    if device == "cuda" and dtype == torch.float64 and impl == "fused":
        pytest.skip("no float64 kernel on a GPU")
    anchors = torch.full((300, 12), 0.37, dtype=dtype, device=device)
    case = {"anchors": anchors, "anchor_ids": torch.arange(300, device=device) % 100}
    rows = region_contrast_rows(**case, similarity=similarity, impl=impl)
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(rows.loss, torch.full_like(rows.loss, math.log(299)), rtol=tolerance, atol=0)
    rows = region_contrast_rows(**case, similarity=similarity, denominator="negatives", impl=impl)
    torch.testing.assert_close(rows.loss, torch.full_like(rows.loss, math.log(297)), rtol=tolerance, atol=0)
    assert (rows.positives == 2).all()


@pytest.mark.parametrize("length", [0.0, 1e-13, 1e-30])
@implementations
def test_short_rows_are_zero_to_cosine(impl, device, length):
    case = make_case(50, 3, absent=False, device=device)
    case["anchors"][10] = length
    zeros = {**case, "anchors": case["anchors"].clone()}
    zeros["anchors"][10] = 0
    found, expected = run(region_contrast, case, impl=impl), run(region_contrast, zeros, impl=impl)
    for value, truth in zip(found, expected, strict=True):
        assert torch.equal(value, truth)
    assert (found[1][10] == 0).all()
    assert found[0].isfinite()


@pytest.mark.parametrize("far", [5.0, 20.0, 60.0])
@devices
def test_every_digit_of_a_sure_positive(device, far):
    """One positive far above 300 negatives: a loss down to 1e-24, and its gradient, to 6 digits in float32."""
    draw = torch.Generator().manual_seed(3)
    anchors = torch.zeros(1, 8)
    anchors[0, 0] = 8.0
    bank = torch.randn(301, 8, generator=draw)
    bank[:, 0] = bank[:, 0].round(decimals=1) / 8
    bank[0, 0] = far / 8
    case = {"anchors": anchors, "bank": bank, "anchor_ids": torch.zeros(1), "bank_ids": torch.arange(301)}
    case = {name: value.long() if name.endswith("ids") else value for name, value in case.items()}
    case = {name: value.to(device) for name, value in case.items()}

    def in_so_many_digits(anchors, bank, temperature, **_):  # the definition would take 1e-24 from 1
        z = (anchors @ bank.T)[0] / temperature
        return torch.log1p(torch.exp(z[1:] - z[0]).sum())

    truth = run(in_so_many_digits, exact(case), temperature=1.0)
    ours = run(region_contrast, case, similarity="dot", temperature=1.0, impl="fused")
    assert 300 * math.exp(-far - 5) < truth[0] < 300 * math.exp(-far + 5)
    for value, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-6 * true.abs().max().item())


@denominators
@devices
def test_cold_and_unnormalised(device, denominator):
    """s / T of some 100,000, in steps that float32 holds: only the largest counts, nothing overflows."""
    anchors = torch.tensor([[30.0, 0.0], [30.0, 1.0], [0.0, 30.0], [-30.0, 0.0]], device=device)
    case = {"anchors": anchors, "anchor_ids": torch.tensor([0, 0, 0, 1], device=device)}
    options = {"similarity": "dot", "temperature": 0.01, "denominator": denominator}
    truth = run(region_contrast, exact(case), impl="reference", **options)
    ours = run(region_contrast, case, impl="fused", **options)
    for value, true in zip(ours, truth, strict=True):
        assert value.isfinite().all()
        torch.testing.assert_close(value.double(), true, rtol=1e-4, atol=1e-6 * true.abs().max().item())


def check_groups_in_order(rows, bank, size, device):
    """Groups of `size` rows one after the other, with positives across groups here and there."""
    case = make_case(rows, 8, bank=bank, device=device)
    for side in ("anchor", "bank") if bank else ("anchor",):
        at = torch.arange(len(case[f"{side}_ids"]), device=device)
        case[f"{side}_ids"] = torch.where(at % (2 * size - 10) == 0, 1000, at // 3 - 1)
        case[f"{side}_groups"] = at // size - 2
    weights = torch.linspace(-1, 1, rows, device=device)
    for denominator in DENOMINATORS:
        options = {"denominator": denominator, "reduction": "none"}
        found = run(region_contrast, case, weights, **options)
        truth = run(region_contrast, exact(case), weights, impl="reference", **options)
        for one, other in zip(found, truth, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("bank", [None, 500])
@devices
def test_blocks_of_other_groups(device, bank):
    check_groups_in_order(600, bank, 130, device)


@pytest.mark.parametrize("bank", [None, 130])
@devices
def test_tiles_of_other_groups(device, bank):
    check_groups_in_order(200, bank, 60, device)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@devices
def test_integer_types_of_ids(device, kind):
    case = make_case(50, 4, bank=60, groups=3, absent=kind != torch.uint8, device=device)
    expected = region_contrast(**case)
    narrow = {name: value if value.is_floating_point() else value.to(kind) for name, value in case.items()}
    assert torch.equal(region_contrast(**narrow), expected)
    if kind == torch.int64:
        spread = dict(case)
        for side in ("anchor", "bank"):  # ids that agree in their low and in their high halves
            ids, groups = case[f"{side}_ids"], case[f"{side}_groups"]
            spread[f"{side}_ids"] = torch.where(ids < 0, ids, (ids % 2) * 2**40 + ids // 2)
            spread[f"{side}_groups"] = groups * 2**40 - 2**41
        assert torch.equal(region_contrast(**spread), expected)


@devices
def test_layouts(device):
    case = make_case(40, 12, bank=50, device=device)
    expected = run(region_contrast, case)
    case["anchors"] = case["anchors"].T.contiguous().T
    case["bank"] = torch.stack([case["bank"], case["bank"]], 2)[..., 0]
    case["anchor_ids"] = torch.stack([case["anchor_ids"]] * 2, 1)[:, 0]
    for value, truth in zip(run(region_contrast, case), expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bank", [None, 900])
def test_threads_do_not_change_a_bit(dtype, bank):
    case = make_case(1500, 24, dtype, bank=bank, classes=20)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(region_contrast, case, impl="fused"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.usefixtures("deterministic")
@devices
def test_repeatable(device):
    case = make_case(700, 40, device=device)
    first = run(region_contrast, case, impl="fused")
    for _ in range(5):
        again = run(region_contrast, case, impl="fused")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("size", "bank", "groups", "offset", "temperature"),
    [
        (8, None, None, None, 0.5),
        (8, None, 2, None, 0.02),  # colder than a fixed shift allows
        (
            17,
            400,
            None,
            5,
            0.5,
        ),  # anchors whose own row in the bank has another id: not among the negatives either
        (70, 300, 3, None, 0.5),
        (300, None, None, None, 0.5),
    ],
)
@devices
def test_many_ids(device, size, bank, groups, offset, temperature):
    """So many that sorted rows have whole tiles of negatives, and of groups that are none of theirs."""
    case = make_case(400, size, bank=bank, classes=150, groups=groups, device=device)
    options = {"self_offset": offset, "temperature": temperature, "similarity": "cosine"}
    truth = run(region_contrast, exact(case), impl="reference", **options)
    ours = run(region_contrast, case, impl="fused", **options)
    for value, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())


@given(st.data())
def test_fused_is_the_reference(data):
    bank = data.draw(st.none() | st.integers(0, 300))
    case = make_case(
        data.draw(st.integers(0, 300)),
        data.draw(st.integers(1, 40)),
        torch.float64,
        bank=bank,
        classes=data.draw(st.integers(1, 100)),
        groups=data.draw(st.none() | st.integers(1, 5)),
        absent=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
    )
    reduction = data.draw(st.sampled_from(["mean", "sum", "none"]))
    options = {
        "similarity": data.draw(st.sampled_from(SIMILARITIES)),
        "denominator": data.draw(st.sampled_from(DENOMINATORS)),
        "temperature": data.draw(st.floats(0.2, 5)),
        "reduction": reduction,
        "self_offset": None if bank is None else data.draw(st.none() | st.integers(-310, 310)),
    }
    weights = torch.linspace(0.5, 1, case["anchors"].shape[0])
    fused, reference = (
        run(region_contrast, case, weights, impl=impl, **options) for impl in ("fused", "reference")
    )
    for value, truth in zip(fused, reference, strict=True):
        scale = truth.abs().max().item() if truth.numel() else 1
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-11 * max(scale, 1))


@pytest.mark.parametrize("size", [7500, 8192])
@devices
def test_raw_patches(device, size):
    """neg_mse on patches of 3 x 50 x 50 and more, greys in [0, 1]."""
    draw = torch.Generator().manual_seed(0)
    case = {
        "anchors": torch.rand(10, size, generator=draw),
        "bank": torch.rand(169, size, generator=draw),
        "anchor_ids": torch.zeros(10, dtype=torch.int64),
        "bank_ids": torch.arange(169) % 2,
    }
    case = {name: value.to(device) for name, value in case.items()}
    options = {"similarity": "neg_mse", "temperature": 1.0, "denominator": "negatives"}
    truth = run(region_contrast, exact(case), impl="reference", **options)
    ours = run(region_contrast, case, impl="fused", **options)
    for name, value, true in zip(("loss", "anchors", "bank", "temperature"), ours, truth, strict=True):
        # Terms of size |z| = 0.2 cancel in the temperature's.
        scale = 0.01 if name == "temperature" else true.abs().max().item()
        torch.testing.assert_close(value.double(), true, rtol=0, atol=1e-5 * scale)


PEAK = """
import json, sys
from pathlib import Path
import torch, fastseg

def high_water():
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

def step(rows, bank):
    a = torch.randn(rows, 64, requires_grad=True)
    b = torch.randn(rows, 64, requires_grad=True) if bank else None
    ids = torch.randint(-1, 100, (rows,))
    fastseg.region_contrast(a, b, anchor_ids=ids, bank_ids=ids if bank else None, impl="fused").backward()

rows, bank = json.loads(sys.argv[1])
step(512, bank)
before = high_water()
step(rows, bank)
print(high_water() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("rows", [8192, pytest.param(32768, marks=pytest.mark.slow)])
def test_memory_grows_with_rows_not_pairs(rows, bank):
    """Inputs, gradients, copies without absent rows and statistics: some 10 arrays of rows x 64 at most."""
    command = [sys.executable, "-c", PEAK, json.dumps([rows, bank])]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    array, matrix = rows * 64 * 4 / 2**20, rows * rows * 4 / 2**20
    print(f"{rows} rows, bank {bank}: {peak:.0f} MiB; the matrix would take {matrix:.0f} MiB")
    assert peak < (12 if bank else 8) * array
    assert peak < matrix / 4
