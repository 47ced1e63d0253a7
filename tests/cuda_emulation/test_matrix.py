# SPDX-License-Identifier: BSD-3-Clause
"""The emulated matrix units: fragments, what TF32 leaves of an operand, sums that are cut off, and their misuse."""

import pytest
import torch

from .build import HERE, build, missing
from .emulator import Emulated, EmulationError, InOut, Input

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
RAW, SPLIT, EXACT, ABSENT_LANES, DIVERGENT = range(5)


@pytest.fixture(scope="module")
def units():
    with Emulated(build(HERE / "samples/matrix.cu")) as emulated:
        yield emulated


def product(units, a, b, sums, mode, seed=0, threads=32):
    sums = sums.clone()
    units.call("run_product", seed=seed, a=Input(a), b=Input(b), sums=InOut(sums), mode=mode, threads=threads)
    return sums


def operands(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw) for shape in ((16, 8), (8, 8), (16, 8))]


@pytest.mark.parametrize("seed", range(3))
def test_small_integers_are_exact(units, seed):
    """Every entry of both operands has a place of its own."""
    a, b, sums = (torch.arange(n).view(-1, 8).float() for n in (128, 64, 128))
    for mode in (RAW, SPLIT, EXACT):
        assert torch.equal(product(units, a, b, sums, mode, seed), sums + a @ b)


def test_an_operand_keeps_19_bits(units):
    a, b, sums = torch.zeros(16, 8), torch.zeros(8, 8), torch.zeros(16, 8)
    a[3, 5], b[5, 2] = 1 + 2**-10 + 2**-11, 1
    assert product(units, a, b, sums, RAW)[3, 2] == 1 + 2**-10
    assert product(units, b.repeat(2, 1), a[:8], sums, RAW).max() == 0  # no term meets another
    assert product(units, a, b, sums, SPLIT)[3, 2] == a[3, 5]


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_are_cut_off(units, sign):
    """Towards 0; beginning at 0 and adding with rounding, as multiply_add does, gives the nearest float."""
    a, b, sums = torch.zeros(16, 8), torch.zeros(8, 8), torch.full((16, 8), sign * 1.0)
    a[0, 0], b[0, 0] = sign * 0.75 * 2**-23, 1
    assert product(units, a, b, sums, RAW)[0, 0] == sign
    assert product(units, a, b, sums, SPLIT)[0, 0] == sign * (1 + 2**-23)


@pytest.mark.parametrize("seed", range(3))
def test_three_products_are_float32(units, seed):
    a, b, sums = operands(seed)
    truth = sums.double() + a.double() @ b.double()
    bound = 2**-22 * (sums.abs().double() + a.abs().double() @ b.abs().double())
    assert (product(units, a, b, sums, SPLIT).double() - truth).abs().le(bound).all()
    assert (product(units, a, b, sums, RAW).double() - truth).abs().gt(bound).any()
    halves = b.bfloat16().float()
    truth = sums.double() + a.double() @ halves.double()
    assert (product(units, a, halves, sums, EXACT).double() - truth).abs().le(bound).all()


@pytest.mark.parametrize(
    ("mode", "threads", "message"),
    [
        (
            ABSENT_LANES,
            32,
            r"divergent warp op: .*\n  threads 20-31 have returned\n  threads 0-19 wait at mma.sync",
        ),
        (DIVERGENT, 32, "divergent warp op"),
        (RAW, 24, "bad warp op: mma.sync in a warp of fewer than 32 lanes|out of bounds"),
    ],
)
def test_misuse_is_caught(units, mode, threads, message):
    with pytest.raises(EmulationError, match=message):
        product(units, *operands(), mode, threads=threads)
