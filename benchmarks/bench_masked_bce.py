# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce beside what one writes in PyTorch today, eager and compiled: time and peak memory.

    python benchmarks/bench_masked_bce.py --threads 1 2 --save benchmarks/results/cpu_masked_bce.md
    pytest benchmarks/bench_masked_bce.py      # the same steps under pytest-benchmark

Two conventions of input. "codes": uint8 target and uint8 mask codes, as a loader holds them; PyTorch first builds
the weight map from the codes. "maps": float32 target and a ready float32 weight map, PyTorch's best case.
Every result is checked against the float64 reference before it is timed. Contestants take turns within a run.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastseg

SHAPES = {
    "3D": (2, 1, 128, 128, 128),
    "2D, 3 channels": (8, 3, 512, 512),
    "3D, 32 channels": (2, 32, 64, 64, 64),
}
CASES = [
    *((shape, torch.float32, convention) for shape in SHAPES for convention in ("codes", "maps")),
    ("3D", torch.bfloat16, "codes"),
]
PSEUDO_WEIGHT = 0.3
CONTESTANTS = ("fused", "eager", "compile")


def make_inputs(shape, dtype, convention, device):
    """logits, target, and the mask codes or the weight map, which all channels share."""
    torch.manual_seed(0)
    shape = SHAPES[shape]
    shared = (shape[0], 1, *shape[2:])
    logits = (3 * torch.randn(shape)).to(device, dtype).requires_grad_()
    target = torch.rand(shape, device=device) > 0.5
    codes = torch.randint(0, 3, shared, dtype=torch.uint8, device=device)
    if convention == "codes":
        return logits, target.to(torch.uint8), codes
    return logits, target.to(dtype), weight_map(codes, dtype)


def weight_map(codes, dtype):
    return torch.where(codes == 1, 1.0, torch.where(codes == 2, PSEUDO_WEIGHT, 0.0)).to(dtype)


def make_loss(contestant, convention):
    def fused(logits, target, third):
        if convention == "codes":
            return fastseg.masked_weighted_bce(
                logits, target, third, pseudo_weight=PSEUDO_WEIGHT, impl="fused"
            )
        return fastseg.masked_weighted_bce(logits, target, weight=third, impl="fused")

    def pytorch(logits, target, third):
        weight = weight_map(third, logits.dtype) if convention == "codes" else third
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), weight=weight)

    if contestant == "compile":
        return torch.compile(pytorch, fullgraph=True)
    return fused if contestant == "fused" else pytorch


def step(loss, inputs):
    inputs[0].grad = None
    result = loss(*inputs)
    result.backward()
    return result


