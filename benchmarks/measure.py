# SPDX-License-Identifier: BSD-3-Clause
"""Steps of differentiable functions, and what they take: time in turns, peak memory, and copies to compare with."""

import contextlib
import gc
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

WARM_UP = 3  # steps of each contestant before the first that counts
FEWEST_ROUNDS, MOST_SECONDS = 7, 40  # slow cases take fewer rounds than asked for
# On a GPU every timed step starts with a cold L2, and late enough that the host has queued all of it.
FLUSHED_BYTES = 2**28
HEAD_START_CYCLES = 5_000_000


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

    def start(self) -> None:
        self.marks = []
        if self.flush is not None:
            torch.cuda.synchronize()
            self.flush.zero_()
            torch.cuda._sleep(HEAD_START_CYCLES)
        self.lap()

    def lap(self) -> None:
        if self.flush is None:
            self.marks.append(time.perf_counter())
        else:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()

    def seconds(self) -> list[float]:
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.flush is None:
            return [end - begin for begin, end in pairs]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def time_in_turns(functions: dict, inputs, rounds: int, device: str) -> dict[str, dict[str, list[float]]]:
    """{contestant: {direction: seconds of every round}}; the contestants take turns in every round."""
    watch, differentiable = Stopwatch(device), bool(leaves(inputs))
    directions = ("forward", "backward", "both") if differentiable else ("forward",)
    times = {name: {direction: [] for direction in directions} for name in functions}
    begin = time.perf_counter()
    for number in range(WARM_UP + rounds):
        if number >= WARM_UP + FEWEST_ROUNDS and time.perf_counter() - begin > MOST_SECONDS:
            break
        for name, function in functions.items():
            clear_gradients(inputs)
            watch.start()
            results = forward(function, inputs)
            watch.lap()
            if differentiable:
                backward(results)
                watch.lap()
            laps = watch.seconds()
            if number >= WARM_UP:
                for direction, value in zip(directions, [*laps, sum(laps)], strict=False):
                    times[name][direction].append(value)
            del results
    return times


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
