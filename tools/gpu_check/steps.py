# SPDX-License-Identifier: BSD-3-Clause
"""The steps of gpu-check but for the build: what each runs, and what it makes of the outcome."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from table import RESULTS, ROOT, append_rows, read_rows, render

from .report import FAILED, NOT_RUN, PASSED, Result, read_junit, read_sanitizer

ENOUGH_FOR_HUGE = {"tests": 24, "benchmarks": 70}  # GiB
PROBE = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try: found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: found[name] = None
import torch
found |= {"torch": torch.__version__, "cuda of torch": torch.version.cuda, "gpu": None}
if torch.cuda.is_available():
    torch.zeros(1, device="cuda").item()
    p = torch.cuda.get_device_properties(0)
    found |= {"gpu": p.name, "architecture": f"{p.major}{p.minor}", "gpu GiB": round(p.total_memory / 2**30)}
print(json.dumps(found))
"""
PACKAGES = (
    *(
        "torch",
        "triton",
        "numpy",
        "scikit-build-core",
        "cmake",
        "ninja",
        "pytest",
        "pytest-benchmark",
    ),
    *(
        "pytest-xdist",
        "hypothesis",
        "h5py",
        "imagecodecs",
        "imageio",
        "matplotlib",
        "pydantic",
        "pyyaml",
        "rich",
    ),
    *("tensorboard", "tifffile", "typer"),
)
# Apart from the user's: a step finds there what an earlier one compiled.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
TOOLS = ("nvidia-smi", "nvcc", "compute-sanitizer", "cmake", "ninja", "g++")


@dataclass
class Check:
    """What the steps share. `facts` is what the first step found."""

    out: Path
    work: Path
    commit: str
    facts: dict
    python: str = sys.executable
    broken: str | None = None  # the step without which nothing can be run
    defines: dict[str, str] = field(default_factory=dict)  # of CMake, for the build

    @property
    def gpu(self) -> bool:
        return bool(self.facts.get("gpu"))

    def environment(self, **changes: str) -> dict[str, str]:
        paths = [str(Path(self.python).parent), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        caches = {name: str(self.work / name.lower()) for name in CACHES}
        return {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **caches, **changes}

    def run(self, command: list[str], log: str, limit: float, **changes: str) -> int | None:
        """The exit code, or None if it was stopped at `limit` seconds: interrupted a little earlier, to report."""
        environment = self.environment(**changes)
        with (self.out / log).open("a") as file:
            print("$", *command, file=file, flush=True)
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
            for patience, stop in ((max(1, limit - 10), signal.SIGINT), (10, signal.SIGKILL)):
                try:
                    code = process.wait(patience)
                    return code if stop == signal.SIGINT else None
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, stop)
            process.wait()
        return None

    def read(self, log: str) -> str:
        return (self.out / log).read_text(errors="replace")


def versions(check: Check, limit: float) -> Result:
    """Fills in `facts`."""
    tools = {}
    for tool in TOOLS:
        path = shutil.which(tool)
        command = [path, *([] if tool == "nvidia-smi" else ["--version"])]
        tools[tool] = _output(command, 30) if path else None
    probe = subprocess.run(
        [check.python, "-c", PROBE, *PACKAGES], capture_output=True, text=True, timeout=limit, check=False
    )
    if probe.returncode == 0:
        check.facts |= json.loads(probe.stdout.splitlines()[-1])
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "python": sys.executable}
    everything = {"commit": check.commit, "machine": machine, "found": check.facts, "tools": tools}
    (check.out / "versions.json").write_text(json.dumps(everything, indent=2) + "\n")
    if probe.returncode != 0:
        reason = f"{sys.executable} cannot import torch: {probe.stderr.strip().splitlines()[-1]}"
        return Result(FAILED, reason, fatal=True)
    lacking = {
        "packages that are not installed": [name for name in PACKAGES if check.facts[name] is None],
        "tools that are not on the PATH": [tool for tool in TOOLS if tools[tool] is None],
    }
    absent = [f"{what}: {', '.join(names)}" for what, names in lacking.items() if names]
    return Result(PASSED, "in versions.json", absent)


