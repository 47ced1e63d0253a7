# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels of the built extension stay in registers, on every GPU generation that it holds code for.

A kernel with a stack keeps values in local memory, be it spills or an array that is indexed; one that may says so in
its file: `// May have a stack: <kernel> (why)`. Registers, shared memory and stack of all kernels are printed.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.kernel_budget.build import NotBuilt, cubins
from tools.kernel_budget.sass import Kernel, read_cubin, tool

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
SOURCES = sorted(KERNELS.glob("cuda/*.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None or tool("cuobjdump") is None,
    reason="nvcc or cuobjdump is absent: no CUDA kernel is compiled",
)


def with_a_stack(kernels: list[Kernel], source: str) -> list[str]:
    declared = set(re.findall(r"// May have a stack: (\w+)", source))
    return [
        f"{k.name}: {k.stack + k.local} bytes"
        for k in kernels
        if k.stack + k.local and short(k) not in declared
    ]


def short(kernel: Kernel) -> str:
    """Its name without namespaces, template arguments and parameters."""
    return re.sub(r"<.*|\(.*", "", kernel.name).split("::")[-1].split()[-1]


def table(kernels: list[Kernel]) -> str:
    """One line per kernel; the most that any of its instances takes."""
    lines = ["kernel                               instances registers shared B stack B"]
    for name in sorted({short(kernel) for kernel in kernels}):
        same = [kernel for kernel in kernels if short(kernel) == name]
        registers, shared, stack = (
            max(getattr(k, f) for k in same) for f in ("registers", "shared", "stack")
        )
        lines.append(f"{name:36} {len(same):9} {registers:9} {shared:8} {stack:7}")
    return "\n".join(lines)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_has_a_stack(architecture, tmp_path, capsys):
    try:
        found = cubins(architecture, tmp_path)
    except NotBuilt as reason:
        pytest.skip(str(reason))
    assert sorted(found) == [source.stem for source in SOURCES]
    kernels = {source: read_cubin(found[source.stem]) for source in SOURCES}
    with capsys.disabled():
        print(f"\n{architecture}\n{table([k for of_source in kernels.values() for k in of_source])}")
    for source, of_source in kernels.items():
        assert not with_a_stack(of_source, source.read_text()), source.name


def compiled(source: Path, folder: Path, *of_header: str) -> list[Kernel]:
    subprocess.run([sys.executable, KERNELS / "tuning/cuda.py", folder / "tuning.h", *of_header], check=True)
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        "-DFASTSEG_WITH_CUDA",
        "-arch=sm_90",
        f"-I{KERNELS}",
        f"-I{folder}",
    ]
    subprocess.run([*command, "-cubin", source, "-o", folder / "cubin"], check=True)
    return read_cubin(folder / "cubin")


@pytest.mark.long
@needs_nvcc
@pytest.mark.parametrize(
    "source", [s for s in SOURCES if '#include "tuning.h"' in s.read_text()], ids=lambda path: path.stem
)
def test_every_candidate_of_gpu_tune_stays_in_registers(source, tmp_path):
    every = compiled(source, tmp_path, "--all")
    assert len(every) > len(compiled(source, tmp_path))
    assert not with_a_stack(every, source.read_text())


SPILLS = """
template <class T> __global__ void __launch_bounds__(1024, 2) hungry(const T* values, T* out) {
  __shared__ T last[32];
  T v[64];
  for (int i = 0; i < 64; ++i) v[i] = values[i * 1024 + threadIdx.x];
  for (int k = 0; k < 9; ++k) for (int i = 0; i < 64; ++i) v[i] *= v[(i * 7 + 3) % 64];
  last[threadIdx.x % 32] = v[threadIdx.x % 64];
  __syncthreads();
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = v[i] + last[i % 32];
}
template __global__ void hungry<float>(const float*, float*);
"""


@needs_nvcc
def test_a_spill_is_noticed(tmp_path):
    (tmp_path / "hungry.cu").write_text(SPILLS)
    (kernel,) = compiled(tmp_path / "hungry.cu", tmp_path)
    assert kernel.registers <= 32
    assert kernel.stack > 0
    assert len(with_a_stack([kernel], SPILLS)) == 1
    if shutil.which("c++filt"):
        assert short(kernel) == "hungry"
        assert not with_a_stack([kernel], SPILLS + "// May have a stack: hungry (on purpose)\n")
