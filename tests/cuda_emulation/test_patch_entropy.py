# SPDX-License-Identifier: BSD-3-Clause
"""What only the emulation can say of patch_entropy's CUDA kernels: order of threads, long rows, barriers."""

import pytest
import torch

from fastseg import extract_patches, patch_entropy, sample_patches

from ..ops.patch_entropy_cases import make_mask, make_values, with_gradient
from . import build as builder
from .emulator import Emulated, EmulationError
from .ops import EmulatedOps, PatchEntropyOps

pytestmark = pytest.mark.skipif(builder.missing() is not None, reason=str(builder.missing()))


@pytest.fixture
def orders(libraries):
    """Five orders of threads and blocks."""
    return [EmulatedOps({PatchEntropyOps: libraries[PatchEntropyOps]}, seed) for seed in range(5)]


@pytest.mark.parametrize("mode", ["binary", "categorical"])
def test_the_same_bits_in_every_order(orders, mode):
    values = make_values((2, 3, 9, 21, 40), torch.bfloat16, mode, True)
    options = {"mode": mode, "from_logits": True, "mask": make_mask(values.shape, "shared", mode)}
    corners = torch.randint(-1, 9, (2, 400, 3), generator=torch.Generator().manual_seed(0)).clamp(max=8)
    results = []
    for order in orders:
        with order:
            found = with_gradient(patch_entropy, values, (4, 6, 16), (2, 4, 8), **options)
            found += sample_patches(*found[:2], 20, seed=1, replacement=False)
            leaf = values.detach().requires_grad_()
            patches = extract_patches(leaf, corners, (1, 3, 8))
            found += torch.autograd.grad((patches * patches.detach()).sum(), leaf)
        results.append(found)
    for found in results[1:]:
        for value, first in zip(found, results[0], strict=True):
            torch.testing.assert_close(value, first, rtol=0, atol=0, equal_nan=True)


def test_a_row_longer_than_a_block_reaches(orders):
    values = make_values((1, 1, 3, 2400), torch.float16, "binary", False)
    for patch, stride in ((2048, 300), (100, 1100), (7, 2)):
        with orders[0]:
            ours = patch_entropy(values, (2, patch), (1, stride), impl="fused")
        truth = patch_entropy(values.double(), (2, patch), (1, stride), impl="reference")
        torch.testing.assert_close(ours.entropy.double(), truth.entropy, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(ours.confidence.double(), truth.confidence, rtol=1e-6, atol=1e-7)


BARRIERS = {  # file, what stands before the barrier that is taken out, what is reported
    "cells": ("cuda/patch_entropy.cu", "// all sums are in", r"(race|uninitialised): .*partial"),
    "next cells": ("cuda/patch_entropy.cu", "// nobody writes the next unit's sums", "race: .*partial"),
    "classes": (
        "cuda/patch_entropy_categorical.cu",
        "// all sums are in",
        r"(race|uninitialised): .*partial",
    ),
    "warps": (
        "cuda/patch_entropy_sampling.cu",
        "// every warp's sum is in",
        "(race|uninitialised): .*of_warp",
    ),
    "chunk": ("cuda/patch_entropy_sampling.cu", "// the chunk is found", "(race|uninitialised): .*"),
    "next draw": ("cuda/patch_entropy_sampling.cu", "// nobody looks for the next chunk", "race: .*"),
    "mended": ("cuda/patch_entropy_sampling.cu", "// the chunk is mended", "race: .*"),
    "list": ("cuda/patch_entropy_crops.cu", "// the list is complete", r"(race|uninitialised): .*listed"),
    "next list": ("cuda/patch_entropy_crops.cu", "// the list is read", "race: .*"),
}


def every_kernel():
    for mode in ("binary", "categorical"):
        values = make_values((2, 3, 9, 21, 40), torch.float32, mode, True).requires_grad_()
        scores = patch_entropy(values, (4, 6, 16), (2, 1, 1), mode=mode, from_logits=True)
    sample_patches(*scores, 5, seed=0, replacement=False)
    sample_patches(*scores, 5, seed=0, strategy="lowest")
    extract_patches(values, torch.zeros(2, 600, 3, dtype=torch.long), 4).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("name", BARRIERS)
def test_a_barrier_taken_out_is_noticed(tmp_path, name):
    file, before, report = BARRIERS[name]
    kernels = builder.kernels_without_barrier(tmp_path, file, before)
    sources = [tmp_path / s if s.startswith("kernels") else builder.ROOT / s for s in PatchEntropyOps.sources]
    library = builder.build(*sources, include=kernels)
    with Emulated(library) as emulated, EmulatedOps({PatchEntropyOps: emulated}, 3):  # noqa: SIM117
        with pytest.raises(EmulationError, match=report):
            every_kernel()


@pytest.mark.parametrize(
    ("dtype", "from_logits", "allowed"),  # relative error, as docs/ops/patch_entropy.md has it
    [
        (torch.float32, False, 5e-7),
        (torch.float16, False, 2e-6),
        (torch.bfloat16, False, 2e-6),
        (torch.float32, True, 5e-7),
        (torch.bfloat16, True, 2e-5),
    ],
)
def test_every_digit_of_one_voxel(orders, dtype, from_logits, allowed):
    if from_logits:
        values = torch.linspace(-80, 80, 2001).to(dtype)
    else:
        small = torch.logspace(-37, -0.31, 1001)
        values = torch.cat([small, 1 - small, torch.linspace(0.49, 0.51, 501)]).to(dtype)
        values = values[(values > torch.finfo(dtype).tiny) & (values < 1)]
    values = values.view(1, 1, -1)
    with orders[0]:
        ours = patch_entropy(values, 1, 1, from_logits=from_logits).entropy.double()
    truth = patch_entropy(values.double(), 1, 1, from_logits=from_logits, impl="reference").entropy
    assert ((ours - truth) / truth).abs().max() < allowed