def check(loss, inputs, convention):
    """Within 1e-5 of float64 (1e-2 for 16-bit logits) of the largest value."""
    result = step(loss, inputs).item()
    exact = inputs[0].detach().double().requires_grad_()
    options = {"mask" if convention == "codes" else "weight": inputs[2]}
    expected = fastseg.masked_weighted_bce(
        exact, inputs[1], pseudo_weight=PSEUDO_WEIGHT, impl="reference", **options
    )
    expected.backward()
    tolerance = 1e-5 if inputs[0].dtype == torch.float32 else 1e-2
    assert abs(result - expected.item()) <= tolerance * abs(expected.item())
    error = (inputs[0].grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
    assert error <= tolerance, f"gradient is off by {error:.2g}"


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def measure_times(inputs, losses, rounds, device):
    """{contestant: (forward, backward, both)}: lists of seconds; the contestants take turns in every round."""
    times = {name: ([], [], []) for name in losses}
    for number in range(rounds + 3):
        for name, loss in losses.items():
            inputs[0].grad = None
            synchronize(device)
            start = time.perf_counter()
            result = loss(*inputs)
            synchronize(device)
            middle = time.perf_counter()
            result.backward()
            synchronize(device)
            end = time.perf_counter()
            if number >= 3:
                for column, seconds in zip(
                    times[name], (middle - start, end - middle, end - start), strict=True
                ):
                    column.append(seconds)
    return times


def peak_memory(contestant, shape, dtype, convention, device):
    """MiB above inputs during one step, gradient of logits included.

    On the CPU: the high-water mark of resident memory (VmHWM) of this process, reset after two steps of warm-up,
    minus what was resident then. The caller fixes malloc's mmap threshold, so that freed tensors leave at once.
    """
    inputs = make_inputs(shape, dtype, convention, device)
    loss = make_loss(contestant, convention)
    for _ in range(2):
        step(loss, inputs)
    inputs[0].grad = None
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(field):
        text = Path("/proc/self/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    before = status("VmRSS")
    step(loss, inputs)
    return status("VmHWM") - before


def peak_memory_apart(contestant, case, threads, device):
    """peak_memory in a process of its own."""
    shape, dtype, convention = case
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        contestant,
        shape,
        str(dtype).removeprefix("torch."),
        convention,
    ]
    command += ["--threads", str(threads), "--device", device]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def copy_bandwidth(device, rounds=15):
    """Bytes per second of tensor.copy_, read and written, on 256 MiB (beyond any cache)."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds)


def bytes_moved(inputs):
    """What one pass must read forward, and read and write backward."""
    read = sum(tensor.nbytes for tensor in inputs)
    return read, read + inputs[0].nbytes


def bench_case(case, threads, rounds, device, memory):
    """Lines of the table for one case."""
    shape, dtype, convention = case
    inputs = make_inputs(shape, dtype, convention, device)
    losses = {name: make_loss(name, convention) for name in CONTESTANTS}
    for loss in losses.values():
        check(loss, inputs, convention)
    times = measure_times(inputs, losses, rounds, device)
    bandwidth = copy_bandwidth(device)
    ours = statistics.median(times["fused"][2])
    lines = []
    for name, columns in times.items():
        forward, backward, both = (statistics.median(column) for column in columns)
        low, _, high = statistics.quantiles(columns[2], n=4)
        fractions = [b / t / bandwidth for b, t in zip(bytes_moved(inputs), (forward, backward), strict=True)]
        mebibytes = f"{peak_memory_apart(name, case, threads, device):.0f}" if memory else "-"
        lines.append(
            f"| {shape} {str(dtype).removeprefix('torch.')} {convention} | {threads} | {name} "
            f"| {1e3 * forward:.2f} | {1e3 * backward:.2f} | {1e3 * both:.2f} ({1e3 * low:.2f}-{1e3 * high:.2f}) "
            f"| {both / ours:.2f} | {mebibytes} | {fractions[0]:.0%}, {fractions[1]:.0%} |"
        )
    return lines, bandwidth


def machine(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--no-memory", action="store_true", help="skip the processes that measure peak memory"
    )
    parser.add_argument("--save", type=Path, help="also write the table to this file")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        torch.set_num_threads(options.threads[0])
        contestant, shape, dtype, convention = options.memory_of
        print(json.dumps(peak_memory(contestant, shape, getattr(torch, dtype), convention, options.device)))
        return
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    lines = [
        "# masked_bce",
        "",
        f"{machine(options.device)}; torch {torch.__version__}; commit {commit}. Medians of {options.rounds} rounds in "
        "ms, in brackets the quartiles; `times` is forward and backward against ours; peak is MiB above the inputs, "
        "the gradient included; the last column is the share of the copy bandwidth of the same run that the bytes one "
        "pass must move make up, forward and backward. "
        f"Shapes: {', '.join(f'{name} {shape}' for name, shape in SHAPES.items())}.",
        "",
        f"    python benchmarks/bench_masked_bce.py {' '.join(sys.argv[1:])}",
        "",
        "| case | threads | | forward | backward | both | times | peak | of copy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    bandwidths = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        torch.compiler.reset()  # compiled code keeps the number of threads it was compiled for
        for case in CASES:
            new, bandwidth = bench_case(case, threads, options.rounds, options.device, not options.no_memory)
            print("\n".join(new), flush=True)
            lines += new
            bandwidths.append((threads, bandwidth))
    for threads in options.threads:
        median = statistics.median(b for t, b in bandwidths if t == threads)
        lines += ["", f"Copy bandwidth, {threads} threads: {median / 1e9:.1f} GB/s."]
        print("\n".join(lines[-2:]))
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case[0]}-{case[2]}".replace(", ", "-").replace(" ", "-")
)
def test_step(benchmark, case, contestant):
    shape, dtype, convention = case
    inputs = make_inputs(shape, dtype, convention, "cpu")
    loss = make_loss(contestant, convention)
    check(loss, inputs, convention)
    benchmark.group = f"{shape} {dtype} {convention}"
    benchmark.pedantic(step, (loss, inputs), rounds=10, warmup_rounds=2)


if __name__ == "__main__":
    main()
