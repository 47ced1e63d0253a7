# SPDX-License-Identifier: BSD-3-Clause
"""Steps of differentiable functions, and what they take: time in turns, peak memory, and copies to compare with."""

import contextlib
import functools
import gc
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

WARM_UP = 3  # steps of each contestant before the first that counts
FEWEST_ROUNDS, MOST_SECONDS = 7, 40  # slow cases take fewer rounds than asked for
# On a GPU every timed step starts with a cold L2, and late enough that the host has queued all of it.
FLUSHED_BYTES = 2**28
HEAD_START = 2.0  # times what the host took for the slowest step of the warm-up
FASTEST_CLOCK = 2.5e9  # cycles a second, of any GPU: the head start is at least that long


def leaves(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor for tensor in inputs if tensor.requires_grad]


def forward(function, inputs) -> list[Tensor]:
    result = function(*inputs)
    return [result] if isinstance(result, Tensor) else list(result)


def backward(results: list[Tensor]) -> None:
    torch.autograd.backward([(r if r.dim() == 0 else r.sum()) for r in results if r.requires_grad])


def clear_gradients(inputs) -> None:
    for tensor in leaves(inputs):
        tensor.grad = None


def step(function, inputs) -> list[Tensor]:
    clear_gradients(inputs)
    results = forward(function, inputs)
    if leaves(inputs):
        backward(results)
    return results


class Stopwatch:
    """Seconds between start() and each lap(): events on a GPU, the clock of the host on a CPU."""

    def __init__(self, device: str):
        self.flush = (
            torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device) if device == "cuda" else None
        )

    def start(self, head_start: float = 1e-3) -> None:
        """On a GPU, it is kept busy for `head_start` seconds or a little more."""
        self.marks, self.host_marks = [], []
        if self.flush is not None:
            torch.cuda.synchronize()
            self.flush.zero_()
            torch.cuda._sleep(int(head_start * FASTEST_CLOCK))
        self.lap()

    def lap(self) -> None:
        self.host_marks.append(time.perf_counter())
        if self.flush is not None:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()

    def host_seconds(self) -> list[float]:
        """Until the host had queued it; on a CPU, until it was done."""
        return [end - begin for begin, end in zip(self.host_marks, self.host_marks[1:], strict=False)]

    def seconds(self) -> list[float]:
        if self.flush is None:
            return self.host_seconds()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in zip(self.marks, self.marks[1:], strict=False)]


@dataclass
class Times:
    """Of every round, in seconds."""

    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)


def time_in_turns(functions: dict, inputs, rounds: int, device: str) -> dict[str, dict[str, Times]]:
    """{contestant: {direction: times}}; the contestants take turns in every round."""
    watch, differentiable = Stopwatch(device), bool(leaves(inputs))
    directions = ("forward", "backward", "both") if differentiable else ("forward",)
    times = {name: {direction: Times() for direction in directions} for name in functions}
    head_starts, begin = dict.fromkeys(functions, 1e-3), time.perf_counter()
    for number in range(WARM_UP + rounds):
        if number >= WARM_UP + FEWEST_ROUNDS and time.perf_counter() - begin > MOST_SECONDS:
            break
        for name, function in functions.items():
            clear_gradients(inputs)
            watch.start(head_starts[name])
            results = forward(function, inputs)
            watch.lap()
            if differentiable:
                backward(results)
                watch.lap()
            laps, of_host = watch.seconds(), watch.host_seconds()
            if 0 < number < WARM_UP:  # the first may have compiled something
                head_starts[name] = max(head_starts[name], HEAD_START * sum(of_host))
            if number >= WARM_UP:
                for direction, value, host in zip(
                    directions, [*laps, sum(laps)], [*of_host, sum(of_host)], strict=False
                ):
                    times[name][direction].device.append(value)
                    times[name][direction].host.append(host)
            del results
    return times


@functools.cache
def matrix_rate(rounds: int = 15) -> float:
    """Floating-point operations per second of a product of bfloat16 matrices, random ones: zeros run faster."""
    left, right = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device="cuda")
    watch, seconds = Stopwatch("cuda"), []
    for _ in range(rounds):
        watch.start()
        torch.mm(left, right)
        watch.lap()
        seconds += watch.seconds()
    return 2 * 8192**3 / statistics.median(seconds)


def copy_bandwidth(device: str, rounds: int = 15) -> float:
    """Bytes per second of tensor.copy_, read and written; beyond any cache."""
    source = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    target, watch, seconds = torch.empty_like(source), Stopwatch(device), []
    for _ in range(rounds):
        watch.start()
        target.copy_(source)
        watch.lap()
        seconds += watch.seconds()
    return 2 * source.nbytes / statistics.median(seconds)


def peak_memory(function, inputs, device: str) -> float | None:
    """MiB above the inputs during one step, gradients included.

    On the CPU: the high-water mark of resident memory (VmHWM) of this process, reset after two steps of warm-up,
    minus what was resident then. The caller fixes malloc's mmap threshold, so that freed tensors leave at once.
    """
    for _ in range(2):
        step(function, inputs)
    clear_gradients(inputs)
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(function, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return None

    def status(field: str) -> float:
        text = Path("/proc/self/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    before = status("VmRSS")
    step(function, inputs)
    return status("VmHWM") - before


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
    return f"CPU {model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
