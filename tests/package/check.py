# SPDX-License-Identifier: BSD-3-Clause
"""Builds the sdist, from it the wheel, and uses both as somebody who installs them would: `make package-check`.

Contents and binary are checked, then each case gets an environment made from nothing: no torch, torch on the CPU, an
older torch. A case that could not run is named with its reason. docs/install.md says what is promised.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from .binary import binary_trouble, newest_versions, read_binary
from .contents import EXTENSION, sdist_names, sdist_trouble, wheel_trouble
from .environments import Environment, Refused

ROOT = Path(__file__).resolve().parents[2]
USE = (Path(__file__).parent / "use.py").read_text()
OPS = ("masked_bce", "patch_entropy", "region_contrast", "region_pool", "region_pool_soft")
TESTS = [f"tests/ops/test_{op}.py" for op in OPS]
TRITON_TESTS = ["tests/ops/test_region_contrast_triton.py", "-k", "test_region_contrast.py"]
OLDER_TORCH_SECONDS = 400  # PyPI's is the CUDA build with its libraries, 3 GB to download
OLDER_NUMPY = "numpy<2.4"  # the interpreter of its Triton takes arrays for numbers, as NumPy then still did


class Check:
    """The cases, in the order in which they run; each returns what is worth a line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work = options.work.resolve()
        self.sdist = self.wheel = self.cpu = None

    def build_sdist(self) -> str:
        build = "from scikit_build_core.build import build_sdist; print(build_sdist('{}'))"
        command = [sys.executable, "-c", build.format(self.work)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Refused(done.stderr)
        self.sdist = self.work / done.stdout.split()[-1]
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
        tracked = listed.stdout.splitlines() if listed.returncode == 0 else None
        refuse(self.sdist, sdist_trouble(self.sdist, tracked))
        shutil.unpack_archive(self.sdist, self.work / "unpacked")
        return f"{describe(self.sdist)}{'' if tracked else ', not compared with git, which is not there'}"

    def without_torch(self) -> str:
        environment = self.environment("no_torch")
        told = environment.run([environment.bin("python"), "-m", "pip", "install", str(self.sdist)], code=1)
        expect("install torch first", told)
        return "pip install SDIST says: install torch first"

    def from_sdist(self) -> str:
        self.cpu = self.environment("cpu")
        self.cpu.pip("install", "--quiet", self.options.torch)
        begin = time.monotonic()
        self.cpu.pip("install", "--verbose", self.sdist)
        seconds = time.monotonic() - begin
        return f"{self.use(self.cpu)}; built in {seconds:.0f} s"

    def check_wheel(self) -> str:
        told = self.cpu.pip("cache", "list", "--format", "abspath", "fastseg")
        kept = [line for line in told.splitlines() if line.endswith(".whl")]
        if kept:  # by pip, when it installed the sdist
            self.wheel = Path(shutil.copy(kept[-1], self.work))
        else:
            self.cpu.pip("wheel", "--no-deps", "--wheel-dir", self.work, self.sdist)
            (self.wheel,) = self.work.glob("*.whl")
        refuse(self.wheel, wheel_trouble(self.wheel, sdist_names(self.sdist), self.options.cuda))
        with zipfile.ZipFile(self.wheel) as archive:
            binary = read_binary(Path(archive.extract(EXTENSION, self.work / "unpacked")))
        refuse(EXTENSION, binary_trouble(binary))
        return (
            f"{describe(self.wheel)}; needs {', '.join(binary.needed)}; {', '.join(newest_versions(binary))}"
        )

    def wheel_without_torch(self) -> str:
        environment = self.environment("no_torch_wheel")
        environment.pip("install", "--quiet", "--no-deps", self.wheel)
        told = environment.run([environment.bin("python"), "-c", "import fastseg"], code=1)
        expect("fastseg needs torch >= 2.11", told)
        return "import fastseg says: fastseg needs torch >= 2.11"

    def from_wheel(self) -> str:
        self.cpu.pip("uninstall", "--quiet", "--yes", "fastseg")
        self.cpu.pip("install", "--quiet", self.wheel)
        return f"{self.use(self.cpu)}; {self.test(self.cpu, TESTS)}"

    def command_line(self) -> str:
        told = self.cpu.run([self.cpu.bin("fastseg"), "info"])
        expect("missing for the training layer: .*typer", told)
        if not self.options.cuda:
            expect("missing CUDA kernels: built without nvcc", told)
        told = self.cpu.run([self.cpu.bin("fastseg"), "check", "run.yaml"], code=2)
        expect("pip install 'fastseg\\[train\\]'", told)
        return "fastseg info says what is missing, fastseg check what to install"

    def import_time(self) -> str:
        """Shown, not judged: a busy machine is no fault of the package."""
        command = [self.cpu.bin("python"), "-X", "importtime", "-c", "import torch; import fastseg"]
        found = [
            int(re.search(r"\| +(\d+) \| fastseg$", self.cpu.run(command), re.MULTILINE)[1]) / 1000
            for _ in range(5)
        ]
        median = statistics.median(found)
        return f"import fastseg after import torch: {median:.0f} ms, the median of 5; under 50 is the aim"

    def older_torch(self) -> str:
        requirement = self.options.older_torch
        environment = self.environment("older", self.options.older_python)
        try:
            environment.pip("install", "--quiet", "--no-cache-dir", requirement, timeout=OLDER_TORCH_SECONDS)
        except Refused as error:
            if self.options.require_older_torch:
                raise
            raise Skipped(
                f"{requirement} cannot be had here: {str(error).splitlines()[-1].strip()}"
            ) from None
        environment.pip("install", "--quiet", self.wheel, OLDER_NUMPY)
        told = f"{self.use(environment)}; {self.test(environment, TESTS)}"
        if "triton" in environment.pip("list"):
            told += f"; Triton's kernels, by its interpreter: {self.test(environment, TRITON_TESTS)}"
        environment.pip("install", "--quiet", "--force-reinstall", "--no-deps", self.sdist)
        told += f"; built beside it: {self.use(environment)}; {self.test(environment, TESTS)}"
        if not self.options.keep:
            shutil.rmtree(environment.folder)
        return told

    def environment(self, name: str, python: str = sys.executable) -> Environment:
        environment = Environment(self.work / name, python)
        environment.variables |= {
            # Not by -C, with which pip keeps no wheel.
            "SKBUILD_CMAKE_DEFINE": f"FASTSEG_CUDA={'ON' if self.options.cuda else 'OFF'}",
            "PIP_CACHE_DIR": str(self.work / "pip_cache"),
        }
        return environment

    def use(self, environment: Environment) -> str:
        return environment.run([environment.bin("python"), "-I", "-c", USE]).splitlines()[-1]

    def test(self, environment: Environment, tests: list[str]) -> str:
        """The sdist's tests, on the installed package: no folder in reach holds another."""
        environment.pip("install", "--quiet", "pytest", "hypothesis")
        (source,) = (self.work / "unpacked").glob("fastseg-*")
        command = [environment.bin("python"), "-m", "pytest", "-q", *tests]
        return environment.run(command, cwd=source).splitlines()[-1]


class Skipped(Exception):
    """A case could not run here; the message says why."""


def refuse(what: object, trouble: list[str]) -> None:
    if trouble:
        raise Refused("\n    ".join([f"{Path(str(what)).name}:", *trouble]))


def expect(pattern: str, text: str) -> None:
    if not re.search(pattern, text):
        raise Refused(f"expected to be told {pattern!r}, was told:\n    {text}")


def describe(path: Path) -> str:
    return f"{path.name}, {path.stat().st_size / 1e6:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build/package", help="folder (%(default)s)")
    parser.add_argument(
        "--torch", default="torch==2.13.0", help="requirement or file of a wheel (%(default)s)"
    )
    parser.add_argument("--older-torch", default="torch==2.11.0", help="the same (%(default)s)")
    parser.add_argument(
        "--older-python",
        default=sys.executable,
        help="for it, of the same version (this one)",
    )
    parser.add_argument("--require-older-torch", action="store_true", help="fail where it cannot be had")
    parser.add_argument("--cuda", action="store_true", help="with the CUDA kernels, for all architectures")
    parser.add_argument("--keep", action="store_true", help="keep the environment of the older torch, 5 GB")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    check = Check(options)
    cases: list[tuple[str, Callable[[], str]]] = [
        ("sdist", check.build_sdist),
        ("sdist, no torch", check.without_torch),
        ("sdist, torch on the CPU", check.from_sdist),
        ("wheel", check.check_wheel),
        ("wheel, no torch", check.wheel_without_torch),
        ("wheel, torch on the CPU", check.from_wheel),
        ("wheel, the ops alone", check.command_line),
        ("import time", check.import_time),
        ("wheel, older torch", check.older_torch),
    ]
    skipped, begin = 0, time.monotonic()
    for name, case in cases:
        start = time.monotonic()
        try:
            told = f"passed: {case()}"
        except Skipped as reason:
            told, skipped = f"SKIPPED: {reason}", skipped + 1
        except Refused as error:
            sys.exit(f"package-check: {name}: FAILED: {error}")
        print(f"package-check: {name} ({time.monotonic() - start:.0f} s) {told}", flush=True)
    left = f", {skipped} skipped" if skipped else ""
    print(
        f"package-check: {len(cases) - skipped} cases passed{left}, {time.monotonic() - begin:.0f} s in all"
    )


if __name__ == "__main__":
    main()
