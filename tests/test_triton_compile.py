# SPDX-License-Identifier: BSD-3-Clause
"""Every launch of kernels/triton/*.py compiles for each GPU generation, within its shared memory and registers.

The launches are those of the host code, recorded on the CPU. `python -m tests.test_triton_compile` prints registers,
shared memory and spills of all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tools.kernel_budget.sass import cheapest_turn, read_cubin

from .ptx import contracted_exponents

ARCHITECTURES = {80: 166912, 90: 232448, 100: 232448}  # bytes of shared memory a block may have
MOST_SPILLED = 256  # bytes a thread, written and read,
MOST_SPILLED_SORTED = 1024  # and where the main loop, which does not spill, makes up nearly all of the time
# Instructions of the main loop for sm_90, forward and backward: for rows of 128 6.0 and 8.7 by Triton 3.9, 6.17 and 8.4
# by 3.6. With rows of 256 a pair is as much again to the matrix units, and threads have half as many pairs.
MOST_PER_PAIR = {
    "bf16 64 sorted": (6, 10),
    "bf16 128 sorted": (6.2, 10),
    "bf16 256 sorted": (10, 12),
}
NAMES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}

needs_compiler = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter is on: nothing is compiled"
)


@dataclass
class Launch:
    kernel: object
    arguments: dict
    options: dict

    def compile(self, capability: int):
        """As Triton's launcher would: integers of 1 are constants, multiples of 16 are known as such."""
        import triton
        from triton.backends.compiler import GPUTarget

        signature, constants, attributes = {}, {}, {}
        for number, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, self.arguments[parameter.name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[name] = "constexpr"
                constants[(number,)] = value
            elif isinstance(value, torch.Tensor):
                signature[name] = NAMES[value.dtype]
                attributes[(number,)] = [["tt.divisibility", 16]]
            elif isinstance(value, int):
                signature[name] = "i32"
                if value % 16 == 0:
                    attributes[(number,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32"
        source = triton.compiler.ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)


def record_launches(module, shared_memory: int, run) -> list[Launch]:
    """What `run` would launch on a GPU with 132 processors."""
    launches = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*arguments, **keywords):
                names = [parameter.name for parameter in self.kernel.params]
                values = dict(zip(names, arguments, strict=False))
                values |= {name: keywords.pop(name) for name in names if name in keywords}
                launches.append(Launch(self.kernel, values, keywords))

            return launch

    from fastseg.triton import region_contrast_prepare as preparation

    def recorded(module, *kernels):
        return patch.multiple(module, **{name: Recorder(getattr(module, name)) for name in kernels})

    of_gpu = patch.object(module, "_describe", lambda tensor: (132, shared_memory, 90))
    pairs = recorded(module, "measure_rows", "contrast_rows", "contrast_gradient")
    with of_gpu, pairs, recorded(preparation, "gather_rows"):
        run(module)
    return launches


def region_contrast(D, dtype, bank, similarity, denominator=0, groups=False, M=2048):
    """One call forward and backward; few enough pairs for rows to stay as they come, unless M says otherwise."""
    N = 4096

    def run(module):
        anchors = torch.zeros(M, D, dtype=dtype)
        others = torch.zeros(N, D, dtype=dtype) if bank else None
        ids, bank_ids = torch.zeros(M, dtype=torch.int64), torch.zeros(N, dtype=torch.int64) if bank else None
        grouping = (ids, bank_ids) if groups else (None, None)
        inputs = (anchors, others, ids, bank_ids, *grouping, torch.ones(()) if groups else None)
        options = (0.1, None, similarity, denominator, 0)
        loss, *kept = module.region_contrast(*inputs, *options, groups)
        module.region_contrast_backward(loss, *inputs, *kept, *options, True, bank)

    return run


SORTED = 65536  # anchors
CASES = {  # name: D, dtype, bank, similarity, denominator, groups, anchors
    "bf16 64": (64, torch.bfloat16, False, 0),
    "bf16 128": (128, torch.bfloat16, False, 0),
    "bf16 64 sorted": (64, torch.bfloat16, False, 0, 0, False, SORTED),
    "bf16 128 sorted": (128, torch.bfloat16, False, 0, 0, False, SORTED),
    "bf16 256 sorted": (256, torch.bfloat16, False, 0, 0, False, SORTED),
    "bf16 64 bank groups sorted": (64, torch.bfloat16, True, 0, 1, True, SORTED),
    "bf16 100 dot sorted": (100, torch.bfloat16, False, 1, 0, False, SORTED),
    "fp16 128 sorted": (128, torch.float16, False, 0, 0, False, SORTED),
    "fp32 128 sorted": (128, torch.float32, False, 0, 0, False, SORTED),
    "fp32 300 mse sorted": (300, torch.float32, True, 2, 1, False, SORTED),
    "bf16 256": (256, torch.bfloat16, False, 0),
    "bf16 128 bank groups": (128, torch.bfloat16, True, 0, 1, True),
    "bf16 2048": (2048, torch.bfloat16, False, 1),
    "fp16 128": (128, torch.float16, False, 0),
    "fp16 100 bank": (100, torch.float16, True, 1),
    "fp32 128": (128, torch.float32, False, 0),
    "fp32 64 bank groups": (64, torch.float32, True, 2, 1, True),
    "fp32 7500 bank": (7500, torch.float32, True, 2, 1),
}


@dataclass
class Usage:
    case: str
    kernel: str
    registers: int
    shared: int
    spilled: int
    wgmma: bool
    contracted: list[str]
    per_pair: float  # instructions of the main loop, 0 where it was not asked for

    def __str__(self) -> str:
        return (
            f"{self.case:24} {self.kernel:18} {self.registers:9} {self.shared:8} {self.spilled:7} "
            f"{'wgmma' if self.wgmma else '':6} {self.per_pair or '':.4}"
        )


def instructions_per_pair(launch: Launch, cubin: bytes, folder: Path) -> float:
    """Of the cheapest loop with an exponential for every pair of a tile: the one over tiles of negatives."""
    file = folder / "loop.cubin"
    file.write_bytes(cubin)
    (kernel,) = read_cubin(file)
    threads = 32 * launch.options["num_warps"]
    pairs = launch.arguments["BLOCK_M"] * launch.arguments["BLOCK_N"] // threads
    turn = cheapest_turn(kernel.code, {"MUFU": pairs})
    assert turn is not None, f"no loop of {launch.kernel.fn.__name__} has {pairs} exponentials"
    assert turn.is_loop
    assert not [i for i in turn.instructions if i.name in ("LDL", "STL")], "the main loop spills"
    return len(turn.instructions) / pairs


def measure(case: str, capability: int, folder: Path) -> list[Usage]:
    from fastseg.triton import region_contrast as module
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas = get_ptxas(capability).path
    usages = []
    for launch in record_launches(module, ARCHITECTURES[capability], region_contrast(*CASES[case])):
        compiled = launch.compile(capability)
        assert compiled.asm["cubin"]
        file = folder / "kernel.ptx"
        file.write_text(compiled.asm["ptx"])
        target = re.search(r"\.target (\w+)", compiled.asm["ptx"])[1]
        command = [ptxas, "-v", f"--gpu-name={target}", str(file), "-o", str(folder / "kernel.cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True)
        report = report.stderr + report.stdout
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", report)))
        registers = int(re.search(r"Used (\d+) registers", report)[1])
        name = launch.kernel.fn.__name__
        ptx = compiled.asm["ptx"]
        # The fixed shift of sorted cosines is contracted on purpose, and alike in either pass.
        contracted = []
        if name.startswith("contrast") and launch.arguments["FIXED"] is False:
            contracted = contracted_exponents(ptx)
        per_pair = 0.0
        if case in MOST_PER_PAIR and name.startswith("contrast") and capability == 90:
            per_pair = instructions_per_pair(launch, compiled.asm["cubin"], folder)
        shared = compiled.metadata.shared
        usages.append(Usage(case, name, registers, shared, spilled, "wgmma" in ptx, contracted, per_pair))
    return usages


HEADER = f"{'case':24} {'kernel':18} registers shared B spill B"


# All for the GPU with wgmma, and one of each kind for the others: every launch takes the compiler 1 to 2 s.
OFTEN = ("bf16 128", "bf16 128 sorted", "fp16 100 bank", "fp32 64 bank groups")
TESTED = [
    *((90, case) for case in OFTEN),
    *(pytest.param(90, case, marks=pytest.mark.long) for case in CASES if case not in OFTEN),
    *(pytest.param(other, case, marks=pytest.mark.long) for other in (80, 100) for case in OFTEN),
]


@needs_compiler
@pytest.mark.parametrize(("capability", "case"), TESTED)
def test_region_contrast_compiles(capability, case, tmp_path, capsys):
    pytest.importorskip("triton")
    usages = measure(case, capability, tmp_path)
    with capsys.disabled():
        print(f"\nsm_{capability} {HEADER}", *usages, sep="\n")
    bank = CASES[case][2]
    names = [usage.kernel for usage in usages]
    prepared = ["gather_rows"] * (1 + bank) if case.endswith("sorted") else ["measure_rows"]
    assert names == [*prepared, "contrast_rows", *["contrast_gradient"] * (1 + bank)]
    if case in MOST_PER_PAIR and capability == 90:
        for usage, most in zip(usages[-2:], MOST_PER_PAIR[case], strict=True):
            assert 4 < usage.per_pair <= most
    for usage in usages:
        assert usage.shared <= ARCHITECTURES[capability]
        assert usage.spilled <= (MOST_SPILLED_SORTED if case.endswith("sorted") else MOST_SPILLED)
        assert not usage.contracted
        if capability == 90 and usage.kernel.startswith("contrast") and case.startswith(("bf16", "fp16")):
            assert usage.wgmma


@needs_compiler
def test_tiles_are_those_of_the_table():
    pytest.importorskip("triton")
    from fastseg.triton import region_contrast as module

    from fastseg import tuning

    def launched():
        launches = record_launches(module, 232448, region_contrast(128, torch.bfloat16, False, 0))
        names = {"BLOCK_M": "block_m", "BLOCK_N": "block_n", "num_warps": "warps", "num_stages": "stages"}
        return {
            launch.kernel.fn.__name__: {
                own: (launch.arguments | launch.options)[name] for name, own in names.items()
            }
            for launch in launches
            if launch.kernel.fn.__name__ != "measure_rows"
        }

    with tuning.record() as asked:
        default = launched()
    assert {case for _, case in asked} == {"bfloat16 128 few"}
    assert default == {kernel: candidates[0] for (kernel, _), candidates in asked.items()}
    assert set(default) == {"contrast_rows", "contrast_gradient"}
    assert all(len(candidates) > 8 for candidates in asked.values())
    for (kernel, case), candidates in asked.items():
        tuning.force({(kernel, case): candidates[-1]})
        assert launched() == default | {kernel: candidates[-1]}
        tuning.release()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for capability in map(int, sys.argv[1:] or ARCHITECTURES):
            print(f"sm_{capability}\n{HEADER}")
            for case in CASES:
                print(*measure(case, capability, Path(folder)), sep="\n", flush=True)
