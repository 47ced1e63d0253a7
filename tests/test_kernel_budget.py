# SPDX-License-Identifier: BSD-3-Clause
"""tools/kernel_budget: what it reads from machine code, on kernels whose code is known; and the budgets of ours."""

import shutil
import subprocess

import pytest

from tools.kernel_budget.build import NotBuilt
from tools.kernel_budget.gpu import GPUS, busiest_pipe, resident_blocks
from tools.kernel_budget.kernels import KERNELS, loads
from tools.kernel_budget.report import measure
from tools.kernel_budget.sass import Instruction, Turn, cheapest_turn, read_cubin, tool

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None or tool("cuobjdump") is None,
    reason="nvcc or cuobjdump is absent: no machine code to read",
)

PLANTED = """
// Two vectors in flight, 8 elements a turn; then a loop over single elements, which is not the main one.
__global__ void looped(const float4* values, const float* rest, float* out, int n) {
  float sum = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 512) {
    const float4 a = values[i], b = values[i + 256];
    sum += a.x * a.y + a.z * a.w + b.x * b.y + b.z * b.w;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 256) sum += rest[i];
  out[threadIdx.x] = sum;
}
// The second load has the address that the first one brought: never two in flight.
__global__ void chained(const int4* values, int* out) { out[threadIdx.x] = values[values[threadIdx.x].x].y; }
__global__ void __launch_bounds__(1024) spilling(const float* values, float* out) {
  float v[99];
#pragma unroll
  for (int i = 0; i < 99; ++i) v[i] = values[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 99; ++i) out[i * 1024 + threadIdx.x] = v[i] + v[(i * 7 + 3) % 99];
}
__global__ void switched(const float* values, const double* wide, float* out, int kind) {
  switch (kind) {
    case 0: out[0] = values[0]; break;
    case 1: out[1] = float(wide[0] * 3); break;
    case 2: out[2] = values[2] + 1; break;
    case 3: out[3] = values[3] / out[0]; break;
    case 4: out[4] = values[4] * values[5]; break;
    default: out[5] = 1;
  }
}
"""


@pytest.fixture(scope="module", params=list(GPUS))
def planted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "planted.cu").write_text(PLANTED)
    command = ["nvcc", f"-arch={request.param}", "-cubin", folder / "planted.cu", "-o", folder / "cubin"]
    subprocess.run(command, check=True)
    return {kernel.name.split("(")[0]: kernel for kernel in read_cubin(folder / "cubin")}


@needs_nvcc
def test_the_main_loop_is_the_one_with_the_loads_of_the_table(planted):
    turn = cheapest_turn(planted["looped"].code, loads(16, 16))
    assert turn.is_loop
    assert turn.widths() == {16: 2}
    assert turn.in_flight() == (32, 2)
    assert (
        8 + 2 <= len(turn.instructions) <= 25
    )  # 8 multiplications and additions, 2 loads, and the loop's own
    rest = cheapest_turn(planted["looped"].code, loads(4))
    assert rest.widths() == {4: 1}
    assert len(rest.instructions) < len(turn.instructions)
    assert cheapest_turn(planted["looped"].code, loads(16)) is None


@needs_nvcc
def test_a_load_that_waits_for_another_is_not_in_flight_with_it(planted):
    turn = cheapest_turn(planted["chained"].code, loads(4, 4))
    assert not turn.is_loop
    assert turn.in_flight() == (4, 1)
    assert turn.instructions[-1].name == "EXIT"


@needs_nvcc
def test_spills_are_seen(planted):
    assert planted["spilling"].spills > 20
    assert planted["looped"].spills == 0
    assert planted["spilling"].registers <= 64


@needs_nvcc
@pytest.mark.parametrize("widths", [(8,), (4,), (4, 4), ()])
def test_the_cases_of_a_switch_are_found(planted, widths):
    turn = cheapest_turn(planted["switched"].code, loads(*widths))
    assert sum(i.load_bytes for i in turn.instructions) == sum(widths)


def test_a_warp_whose_lanes_are_together_takes_no_detour():
    code = [
        Instruction(0x00, "", "BRA.DIV", "UR4, 0x30"),
        Instruction(0x10, "", "SHFL.BFLY", "PT, R1, R2, 0x4, 0x1f"),
        Instruction(0x20, "", "EXIT", ""),
        Instruction(0x30, "", "WARPSYNC", "R3"),
        Instruction(0x40, "", "SHFL.BFLY", "PT, R1, R2, 0x4, 0x1f"),
        Instruction(0x50, "", "BRA", "0x20"),
    ]
    assert cheapest_turn(code, {"SHFL": 1}).instructions == code[:3]
    assert cheapest_turn(code, {"SHFL": 1, "WARPSYNC": 1}) is None


def test_a_loop_within_the_turn_counts_as_often_as_it_runs():
    code = [
        Instruction(0x00, "", "LDG.E.128", "R4, [R2]"),
        Instruction(0x10, "", "LDS", "R8, [R9]"),  # of the loop within
        Instruction(0x20, "@!P0", "BRA", "0x10"),
        Instruction(0x30, "", "FADD", "R1, R4, R8"),
        Instruction(0x40, "@!P1", "BRA", "0x0"),
        Instruction(0x50, "", "EXIT", ""),
    ]
    turn, inner = cheapest_turn(code, loads(16)), cheapest_turn(code, {"LDS": 1})
    assert (turn.instructions, inner.instructions) == (code[:5], code[1:3])
    whole = turn.with_inner(inner, 7)
    assert whole.instructions == [code[0], *code[1:3] * 7, *code[3:5]]
    assert whole.in_flight() == (16, 1)
    with pytest.raises(LookupError, match="inner loop"):
        Turn(code[3:5], True).with_inner(inner, 7)


def test_resident_blocks_by_hand():
    sm_90 = GPUS["sm_90"]
    assert resident_blocks(sm_90, 256, 32, 0) == 8  # 2048 threads
    assert resident_blocks(sm_90, 256, 33, 0) == 6  # registers come 8 a thread: 40 * 256 = 10240 of 65536
    assert resident_blocks(sm_90, 256, 128, 0) == 2
    assert resident_blocks(sm_90, 32, 16, 0) == 32
    assert resident_blocks(sm_90, 128, 32, 100 * 1024) == 2
    assert resident_blocks(GPUS["sm_80"], 128, 32, 100 * 1024) == 1


def test_needed_in_flight_is_30_kb_on_an_h200():
    assert GPUS["sm_90"].needed_in_flight == pytest.approx(30e3, rel=0.01)


def test_the_busiest_pipe_is_not_always_issuing():
    def turn(*names):
        return Turn([Instruction(0, "", name, "R1, R2") for name in names], False)

    assert busiest_pipe(turn(*["FFMA"] * 8)) == ("issue", 8 / 128)
    assert busiest_pipe(turn(*["FFMA"] * 6, "MUFU.EX2", "MUFU.LG2")) == ("special", 2 / 16)
    assert busiest_pipe(turn(*["LOP3.LUT"] * 6, "FFMA")) == ("ALU", 6 / 64)


@pytest.mark.long
@pytest.mark.parametrize("budget", KERNELS, ids=lambda budget: budget.label)
def test_budgets_hold(budget, tmp_path_factory):
    try:
        measured = measure(budget, "sm_90", tmp_path_factory.getbasetemp())
    except NotBuilt as reason:
        pytest.skip(str(reason))
    assert measured.kernel.spills == 0, measured.row()
    if budget.instructions:
        assert measured.instructions <= budget.instructions, measured.row()
