# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmark of every op shares: contestants checked against the float64 reference, then timed in turns.

An op's file (bench_masked_bce.py) fills in an `Op` and ends in `main([OP])`; docs/benchmarks.md explains the columns.
"""

import argparse
import datetime
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from measure import (
    clear_gradients,
    copy_bandwidth,
    device_name,
    leaves,
    matrix_rate,
    peak_memory,
    step,
    time_in_turns,
)
from table import OURS, RESULTS, append_rows, commit, device_file, render, save_plot
from telling import CASES as TELLING
from telling import PEER
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}

LARGEST_COMPILED = 2**30  # elements, with --compile, as others share the GPU's memory meanwhile


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    variant: str = ""
    huge: bool = False  # more than 2**31 elements: only with --huge

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, str(self.dtype).removeprefix("torch."), self.variant)))


@dataclass(frozen=True)
class Op:
    """OURS must be among the contestants. What `make` returns is called with the inputs; its results are summed and
    differentiated in those inputs that require a gradient, so they should be small beside the inputs."""

    name: str
    cases: Sequence[Case]
    contestants: Sequence[str]
    make: Callable[[str, Case], Callable[..., Tensor | tuple[Tensor, ...]]]  # ImportError: not installed
    make_inputs: Callable[[Case, str], tuple[Tensor, ...]]
    expected: Callable[[Case, tuple[Tensor, ...]], list[Tensor]]  # float64: results, then gradients
    bytes_moved: Callable[[Case, tuple[Tensor, ...]], tuple[int, int]]  # at least, forward and backward
    tolerance: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCE)
    # Of an op that multiplies matrices, forward and backward: its limit is the rate of the matrix units.
    flops: Callable[[Case], tuple[int, int]] = lambda case: (0, 0)


class Disagreement(Exception):
    pass


def check(function, inputs, expected: list[Tensor], tolerance: float) -> None:
    """Results and gradients within the tolerance of the largest value of what is expected; NaN never is."""
    found = [*step(function, inputs), *(tensor.grad for tensor in leaves(inputs))]
    for number, (value, truth) in enumerate(zip(found, expected, strict=True)):
        scale = truth.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        error = max(
            ((v.double() - t).abs().max() / scale).item() if t.numel() else 0.0
            for v, t in zip(
                value.detach().reshape(-1).split(2**27), truth.reshape(-1).split(2**27), strict=True
            )
        )
        if not error <= tolerance:
            raise Disagreement(f"result {number} is off by {error:.2g} of its largest value")


def peak_memory_apart(op: Op, contestant: str, case: Case, device: str) -> float | None:
    """peak_memory in a process of its own."""
    command = [sys.executable, sys.argv[0], "--memory-of", op.name, contestant, str(case)]
    command += ["--threads", str(torch.get_num_threads()), "--device", device]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def run_case(op: Op, case: Case, options: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """The rows of one case, and what went wrong. Nothing is timed that does not agree with the reference."""
    device, complaints, functions, peaks = options.device, [], {}, {}
    # What is compiled keeps the threads it was compiled for, and a second shape would make its sizes variables.
    torch.compiler.reset()
    inputs = op.make_inputs(case, device)
    expected = op.expected(case, inputs)
    for name in op.contestants:
        try:
            function = op.make(name, case)
            check(function, inputs, expected, op.tolerance[case.dtype])
            if not options.no_memory and device == "cuda":
                peaks[name] = peak_memory(function, inputs, device)
            functions[name] = function
        except ImportError as error:
            print(f"# {op.name}, {case}: {name} is not installed ({error})", flush=True)
        except Disagreement as error:
            complaints.append(f"{op.name}, {case}: {name} is not timed: {error}")
        except Exception as error:
            line = f"{op.name}, {case}: {name} did not run: {type(error).__name__}: {error}".splitlines()[0]
            if name == OURS:
                complaints.append(line)
            else:
                print(f"# {line}", flush=True)
        clear_gradients(inputs)
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    del expected
    times = time_in_turns(functions, inputs, min(options.rounds, 10) if case.huge else options.rounds, device)
    bandwidth, (forward_bytes, backward_bytes) = copy_bandwidth(device), op.bytes_moved(case, inputs)
    moved = {"forward": forward_bytes, "backward": backward_bytes, "both": forward_bytes + backward_bytes}
    arithmetic = dict(zip(("forward", "backward"), op.flops(case), strict=True))
    arithmetic["both"] = sum(arithmetic.values())
    del inputs
    rows = []
    for name, directions in times.items():
        if not options.no_memory and device == "cpu":
            peaks[name] = peak_memory_apart(op, name, case, device)
        peak = peaks.get(name)
        for direction, found in directions.items():
            seconds = found.device
            low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
            flops = arithmetic[direction] if device == "cuda" else 0
            host = f"{1e6 * statistics.median(found.host):.4g}" if device == "cuda" else ""
            rows.append(
                dict(op=op.name, case=str(case), shape="x".join(map(str, case.shape)), contestant=name)
                | dict(direction=direction, threads=torch.get_num_threads(), rounds=len(seconds))
                | dict(median_ms=f"{1e3 * median:.5g}", q25_ms=f"{1e3 * low:.5g}", q75_ms=f"{1e3 * high:.5g}")
                | dict(peak_mib="" if peak is None or direction != "both" else f"{peak:.1f}")
                | dict(host_us=host, bytes=moved[direction], copy_gb_s=f"{bandwidth / 1e9:.4g}")
                | dict(of_copy=f"{moved[direction] / median / bandwidth:.3g}", flops=flops or "")
                | dict(matrix_tflop_s=f"{matrix_rate() / 1e12:.4g}" if flops else "")
                | dict(of_matrix=f"{flops / median / matrix_rate():.3g}" if flops else "")
            )
    return rows, complaints


def compile_case(op: Op, case: Case, device: str) -> str:
    """Compiles what is timed with --telling, into the caches on disk, where another process finds it."""
    begin, inputs = time.perf_counter(), op.make_inputs(case, device)
    torch.compiler.reset()
    for name in (OURS, PEER):  # ours: Triton's kernels
        try:
            step(op.make(name, case), inputs)
        except Exception as error:
            return f"{name} did not compile: {type(error).__name__}: {error}".splitlines()[0]
    return f"compiled in {time.perf_counter() - begin:.1f} s"


def main(ops: Sequence[Op]) -> None:
    parser = argparse.ArgumentParser(description="Time fastseg's ops beside what one would use otherwise.")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--op", help="only the op of this name")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--contestant", nargs="+", help="only these; ours is always there")
    parser.add_argument("--huge", action="store_true", help="also the cases of more than 2**31 elements")
    parser.add_argument(
        "--telling", action="store_true", help=f"only the cases of telling.py, ours beside {PEER} alone"
    )
    parser.add_argument("--others", action="store_true", help="all but those of --telling")
    parser.add_argument("--compile", help="K/N: only compile every Nth case from the Kth on, for another run")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no further case after these"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV (%(default)s)")
    parser.add_argument("--save", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--png", type=Path, help="also draw the table")
    parser.add_argument("--commit", default=commit(), help="where git does not know it (%(default)s)")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    ops = [op for op in ops if options.op in (None, op.name)]
    if options.memory_of:
        torch.set_num_threads(options.threads[0])
        op = next(op for op in ops if op.name == options.memory_of[0])
        case = next(case for case in op.cases if str(case) == options.memory_of[2])
        function, inputs = op.make(options.memory_of[1], case), op.make_inputs(case, options.device)
        print(json.dumps(peak_memory(function, inputs, options.device)))
        return
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    run = dict(date=now, commit=options.commit, device=device_name(options.device), torch=torch.__version__)
    run["command"] = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    file, rows, complaints = device_file(options.results, run["device"]), [], []
    wanted = [
        (threads, op, case)
        for threads in options.threads
        for op in ops
        for case in op.cases
        if options.case in str(case) and (options.huge or not case.huge)
    ]
    if options.telling:
        wanted = [w for w in wanted if (w[1].name, str(w[2])) in TELLING]
        wanted.sort(key=lambda w: TELLING.index((w[1].name, str(w[2]))))
        options.contestant = options.contestant or [PEER]
    if options.others:
        wanted = [w for w in wanted if (w[1].name, str(w[2])) not in TELLING]
    if options.compile:
        first, every = map(int, options.compile.split("/"))
        wanted = [w for w in wanted if torch.Size(w[2].shape).numel() <= LARGEST_COMPILED][first::every]
    begin = time.perf_counter()
    for number, (threads, op, case) in enumerate(wanted):
        if time.perf_counter() - begin > options.seconds:
            print(
                f"# {len(wanted) - number} of {len(wanted)} cases were not begun within {options.seconds:.0f} s"
            )
            break
        torch.set_num_threads(threads)
        if options.compile:
            print(f"# {op.name}, {case}: {compile_case(op, case, options.device)}", flush=True)
            continue
        try:
            new, wrong = run_case(select(op, options.contestant), case, options)
        except Exception as error:  # the other cases may still be measured
            new, wrong = [], [f"{op.name}, {case}: {type(error).__name__}: {error}".splitlines()[0]]
        new = [run | row for row in new]
        append_rows(file, new)  # at once: a run that is stopped keeps what it has
        print(f"# {op.name}, {case}, {threads} threads: {'; '.join(wrong) or 'done'}", flush=True)
        rows, complaints = rows + new, complaints + wrong
    if options.compile:
        return
    if not rows:
        sys.exit("\n".join(complaints) or "no such case")
    text = render(rows)
    print(text, f"Appended to {file}.", sep="\n")
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(text)
    if options.png:
        save_plot(rows, options.png)
    sys.exit("\n".join(complaints) or None)


def select(op: Op, contestants: list[str] | None) -> Op:
    if contestants is None:
        return op
    kept = [name for name in op.contestants if name == OURS or name in contestants]
    return Op(**{**vars(op), "contestants": kept})
