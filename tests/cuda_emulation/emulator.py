# SPDX-License-Identifier: BSD-3-Clause
"""Call emulated CUDA kernels with torch tensors: ``Emulated(build(...)).call("symbol", seed=1, x=Input(t), n=3)``."""

import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from .build import HERE, runtime_library

ASAN_OPTIONS = "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0:exitcode=86"
UBSAN_OPTIONS = "print_stacktrace=1:halt_on_error=1:exitcode=86"


class EmulationError(RuntimeError):
    """A kernel did what no kernel may; the message says what, where and in which thread."""


@dataclass
class Input:
    """A device array that the kernel only reads. ``misalignment``: bytes past a multiple of 256."""

    tensor: torch.Tensor
    misalignment: int = 0
    kind = "input"


class Output(Input):
    """A device array that the kernel must write before it reads; what it left comes back in the tensor."""

    kind = "output"


class InOut(Input):
    kind = "inout"


class Emulated:
    """A library from ``build`` and the process that runs it, started when needed."""

    def __init__(self, library: Path, timeout: float = 60.0):
        self.library, self.timeout, self.process = library, timeout, None

    def call(self, symbol: str, *, seed: int = 0, **arguments) -> int:
        """Call an extern "C" function that takes pointers, int64_t and double, and returns int."""
        message = [_pack(name, value) for name, value in arguments.items()]
        process = self._start()
        timer = threading.Timer(self.timeout, process.kill)
        timer.start()
        try:
            pickle.dump((symbol, seed, message), process.stdin)
            process.stdin.flush()
            status, contents = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            process.wait()
            self.errors.seek(0)
            text = self.errors.read().decode(errors="replace")
            self.close()
            if process.returncode == -9:
                text += f"cuda_emulation: no end after {self.timeout:.0f} s"
            raise EmulationError(f"{symbol}, seed {seed}:\n{_readable(text)}") from None
        finally:
            timer.cancel()
        written = (v for v in arguments.values() if isinstance(v, Input) and v.kind != "input")
        for argument, data in zip(written, contents, strict=True):
            if data:
                flat = torch.frombuffer(bytearray(data), dtype=argument.tensor.dtype)
                memory_order(argument.tensor).copy_(flat)
        return status

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
            self.errors.close()
            self.process = None

    def _start(self) -> subprocess.Popen:
        if self.process is None:
            environment = os.environ | {
                "LD_PRELOAD": str(runtime_library()),
                "ASAN_OPTIONS": ASAN_OPTIONS,
                "UBSAN_OPTIONS": UBSAN_OPTIONS,
            }
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-E", str(HERE / "worker.py"), str(self.library)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=environment,
            )
        return self.process

    def __enter__(self) -> "Emulated":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor in any layout as a flat view, in the order they lie in memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _readable(text: str) -> str:
    """The report without the frames of the emulation itself and of libstdc++."""
    own = re.compile(
        r"^ +#\d+ .*( /usr/include/|\.\./src/libsanitizer|/cuda_emulation/(include/|memory|report|scheduler))"
    )
    lines = (line for line in text.splitlines() if not own.match(line))
    return "\n".join(line for line in lines if not re.match(r"^ +#\d+ .*( \(/|<unknown module>)", line))


def _pack(name: str, argument):
    if not isinstance(argument, Input):
        return int(argument) if isinstance(argument, bool) else argument
    tensor = argument.tensor
    data = memory_order(tensor).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return name, argument.kind, tensor.element_size(), argument.misalignment, data
