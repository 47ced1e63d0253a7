# SPDX-License-Identifier: BSD-3-Clause
"""Every kernels/cuda/*.cu compiles for each GPU generation without warnings and without register spills.

Prints registers, shared memory and stack of every kernel; `python tests/test_cuda_compile.py` does only that.
A kernel that may spill says so in its file: `// May spill: <kernel> (why)`.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ["-std=c++17", "-O3", "-DFASTSEG_WITH_CUDA", "-Werror", "all-warnings", "-Xptxas", "-v"]

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc is absent: no CUDA kernel is compiled"
)


@dataclass
class Usage:
    """What ptxas says of one kernel; bytes but for the registers."""

    kernel: str
    registers: int
    shared: int
    stack: int
    spilled: int

    @property
    def name(self) -> str:
        """The kernel without namespaces, template arguments and parameters."""
        return (
            re.sub(r"<.*|\(.*", "", self.kernel.replace("(anonymous namespace)::", ""))
            .split("::")[-1]
            .split()[-1]
        )


def compile_kernels(source: Path, architecture: str, target: Path, *of_header: str) -> list[Usage]:
    header = target.parent / "tuning.h"
    subprocess.run([sys.executable, KERNELS / "tuning/cuda.py", header, *of_header], check=True)
    command = [
        "nvcc",
        *FLAGS,
        f"-arch={architecture}",
        f"-I{KERNELS}",
        f"-I{header.parent}",
        "-cubin",
        str(source),
        "-o",
        str(target),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    report = result.stdout + result.stderr
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{report}")
    return parse(report)


def parse(report: str) -> list[Usage]:
    if shutil.which("c++filt"):
        report = subprocess.run(["c++filt"], input=report, capture_output=True, text=True, check=True).stdout
    usages = []
    for part in re.split(r"Compiling entry function '", report)[1:]:

        def number(pattern: str, part=part) -> int:
            found = re.search(pattern, part)
            return int(found.group(1)) if found else 0

        usages.append(
            Usage(
                kernel=part.split("' for '")[0],
                registers=number(r"Used (\d+) registers"),
                shared=number(r"(\d+) bytes smem"),
                stack=number(r"(\d+) bytes stack frame"),
                spilled=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            )
        )
    return usages


def table(usages: list[Usage], architecture: str) -> str:
    """One line per kernel; the most that any of its instances takes."""
    rows = []
    for name in sorted({u.name for u in usages}):
        same = [u for u in usages if u.name == name]
        most = [max(getattr(u, field) for u in same) for field in ("registers", "shared", "stack", "spilled")]
        rows.append(
            f"{architecture:7} {name:36} {len(same):9} {most[0]:9} {most[1]:8} {most[2]:6} {most[3]:7}"
        )
    return "\n".join(rows)


HEADER = f"{'':7} {'kernel':36} instances registers shared B stack B spill B"


def unexpected_spills(usages: list[Usage], source: str) -> list[str]:
    declared = set(re.findall(r"// May spill: (\w+)", source))
    return [f"{u.kernel}: {u.spilled} bytes" for u in usages if u.spilled and u.name not in declared]


@needs_nvcc
@pytest.mark.parametrize(
    "architecture", ["sm_90", *(pytest.param(a, marks=pytest.mark.long) for a in ("sm_80", "sm_100"))]
)
@pytest.mark.parametrize("source", sorted(KERNELS.glob("cuda/*.cu")), ids=lambda path: path.stem)
def test_compiles_without_spills(source, architecture, tmp_path, capsys):
    usages = compile_kernels(source, architecture, tmp_path / "kernels.cubin")
    assert usages, f"{source.name} has no kernel"
    with capsys.disabled():
        print(f"\n{HEADER}\n{table(usages, architecture)}")
    assert not unexpected_spills(usages, source.read_text())


TUNED = [file for file in sorted(KERNELS.glob("cuda/*.cu")) if '#include "tuning.h"' in file.read_text()]


@needs_nvcc
@pytest.mark.parametrize("source", TUNED, ids=lambda path: path.stem)
def test_every_candidate_of_gpu_tune_compiles_without_spills(source, tmp_path):
    usages = compile_kernels(source, "sm_90", tmp_path / "kernels.cubin", "--all")
    assert len(usages) > len(compile_kernels(source, "sm_90", tmp_path / "kernels.cubin"))
    assert not unexpected_spills(usages, source.read_text())


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
    (usage,) = compile_kernels(tmp_path / "hungry.cu", "sm_90", tmp_path / "hungry.cubin")
    assert usage.spilled > 0
    assert usage.shared == 128
    assert usage.registers <= 32
    assert len(unexpected_spills([usage], SPILLS)) == 1
    if shutil.which("c++filt"):
        assert usage.name == "hungry"
        assert not unexpected_spills([usage], SPILLS + "// May spill: hungry (on purpose)\n")


@needs_nvcc
def test_a_warning_is_an_error(tmp_path):
    (tmp_path / "unused.cu").write_text("__global__ void k(float* out) { int unused = 3; out[0] = 1; }")
    with pytest.raises(RuntimeError, match="unused"):
        compile_kernels(tmp_path / "unused.cu", "sm_90", tmp_path / "unused.cubin")


def main() -> None:
    import tempfile

    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for source in map(Path, sys.argv[1:] or sorted(KERNELS.glob("cuda/*.cu"))):
            for architecture in ARCHITECTURES:
                print(
                    table(compile_kernels(source, architecture, Path(folder) / "kernels.cubin"), architecture)
                )


if __name__ == "__main__":
    main()
