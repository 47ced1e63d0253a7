# SPDX-License-Identifier: BSD-3-Clause
"""The emulation itself: correct kernels give right results, and each broken one is caught, by name."""

import functools
import operator
import re

import pytest
import torch

from . import build as builder
from .emulator import Emulated, EmulationError, InOut, Input, Output

SEEDS = range(5)
reason = builder.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture(scope="module", params=["toolkit types", "plain types"])
def correct(request):
    if request.param == "toolkit types" and builder.toolkit_include() is None:
        pytest.skip("no CUDA toolkit: half-precision types come from plain/ only")
    library = builder.build(builder.HERE / "samples/correct.cu", plain_types=request.param == "plain types")
    with Emulated(library) as emulated:
        yield emulated


@pytest.fixture(scope="module")
def broken():
    with Emulated(builder.build(builder.HERE / "samples/broken.cu"), timeout=20) as emulated:
        yield emulated


def poison(*shape, dtype=torch.float32):
    return torch.full(shape, float("nan"), dtype=dtype)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (1037, 3), (8192, 4)])
def test_two_launch_sum_of_bf16(correct, n, blocks, seed):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n)).bfloat16()
    partials, total = poison(blocks), poison(1)
    assert (
        correct.call(
            "sum_bf16",
            seed=seed,
            values=Input(values),
            partials=Output(partials),
            total=Output(total),
            n=n,
            blocks=blocks,
        )
        == 0
    )
    torch.testing.assert_close(total[0].double(), values.double().sum(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(partials.sum(), total[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_last_block_adds_the_partials(correct, seed):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    partials, total, ticket = poison(4), poison(1), torch.full((1,), -1, dtype=torch.int32)
    correct.call(
        "sum_float",
        seed=seed,
        values=Input(values),
        partials=Output(partials),
        ticket=Output(ticket),
        total=Output(total),
        n=1000,
        blocks=4,
    )
    assert ticket.item() == 4
    torch.testing.assert_close(total[0], values.sum(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1, 1), (17, 40)])
def test_transpose_in_dynamic_shared_memory(correct, shape, seed):
    values = torch.randn(shape).half()
    out = poison(*shape[::-1], dtype=torch.float16)
    correct.call(
        "transpose_half", seed=seed, x=Input(values), out=Output(out), height=shape[0], width=shape[1]
    )
    assert torch.equal(out, values.T)


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_operations(correct, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 1000, (32,), dtype=torch.int32, generator=generator)
    out = torch.zeros(20, 32, dtype=torch.int32)
    correct.call("run_warp_operations", seed=seed, x=Input(values), out=Output(out))
    v, lanes = values.tolist(), range(32)

    def bits(chosen):
        return sum(1 << lane for lane in chosen) - (1 << 32) * (31 in chosen)

    thirds = [lane for lane in lanes if v[lane] % 3 == 0]
    every = v.count(v[7]) == 32
    expected = [
        [v[5]] * 32,
        [v[lane // 8 * 8 + (lane + 1) % 8] for lane in lanes],
        [v[lane - 3 if lane >= 3 else lane] for lane in lanes],
        [v[lane - 3 if lane % 16 >= 3 else lane] for lane in lanes],
        [v[lane + 3 if lane < 29 else lane] for lane in lanes],
        [v[lane + 3 if lane % 16 < 13 else lane] for lane in lanes],
        [v[lane ^ 7] for lane in lanes],
        [bits(thirds)] * 32,
        [1] * 32,
        [int(every)] * 32,
        [bits([m for m in lanes if v[m] % 4 == v[lane] % 4]) for lane in lanes],
        [sum(v)] * 32,
        [min(v)] * 32,
        [max(v)] * 32,
        [functools.reduce(operator.or_, v)] * 32,
        [sum(v[:16])] * 16 + [max(v[16:])] * 16,
        [bin(x).count("1") + 100 * (32 - x.bit_length()) + 10000 * ((x & -x).bit_length()) for x in v],
        [len(thirds)] * 32,
        [1] * 32,
        [int(every)] * 32,
    ]
    assert out.tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_barrier_orders_shared_memory(correct, seed):
    values = torch.randn(2, 4, 32)
    out = poison(2, 4, 32)
    correct.call("run_warp_barrier", seed=seed, x=Input(values), out=Output(out), blocks=2)
    assert torch.equal(out, values.roll(-2, dims=-1))


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics(correct, seed):
    values = torch.randint(-500, 500, (201,), dtype=torch.int32)
    sums, by_cas, sum64 = torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    count, low, high, swapped = (torch.zeros(1, dtype=d) for d in (torch.int64, *[torch.int32] * 3))
    correct.call(
        "run_atomics",
        seed=seed,
        x=Input(values),
        n=201,
        sum=InOut(sums),
        sum64=InOut(sum64),
        count=InOut(count),
        low=InOut(low),
        high=InOut(high),
        by_cas=InOut(by_cas),
        swapped=InOut(swapped),
    )
    total = values.sum().item()
    assert [t.item() for t in (sums, sum64, by_cas)] == [total] * 3
    assert [t.item() for t in (count, low, high, swapped)] == [201, values.min(), values.max(), 7]


def test_launches_a_gpu_would_refuse(correct):
    invalid_value, invalid_configuration = 1, 9
    assert correct.call("launch_shape", blocks=1, threads=1024, shared_bytes=0) == 0
    assert correct.call("launch_shape", blocks=0, threads=32, shared_bytes=0) == invalid_configuration
    assert correct.call("launch_shape", blocks=1, threads=1025, shared_bytes=0) == invalid_configuration
    assert correct.call("launch_shape", blocks=1, threads=32, shared_bytes=1 << 20) == invalid_value


# What the report must say of each kernel in broken.cu.
BROKEN = {
    "missing_barrier": "race: .*shared variable .*missing_barrier.*tile|uninitialised: .*missing_barrier.*tile",
    "missing_second_barrier": r"race: .*tile, which thread \(\d+, 0, 0\) (wrote|read) since the last barrier",
    "shuffle_is_no_barrier": "race: .*tile|uninitialised: .*tile",
    "plain_counter": "race: write of byte 0 of out",
    "blocks_overlap": r"race: write of .* of out, which thread \(\d+, 0, 0\) wrote in block [01]",
    "global_write_past_end": r"out of bounds: write of 4 bytes, 4 bytes past the end of out \(256 bytes\)",
    "global_read_before_start": r"out of bounds: read of 4 bytes, 4 bytes before values",
    "shared_write_past_end": "past the end of .*tile|insufficient space for an object of type 'float'",
    "shared_index_past_end": r"index 64 out of bounds for type 'float \[64\]'",
    "dynamic_write_past_end": r"out of bounds: write of 4 bytes, 4 bytes past the end of .*dynamic_tile \(252 bytes\)",
    "divergent_barrier": r"divergent barrier: .*\n  threads 32-63 have returned\n"
    r"  threads 0-31 wait at __syncthreads \(.*broken.cu:\d+\)",
    "two_barriers": r"divergent barrier: .* different barriers\n  threads 0-31 wait .*\n  threads 32-63 wait",
    "absent_lanes": r"divergent warp op: .*\n  threads 20-31, 52-63 have returned\n"
    r"  threads 0-19, 32-51 wait at __shfl_xor_sync, mask 0xffffffff",
    "not_in_mask": "bad warp op: __shfl_xor_sync .* mask 0x0000ffff does not name the calling lane",
    "uninitialised_shared": "uninitialised: read of byte 20 of shared variable .*tile",
    "unwritten_output": "uninitialised: read of byte .* of out",
    "misaligned_float4": "misaligned address .* 'const struct float4', which requires 16 byte alignment",
    "writes_input": "input written: write to values",
    "local_array_past_end": "stack-buffer-overflow|insufficient space for an object of type 'float'",
    "signed_overflow": "signed integer overflow",
    "missing_fence": r"race: read of byte [04] of out, which thread \(0, 0, 0\) wrote in block [01]",
}


def test_every_broken_kernel_has_its_line():
    source = (builder.HERE / "samples/broken.cu").read_text()
    kernels = re.findall(r"__global__ void (\w+)", source)
    assert set(kernels) == {*BROKEN, "never_ends"}
    assert len(kernels) == len(re.findall(r"^(?:ENTRY\(|extern)", source, re.MULTILINE))


@pytest.mark.parametrize("kernel", BROKEN)
def test_broken_kernel_is_caught(broken, kernel):
    with pytest.raises(EmulationError) as caught:
        broken.call(f"run_{kernel}", seed=3, values=Input(torch.rand(64)), out=Output(poison(64)))
    assert re.search(BROKEN[kernel], str(caught.value)), caught.value
    assert re.search(r"in block \(\d, 0, 0\)", str(caught.value)), caught.value
    assert "broken.cu:" in str(caught.value)


@pytest.mark.parametrize("kernel", ["missing_barrier", "missing_second_barrier", "blocks_overlap"])
def test_races_are_caught_in_every_order(broken, kernel):
    for seed in SEEDS:
        with pytest.raises(EmulationError, match=r"race|uninitialised"):
            broken.call(f"run_{kernel}", seed=seed, values=Input(torch.rand(64)), out=Output(poison(64)))


def test_a_kernel_without_end_is_stopped():
    library = builder.build(builder.HERE / "samples/broken.cu")
    stopped = pytest.raises(EmulationError, match="no end after 1 s")
    with Emulated(library, timeout=1) as emulated, stopped:
        emulated.call("run_never_ends", values=Input(torch.rand(64)), out=Output(poison(64)))


def test_a_misaligned_array_can_be_asked_for(correct):
    values, partials, total = torch.ones(16).bfloat16(), poison(1), poison(1)
    with pytest.raises(EmulationError, match="misaligned address"):
        correct.call(
            "sum_bf16",
            values=Input(values, misalignment=2),
            partials=Output(partials),
            total=Output(total),
            n=16,
            blocks=1,
        )
