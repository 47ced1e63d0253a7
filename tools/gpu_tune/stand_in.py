# SPDX-License-Identifier: BSD-3-Clause
"""A GPU for Triton where there is none: kernels are compiled for it and not run; registers and spills are read off the
machine code. And the ops' Triton kernels in place of the CPU's, so that their host code runs on CPU tensors."""

import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from fastseg.triton import region_contrast
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from fastseg import _C

SHARED = {80: 166912, 90: 232448, 100: 232448}  # bytes of shared memory a block may have
MOST_SPILLED = 256  # bytes a thread: a candidate that spills more is not tried


class Spills(Exception):
    pass


class Driver(DriverBase):
    def __init__(self, capability: int) -> None:
        self.capability, self.compiled = capability, []
        self.utils = SimpleNamespace(
            load_binary=self._load,
            get_device_properties=lambda device: {
                "max_shared_mem": SHARED[capability],
                "multiprocessor_count": 132,
            },
            unload_module=lambda module: None,
        )

    def launcher_cls(self, source, metadata):
        return lambda *arguments: None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError("nothing runs on a stand-in")

    @staticmethod
    def is_active() -> bool:
        return True

    def _load(self, name: str, binary: bytes, shared: int, device: int):
        registers, spilled = usage(binary)
        self.compiled.append((name, registers, shared, spilled))
        if spilled > MOST_SPILLED:
            raise Spills(f"{name} spills {spilled} bytes a thread")
        return None, name, registers, spilled, 1024


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of the kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    return int(found[1]), int(found[2])


def install(capability: int) -> Driver:
    """For the rest of this process."""
    driver = Driver(capability)
    triton.runtime.driver.set_active(driver)
    driver.library = torch.library.Library("fastseg", "IMPL")
    for op in ("region_contrast", "region_contrast_backward"):
        driver.library.impl(op, getattr(region_contrast, op), "CPU", allow_override=True)
        setattr(_C, op, getattr(region_contrast, op))  # the other door
    return driver
