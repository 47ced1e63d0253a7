# SPDX-License-Identifier: BSD-3-Clause
"""What only the emulation can say of masked_bce's CUDA kernels: order of threads, alignment, barriers."""

import pytest
import torch

from fastseg import masked_weighted_bce

from ..ops.masked_bce_cases import make_case
from . import build as builder
from .emulator import Emulated, EmulationError
from .ops import EmulatedOps, MaskedBCE

SEEDS = range(5)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.skipif(builder.missing() is not None, reason=str(builder.missing()))


def run(case: dict, impl: str = "fused", **options):
    """The loss and the gradient of the logits; a map has a map as upstream gradient."""
    logits = case["logits"].detach().clone().requires_grad_()
    loss = masked_weighted_bce(**(case | {"logits": logits}), pseudo_weight=0.3, impl=impl, **options)
    (loss * torch.linspace(1, 2, loss.numel()).view(loss.shape).to(loss)).sum().backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_same_bits_in_every_order(libraries, dtype, layout):
    # More tiles than blocks, and a last tile that is not full.
    case = make_case((2, 2, 91, 95), dtype, "uint8", "shared", None, True, layout)
    results = []
    for seed in SEEDS:
        with EmulatedOps(libraries, seed):
            results.append(run(case))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])
    torch.testing.assert_close(results[0], run(case, "reference"))


@pytest.mark.long
def test_groups_of_blocks_are_added_up(libraries):
    """More blocks than the 1024 of a group: the last of each adds its group up, the last of all the groups."""
    case = make_case((1, 1, 1030 * 4096 + 4), torch.float32, "uint8", "shared", None, False, "contiguous")
    results = []
    for seed in SEEDS[:2]:
        with EmulatedOps(libraries, seed):
            results.append(masked_weighted_bce(**case, pseudo_weight=0.3, impl="fused"))
    assert torch.equal(*results)
    torch.testing.assert_close(results[0], masked_weighted_bce(**case, pseudo_weight=0.3, impl="reference"))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("array", ["logits", "target", "mask", "weight", "grad", "loss_map", "grad_logits"])
def test_one_array_may_be_misaligned(libraries, array, reduction):
    case = make_case((1, 2, 48), torch.float32, "soft", "full", "full", False, "contiguous")
    with EmulatedOps(libraries, 0, (array,)):
        ours = run(case, reduction=reduction)
    torch.testing.assert_close(ours, run(case, "reference", reduction=reduction))


@pytest.mark.long
def test_runs_without_a_cuda_toolkit():
    library = builder.build(*(builder.ROOT / source for source in MaskedBCE.sources), plain_types=True)
    with Emulated(library) as emulated:
        for dtype in DTYPES:
            case = make_case((1, 2, 3, 37), dtype, "uint8", "shared", None, False, "contiguous")
            with EmulatedOps({MaskedBCE: emulated}, 0):
                ours = run(case, reduction="none")
            torch.testing.assert_close(ours, run(case, "reference", reduction="none"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("why", "report"),
    [
        ("every warp's sums are in", r"(race|uninitialised): .*of_warp"),
        ("the other half is in", r"(race|uninitialised): .*of_thread"),
    ],
)
def test_a_barrier_taken_out_is_noticed(tmp_path, why, report):
    kernels = builder.kernels_without_barrier(tmp_path, "cuda/masked_bce.cu", why)
    shim = builder.ROOT / MaskedBCE.sources[1]
    library = builder.build(kernels / "cuda/masked_bce.cu", shim, include=kernels)
    case = make_case((2, 3, 31, 91), torch.float32, "uint8", "shared", None, False, "contiguous")
    for seed in SEEDS:
        noticed = pytest.raises(EmulationError, match=report)
        with Emulated(library) as emulated, EmulatedOps({MaskedBCE: emulated}, seed), noticed:
            run(case)


@pytest.mark.parametrize(
    ("dtype", "at_zero", "per_unit"),  # relative error of a loss, as docs/ops/masked_bce.md has it
    [(torch.float32, 4e-7, 0), (torch.bfloat16, 2e-6, 1.4e-7), (torch.float16, 2e-6, 1.4e-7)],
)
@pytest.mark.parametrize("target", [0, 1])
def test_every_digit_of_one_voxel(libraries, dtype, at_zero, per_unit, target):
    logits = torch.linspace(-86, 86, 41).to(dtype)
    with EmulatedOps(libraries, 0):
        for logit in logits:
            case = {
                "logits": logit.view(1, 1, 1),
                "target": torch.full((1, 1, 1), target, dtype=torch.uint8),
                "reduction": "sum",
            }
            ours = masked_weighted_bce(**case, impl="fused").double()
            truth = masked_weighted_bce(**(case | {"logits": logit.double().view(1, 1, 1)}), impl="reference")
            assert abs(ours - truth) <= (at_zero + per_unit * abs(logit.item())) * truth, logit
