# SPDX-License-Identifier: BSD-3-Clause
"""The steps of gpu_check.py but for the build: what each runs, and what it makes of the outcome."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_report import FAILED, NOT_RUN, PASSED, Result, read_junit, read_sanitizer
from table import RESULTS, ROOT, append_rows, read_rows, render

ENOUGH_FOR_HUGE = {"tests": 24, "benchmarks": 100}  # GiB
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
TOOLS = ("nvidia-smi", "nvcc", "compute-sanitizer", "cmake", "ninja", "g++")


@dataclass
class Check:
    """What the steps share. `facts` is what the first step found."""

    out: Path
    work: Path
    commit: str
    facts: dict
    python: str = sys.executable

    @property
    def gpu(self) -> bool:
        return bool(self.facts.get("gpu"))

    def run(self, command: list[str], log: str, limit: float, **environment: str) -> int | None:
        """The exit code, or None if it was stopped at `limit` seconds: interrupted first, so that it can report."""
        paths = [str(Path(self.python).parent), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **environment}
        with (self.out / log).open("a") as file:
            print("$", *command, file=file, flush=True)
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
            for patience, stop in ((limit, signal.SIGINT), (10, signal.SIGKILL)):
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
        return Result(
            FAILED, f"{sys.executable} cannot import torch: {probe.stderr.strip().splitlines()[-1]}"
        )
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


def run_pytest(
    check: Check, name: str, limit: float, *arguments: str, on_gpu: bool, parallel: bool = True
) -> Result:
    if check.facts.get("pytest") is None:
        return Result(NOT_RUN, "pytest is not installed")
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # the tests ask for deterministic algorithms
    workers = min(8, (os.cpu_count() or 1) // 2)
    if parallel and check.facts.get("pytest-xdist") and workers >= 4:
        arguments = (*arguments, "-n", str(workers))
        environment |= {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    report = check.out / f"{name}.xml"
    command = [
        check.python,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--skip-missing",
        f"--junitxml={report}",
        *arguments,
    ]
    code = check.run(command, f"{name}.txt", limit, **environment)
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


def op_tests(check: Check, limit: float) -> Result:
    return run_pytest(check, "tests_ops", limit, "tests/ops", on_gpu=check.gpu)


def huge_tests(check: Check, limit: float) -> Result:
    if (reason := _no_gpu(check)) or (reason := _too_small(check, "tests")):
        return Result(NOT_RUN, reason)
    arguments = ("tests/ops", "--slow", "-mslow", "-kcuda")
    return run_pytest(check, "tests_huge", limit, *arguments, on_gpu=True, parallel=False)


def other_tests(check: Check, limit: float) -> Result:
    if not check.gpu:
        return Result(NOT_RUN, "no GPU: make test runs these")
    return run_pytest(check, "tests_rest", limit, "tests", "--ignore=tests/ops", on_gpu=False)


def sanitizer(tool: str) -> Callable[[Check, float], Result]:
    def run(check: Check, limit: float) -> Result:
        if reason := _no_gpu(check):
            return Result(NOT_RUN, reason)
        if shutil.which("compute-sanitizer") is None:
            return Result(NOT_RUN, "compute-sanitizer is not on the PATH")
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99"]
        command += ["--report-api-errors", "no"] if tool == "memcheck" else []
        command += [
            check.python,
            "-m",
            "tests.ops.small_cases",
            "--device",
            "cuda",
            "--seconds",
            f"{limit - 20:.0f}",
        ]
        # Every tensor its own cudaMalloc: then a step beyond one is a step out of bounds.
        code = check.run(command, f"{tool}.txt", limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        return read_sanitizer(check.read(f"{tool}.txt"), code)

    return run


def benchmarks(check: Check, limit: float) -> Result:
    folder, missing = check.out / "benchmarks", []
    command = [check.python, "benchmarks/run.py", "--results", str(folder), "--commit", check.commit]
    command += ["--seconds", f"{0.7 * limit:.0f}"]
    if check.gpu:
        command += ["--device", "cuda", "--rounds", "50"]
        if reason := _too_small(check, "benchmarks"):
            missing.append(f"the cases of more than 2**31 elements: {reason}")
        else:
            command.append("--huge")
    else:
        missing.append("all but one case and two contestants, which show that the script runs: no GPU")
        command += [
            "--device",
            "cpu",
            "--rounds",
            "3",
            "--no-memory",
            "--contestant",
            "eager",
            "--case",
            "3D float32",
        ]
    if check.facts.get("matplotlib"):
        command += ["--png", str(folder / "table.png")]
    code = check.run(command, "benchmarks.txt", limit)
    missing += re.findall(
        r"^# (.*(?:did not run|is not installed|not begun).*)", check.read("benchmarks.txt"), re.M
    )
    files = sorted(folder.glob("*.csv"))
    rows = [row for file in files for row in read_rows(file)]
    if rows:
        (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
        (folder / "table.md").write_text(render(rows))
    if rows and check.gpu:
        append_rows(RESULTS / files[0].name, rows)
    cases = len({(row["op"], row["case"]) for row in rows})
    if code != 0:
        reason = (
            f"stopped at its limit of {limit:.0f} s"
            if code is None
            else f"exit code {code}, see benchmarks.txt"
        )
        return Result(FAILED, f"{reason}; {cases} cases measured", missing)
    return Result(PASSED, f"{cases} cases measured", missing)


def _no_gpu(check: Check) -> str | None:
    return None if check.gpu else "no GPU that torch can use"


def _too_small(check: Check, what: str) -> str | None:
    needed = ENOUGH_FOR_HUGE[what]
    return None if check.facts["gpu GiB"] >= needed else f"the GPU has less than {needed} GiB"