def _output(command: list[str], limit: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        return (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"did not answer: {error}"


def cores() -> int:
    return len(os.sched_getaffinity(0))


def run_pytest(
    check: Check, name: str, limit: float, *arguments: str, on_gpu: bool, workers: int = 0
) -> Result:
    if check.facts.get("pytest") is None:
        return Result(NOT_RUN, "pytest is not installed")
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # the tests ask for deterministic algorithms
    if check.facts.get("pytest-xdist"):
        several = workers if workers > 1 else 0
        arguments = (*arguments, "-n", str(several), *(["--dist", "worksteal"] if several else []))
        if several:
            environment |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    report = check.out / f"{name}.xml"
    command = [check.python, "-m", "pytest", "-p", "no:cacheprovider", "--skip-missing"]
    code = check.run([*command, f"--junitxml={report}", *arguments], f"{name}.txt", limit, **environment)
    if code == 5:
        return Result(NOT_RUN, "there is no such test")
    result = read_junit(report, on_gpu)
    if code is None:
        return Result(
            FAILED, f"stopped at its limit of {limit:.0f} s; until then {result.note}", result.missing
        )
    if code != 0 and result.status != FAILED:
        return Result(FAILED, f"pytest ended with exit code {code}: see {name}.txt", result.missing)
    return result


def gpu_tests(check: Check, limit: float) -> Result:
    """Several processes share the GPU; a few cores are left to the sanitizers and compilers beside them."""
    only = ("-k", "cuda") if check.gpu else ()
    workers = max(1, cores() - 2 - compilers())
    where = ("tests/ops", "tests/train/test_graph_cuda.py")
    return run_pytest(check, "tests_ops", limit, *where, *only, on_gpu=check.gpu, workers=workers)


def huge_tests(check: Check, limit: float) -> Result:
    if (reason := _no_gpu(check)) or (reason := _too_small(check, "tests")):
        return Result(NOT_RUN, reason)
    return run_pytest(check, "tests_huge", limit, "tests/ops", "--slow", "-mslow", "-kcuda", on_gpu=True)


def other_tests(check: Check, limit: float) -> Result:
    """Those that need no GPU, and so are known from `make test`; what only this machine's packages can tell."""
    if not check.gpu:
        return Result(NOT_RUN, "no GPU: make test runs these")
    return run_pytest(check, "tests_rest", limit, "tests", "-k", "not cuda", on_gpu=False, workers=cores())


def sanitizer(tool: str) -> Callable[[Check, float], Result]:
    def run(check: Check, limit: float) -> Result:
        if reason := _no_gpu(check):
            return Result(NOT_RUN, reason)
        if shutil.which("compute-sanitizer") is None:
            return Result(NOT_RUN, "compute-sanitizer is not on the PATH")
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99"]
        command += ["--report-api-errors", "no"] if tool == "memcheck" else []
        command += [check.python, "-m", "tests.ops.small_cases", "--device", "cuda"]
        command += ["--seconds", f"{limit - 20:.0f}"]
        # Every tensor its own cudaMalloc: then a step beyond one is a step out of bounds.
        code = check.run(command, f"{tool}.txt", limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        return read_sanitizer(check.read(f"{tool}.txt"), code)

    return run


def compilers() -> int:
    return max(1, cores() // 4)


def compiled(check: Check, limit: float) -> Result:
    """Several processes compile what the benchmarks will compare with, into the caches on disk."""
    command = [
        check.python,
        "benchmarks/run.py",
        *_of_device(check),
        "--telling",
        "--seconds",
        f"{limit - 20:.0f}",
    ]
    with ThreadPoolExecutor(compilers()) as pool:
        codes = pool.map(
            lambda number: check.run(
                [*command, "--compile", f"{number}/{compilers()}"],
                f"compiled_{number}.txt",
                limit,
                TORCHINDUCTOR_COMPILE_THREADS="1",
                OMP_NUM_THREADS="1",
            ),
            range(compilers()),
        )
        failed = [f"compiled_{number}.txt" for number, code in enumerate(codes) if code != 0]
    text = "".join(check.read(f"compiled_{number}.txt") for number in range(compilers()))
    done = re.findall(r"^# .* compiled in [\d.]+ s$", text, re.M)
    missing = re.findall(r"^# (.*(?:did not compile|not begun).*)$", text, re.M)
    note = f"{len(done)} by {compilers()} processes"
    return (
        Result(FAILED, f"{note}; see {', '.join(failed)}", missing)
        if failed
        else Result(PASSED, note, missing)
    )


def host_time(check: Check, limit: float) -> Result:
    file = check.out / "host_time.json"
    device = "cuda" if check.gpu else "cpu"
    command = [check.python, "benchmarks/bench_overhead.py", "--device", device, "--json", str(file)]
    code = check.run(command, "host_time.txt", limit, OMP_NUM_THREADS="1")
    if code != 0 or not file.exists():
        return Result(FAILED, f"exit code {code}, see host_time.txt" if code is not None else "out of time")
    return Result(PASSED, f"{len(json.loads(file.read_text()))} calls")


def _of_device(check: Check) -> list[str]:
    if check.gpu:
        return ["--device", "cuda", *([] if _too_small(check, "benchmarks") else ["--huge"])]
    return ["--device", "cpu", "--case", "3D float32 codes"]


def benchmarks(check: Check, limit: float) -> Result:
    """First the cases that tell most, then as many of the others as there is time for."""
    begin, folder, missing = time.monotonic(), check.out / "benchmarks", []
    command = [check.python, "benchmarks/run.py", "--results", str(folder), "--commit", check.commit]
    command += _of_device(check)
    if check.gpu:
        command += ["--rounds", "30"]
        if reason := _too_small(check, "benchmarks"):
            missing.append(f"the cases of more than 2**31 elements: {reason}")
    else:
        missing.append("all but one case and two contestants, which show that the script runs: no GPU")
        command += ["--rounds", "3", "--no-memory", "--contestant", "eager"]
    stopped = []
    for kind in ("--telling", *(["--others"] if check.gpu else [])):
        left = limit - (time.monotonic() - begin)
        if left < 20:
            missing.append("the other cases: no time left")
            break
        code = check.run([*command, kind, "--seconds", f"{0.8 * left:.0f}"], "benchmarks.txt", left)
        if code != 0:
            stopped.append(
                "stopped at its limit" if code is None else f"exit code {code}, see benchmarks.txt"
            )
    said = check.read("benchmarks.txt")
    missing += re.findall(r"^# (.*(?:did not run|is not installed|not begun).*)", said, re.M)
    files = sorted(folder.glob("*.csv"))
    rows = [row for file in files for row in read_rows(file)]
    if rows:
        (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
        (folder / "table.md").write_text(render(rows))
    if rows and check.gpu:
        append_rows(RESULTS / files[0].name, rows)
    cases = len({(row["op"], row["case"]) for row in rows})
    note = "; ".join([*dict.fromkeys(stopped), f"{cases} cases measured"])
    return Result(FAILED if stopped or not rows else PASSED, note, missing)


def _no_gpu(check: Check) -> str | None:
    return None if check.gpu else "no GPU that torch can use"


def _too_small(check: Check, what: str) -> str | None:
    needed = ENOUGH_FOR_HUGE[what]
    return None if check.facts["gpu GiB"] >= needed else f"the GPU has less than {needed} GiB"
