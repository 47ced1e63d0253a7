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
from pathlib import Path

from gpu_build import build
from gpu_report import FAILED, NOT_RUN, Result, summarize
from gpu_steps import Check, benchmarks, huge_tests, op_tests, other_tests, sanitizer, versions
from table import ROOT, commit

TOOLKIT = ("bin", "compute-sanitizer")  # where a CUDA toolkit has its programs
BUDGET = 520  # seconds; 20 more may pass until the last step has ended

# What a step may take at most, and what the steps before must leave it, in seconds.
STEPS = {
    "versions": (versions, 120, 0),
    "build": (build, 150, 0),
    "tests of the ops": (op_tests, 140, 60),
    "tests of more than 2**31 elements": (huge_tests, 60, 20),
    "memcheck": (sanitizer("memcheck"), 110, 50),
    "racecheck": (sanitizer("racecheck"), 110, 50),
    "benchmarks": (benchmarks, 200, 100),
    "all other tests": (other_tests, 300, 60),
}


def allowance(name: str, elapsed: float, budget: float, steps: list[str]) -> float:
    """Seconds that a step may take: its most, or what is left when the steps after it have theirs."""
    later = sum(STEPS[step][2] for step in steps[steps.index(name) + 1 :])
    return min(STEPS[name][1], budget - elapsed - later)


def run_steps(check: Check, steps: list[str], budget: float) -> dict[str, Result]:
    begin, results = time.monotonic(), {}
    for name in steps:
        start, limit = time.monotonic(), allowance(name, time.monotonic() - begin, budget, steps)
        broken = next(
            (s for s in ("versions", "build") if s in results and results[s].status == FAILED), None
        )
        if broken:
            result = Result(NOT_RUN, f"{broken} failed")
        elif limit < 5:
            result = Result(NOT_RUN, "the steps before it left no time")
        else:
            try:
                result = STEPS[name][0](check, limit)
            except Exception as error:  # a later step may still tell something
                result = Result(FAILED, f"{type(error).__name__}: {error}")
        result.seconds = time.monotonic() - start
        results[name] = result
        print(f"{name}: {result.status} in {result.seconds:.0f} s: {result.note}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
