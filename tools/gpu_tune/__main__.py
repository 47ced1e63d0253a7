# SPDX-License-Identifier: BSD-3-Clause
"""How the GPU kernels are best launched on the GPU that is here, in under 5 minutes: `make gpu-tune`.

Builds fastseg with every candidate of its CUDA kernels apart from any other build, compiles Triton's candidates side by
side, then checks and times each on the cases of the benchmarks, and writes kernels/tuning/sm_<architecture>.json, which
the next build and launch read. Without a GPU it is a dry run: Triton's candidates are compiled for compute capability
9.0 with their registers and spills, the rest of the way is gone with a stand-in for the clock, and nothing is written.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from table import ROOT

from tools.gpu_check.build import build
from tools.gpu_check.report import FAILED
from tools.gpu_check.steps import Check, cores, versions

BUDGET, FOR_COMPILING, FOR_SWEEP = 290, 90, 120  # seconds: of all, and of the two last parts
CASES = (  # a benchmark's op and case: each launches kernels that have choices
    ("region_contrast", "512 x 128 bfloat16"),
    ("region_contrast", "8192 x 128 bfloat16"),
    ("region_contrast", "65536 x 128 bfloat16"),
    ("region_contrast", "8192 x 128 float32"),
    ("region_contrast", "65536 x 256 bfloat16"),
    ("masked_bce", "3D float32 codes"),
    ("masked_bce", "3D, 32 channels float32 codes"),
    ("masked_bce", "3D, 32 channels bfloat16 codes"),
    ("patch_entropy", "3D, 512^3, 32 / 16 float16 scores"),
    ("patch_entropy", "3D, 16 / 8 float32 gradient"),
    ("region_pool", "3D, 32 channels float32 random 64"),
    ("region_pool", "3D, 32 channels float32 blocks 4096"),
    ("soft_region_pool", "3D, 32 channels float32"),
    ("soft_region_pool", "3D, 32 channels bfloat16"),
    ("patch_crops", "3D, 32 channels float32"),
    ("patch_crops", "2D, 3 channels float32"),
)


def tune(options: argparse.Namespace) -> None:
    """The sweep itself, in the environment that has the build of all candidates."""
    from run import OPS

    from .choices import Choices
    from .sweep import cases_of, report, seconds_on_gpu, sweep, table

    gpu = torch.cuda.is_available()
    cases = [pair for pair in cases_of(OPS, CASES) if options.case in f"{pair[0].name} {pair[1]}"]
    share = tuple(map(int, options.share.split("/"))) if options.share else (0, 1)
    timed = gpu and not options.share
    if not gpu:
        from .stand_in import install

        driver = install(90)
    # Without a clock, a candidate takes the longer the later it comes.
    timer = seconds_on_gpu if timed else lambda functions, inputs: {n: 1 + n / 100 for n in functions}
    device = "cuda" if gpu else "cpu"
    trials = sweep(cases, Choices(), device, timer, options.seconds, checked=timed, share=share)
    if options.share:
        return
    print(report(trials))
    if not gpu:
        print(
            "\n| Triton kernel | candidates | registers | shared, bytes | spilled, bytes |\n|---|---|---|---|---|"
        )
        for name in sorted({found[0] for found in driver.compiled}):
            of_kernel = [found[1:] for found in driver.compiled if found[0] == name]
            most = " | ".join(f"{min(column)} to {max(column)}" for column in zip(*of_kernel, strict=True))
            print(f"| {name} | {len(of_kernel)} | {most} |")
        return
    major, minor = torch.cuda.get_device_capability()
    file = options.out / f"sm_{major}{minor}.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(table(trials, before), indent=2) + "\n")
    print(f"\nwrote {file}: {torch.cuda.get_device_name()}, torch {torch.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=ROOT / "kernels/tuning", help="folder (%(default)s)")
    parser.add_argument("--case", default="", help="only cases whose op and name contain this")
    parser.add_argument("--seconds", type=float, default=FOR_SWEEP, help="of the sweep (%(default)s)")
    parser.add_argument("--here", action="store_true", help="with the fastseg that is installed: no build")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here or not torch.cuda.is_available():
        tune(options)
        return
    work = ROOT / "build/gpu_tune"
    work.mkdir(parents=True, exist_ok=True)
    check = Check(work, work, "", {}, defines={"FASTSEG_TUNING": "ON"})
    for step in (versions, build):
        result = step(check, BUDGET - FOR_COMPILING - FOR_SWEEP)
        print(f"{step.__name__}: {result.status}: {result.note}", flush=True)
        if result.status == FAILED and result.fatal:
            sys.exit(1)
    arguments = ["-m", "tools.gpu_tune", "--here", "--case", options.case]
    shares = max(1, cores() - 2)
    compilers = [
        subprocess.Popen(
            [check.python, *arguments, "--share", f"{number}/{shares}", "--seconds", str(FOR_COMPILING - 15)],
            cwd=ROOT,
            env=check.environment(OMP_NUM_THREADS="1"),
            stdout=subprocess.DEVNULL,
        )
        for number in range(shares)
    ]
    deadline = time.monotonic() + FOR_COMPILING
    for process in compilers:  # what one does not get to is compiled when it is timed
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    arguments += ["--seconds", str(options.seconds), "--out", str(options.out.resolve())]
    sys.exit(
        subprocess.run([check.python, *arguments], cwd=ROOT, env=check.environment(), check=False).returncode
    )


if __name__ == "__main__":
    main()
