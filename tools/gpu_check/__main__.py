# SPDX-License-Identifier: BSD-3-Clause
"""Everything a machine with a GPU can tell about fastseg, in one call, offline, in under 9 minutes: `make gpu-check`.

Builds for that GPU apart from any other build, runs the tests and the sanitizer on it, and the benchmarks, and writes
one folder of results with summary.md. Without a GPU it is a dry run. Needs Python and its torch, nothing else; what
lacks a package does not run, and says so. docs/benchmarks.md has the procedure.
"""

import argparse
import datetime
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from table import ROOT, commit

from .build import build
from .report import FAILED, NOT_RUN, Result, summarize
from .steps import (
    Check,
    benchmarks,
    compiled,
    gpu_tests,
    host_time,
    huge_tests,
    other_tests,
    sanitizer,
    versions,
)

TOOLKIT = ("bin", "compute-sanitizer")  # where a CUDA toolkit has its programs
BUDGET = 520  # seconds; 20 more may pass until the last step has ended


@dataclass
class Step:
    """What a step may take at most, and what the steps before must leave it, in seconds. Steps of one turn run side by
    side: nothing in turn 2 is timed, and in turns 3 and 4 nothing else runs, neither on the GPU nor on the CPU."""

    run: Callable[[Check, float], Result]
    turn: int
    most: float
    reserved: float


STEPS = {
    "versions": Step(versions, 0, 60, 0),
    "build": Step(build, 1, 150, 60),
    "tests of the ops": Step(gpu_tests, 2, 210, 120),
    "tests of more than 2**31 elements": Step(huge_tests, 2, 150, 120),
    "memcheck": Step(sanitizer("memcheck"), 2, 210, 120),
    "racecheck": Step(sanitizer("racecheck"), 2, 210, 120),
    "torch.compile of the contestants": Step(compiled, 2, 210, 120),
    "host time": Step(host_time, 3, 40, 15),
    "benchmarks": Step(benchmarks, 4, 200, 120),
    "all other tests": Step(other_tests, 5, 300, 30),
}


def allowance(name: str, elapsed: float, budget: float, steps: list[str]) -> float:
    """Seconds that a step may take: its most, or what is left when the turns after it have theirs."""
    later: dict[int, float] = {}
    for step in (STEPS[step] for step in steps if STEPS[step].turn > STEPS[name].turn):
        later[step.turn] = max(later.get(step.turn, 0), step.reserved)
    return min(STEPS[name].most, budget - elapsed - sum(later.values()))


def run_steps(check: Check, steps: list[str], budget: float) -> dict[str, Result]:
    begin, results = time.monotonic(), {}

    def run(name: str) -> Result:
        start, limit = time.monotonic(), allowance(name, time.monotonic() - begin, budget, steps)
        if check.broken:
            result = Result(NOT_RUN, f"{check.broken} failed")
        elif limit < 5:
            result = Result(NOT_RUN, "the steps before it left no time")
        else:
            try:
                result = STEPS[name].run(check, limit)
            except Exception as error:  # a later step may still tell something
                result = Result(FAILED, f"{type(error).__name__}: {error}")
        result.seconds = time.monotonic() - start
        print(f"{name}: {result.status} in {result.seconds:.0f} s: {result.note}", flush=True)
        return result

    for _, turn in groupby(steps, key=lambda name: STEPS[name].turn):
        names = list(turn)
        with ThreadPoolExecutor(len(names)) as pool:
            for name, result in zip(names, pool.map(run, names), strict=True):
                results[name] = result
                results |= {f"{name}: {part}": found for part, found in result.parts.items()}
        check.broken = check.broken or next((name for name in names if results[name].fatal), None)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build/gpu_check/results", help="folder (%(default)s)"
    )
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS), help="only these, and versions"
    )
    parser.add_argument("--commit", default=commit(), help="where git does not know it (%(default)s)")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all (%(default)s)")
    options = parser.parse_args()
    out = options.out.resolve()
    if out.exists() and any(out.iterdir()):
        if not (out / "summary.md").exists():
            parser.error(
                f"--out {out} is not empty and has no summary.md of an earlier check: name another folder"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    for folder in (Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / part for part in TOOLKIT):
        os.environ["PATH"] += f"{os.pathsep}{folder}"  # last: what is on the PATH already is preferred
    check = Check(out, ROOT / "build" / "gpu_check", options.commit, {})
    begin = time.monotonic()
    results = run_steps(check, [s for s in STEPS if s == "versions" or s in options.steps], options.budget)
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": check.commit,
        "GPU": check.facts.get("gpu") or "none",
        "torch": check.facts.get("torch") or "none",
        "Python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    title = "gpu-check" if check.gpu else "gpu-check, a dry run: there is no GPU that torch can use"
    summary = summarize(title, facts, results, time.monotonic() - begin, out)
    (out / "summary.md").write_text(summary)
    print(f"\n{summary}\nin {out}")
    sys.exit(any(result.status == FAILED for result in results.values()))


if __name__ == "__main__":
    main()
