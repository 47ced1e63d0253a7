# SPDX-License-Identifier: BSD-3-Clause
"""CPU seconds that the build takes, file by file, and what a repeated build compiles again.

    python -m tools.compile_times           # the CPU's kernels
    python -m tools.compile_times --cuda    # and CUDA's, for all architectures where there is no GPU

CPU time, of one job at a time, tells more than a clock on a machine that has other work. Needs cmake, ninja and torch.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SLOWEST = 8  # files that get a line of their own
TOUCHED = ("csrc/masked_bce.cpp", "kernels/cpu/masked_bce.cpp", "kernels/masked_bce_math.h")


def launch(log: str, command: list[str]) -> int:
    """Run a compiler and note its CPU time: how this file is called by the build."""
    done = subprocess.run(command, check=False)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    source = next((part for part in command if part.endswith((".cpp", ".cu"))), "")
    with open(log, "a") as file:
        file.write(f"{used.ru_utime + used.ru_stime:.2f} {source}\n")
    return done.returncode


class Build:
    def __init__(self, folder: Path, cuda: bool) -> None:
        from tools.gpu_check.build import find_cmake  # which the launcher is spared, as it is torch

        self.folder, self.log = folder, folder / "times.txt"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        launcher = f"{sys.executable};{Path(__file__).resolve()};--launch;{self.log}"
        defines = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_CXX_COMPILER_LAUNCHER": launcher,
            "CMAKE_CUDA_COMPILER_LAUNCHER": launcher,
            "FASTSEG_CUDA": "ON" if cuda else "OFF",
            "Python_EXECUTABLE": sys.executable,
            "SKBUILD_PROJECT_VERSION": "0",
            "SKBUILD_PROJECT_VERSION_FULL": "0",
        }
        self.cmake = find_cmake(sys.executable)
        settings = [f"-D{name}={value}" for name, value in defines.items()]
        self._run([self.cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *settings])

    def compile(self) -> tuple[dict[str, float], float]:
        """CPU seconds by source, and seconds by the clock, of what is not up to date."""
        self.log.write_text("")
        begin = time.monotonic()
        self._run([self.cmake, "--build", str(self.folder), "--parallel", "1"])
        elapsed = time.monotonic() - begin
        lines = (line.split() for line in self.log.read_text().splitlines())
        return {str(Path(source).relative_to(ROOT)): float(seconds) for seconds, source in lines}, elapsed

    def compilers(self) -> str:
        """As CMake found them."""
        found = "\n".join(
            file.read_text() for file in sorted(self.folder.glob("CMakeFiles/*/CMake*Compiler.cmake"))
        )
        values = re.findall(r'set\(CMAKE_(?:CXX|CUDA)_COMPILER_(?:ID|VERSION) "(.+)"\)', found)
        return " ".join(values)

    def _run(self, command: list[str]) -> None:
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)


def main() -> None:
    if sys.argv[1:2] == ["--launch"]:
        sys.exit(launch(sys.argv[2], sys.argv[3:]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuda", action="store_true", help="with the CUDA kernels")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/compile_times", help="folder (%(default)s)"
    )
    options = parser.parse_args()
    build = Build(options.work.resolve(), options.cuda)
    times, elapsed = build.compile()
    from measure import device_name
    from table import commit

    print(f"commit {commit()}, {device_name('cpu')}, {build.compilers()}\n")
    print("| file | CPU s |\n|---|---|")
    ranked = sorted(times.items(), key=lambda item: -item[1])
    for source, seconds in ranked[:SLOWEST]:
        print(f"| `{source}` | {seconds:.1f} |")
    print(f"| the {len(ranked) - SLOWEST} others | {sum(s for _, s in ranked[SLOWEST:]):.1f} |")
    print(f"| all {len(ranked)} ({elapsed:.0f} s by the clock, one job) | {sum(times.values()):.1f} |\n")
    print("| build again | files compiled | CPU s | s by the clock |\n|---|---|---|---|")
    for touched in (None, *TOUCHED):
        if touched:
            (ROOT / touched).touch()
        times, elapsed = build.compile()
        what = f"`{touched}` touched" if touched else "nothing changed"
        print(f"| {what} | {len(times)} | {sum(times.values()):.1f} | {elapsed:.1f} |")


if __name__ == "__main__":
    main()
