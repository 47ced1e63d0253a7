# SPDX-License-Identifier: BSD-3-Clause
"""Builds the extension as other machines do, without a warning, and tests the ops on each: `make build-check`.

    python -m tools.build_check                                  # what CI builds
    python -m tools.build_check --only clang++-19 --tests tests/ops   # one, with all tests of the ops
    python -m tools.build_check --only "g++-13, static libstdc++"     # both in one build

Builds of one compiler share a folder of objects: only what differs is compiled again. What cannot be had here, a
torch to download or a compiler, is skipped by name; --require makes that an error.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tools.gpu_check.build import find_cmake, make_environment, packages

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastseg"
STATIC = "-static-libstdc++ -static-libgcc"
VARIANTS = {
    "torch 2.11": "the headers of torch 2.11, linked with the torch that is here",
    "static libstdc++": f"linked with {STATIC}",
    "torch 2.14.1": "as torch 2.11",
    "clang++-19": "",
    "clang++-14": "",
    "g++-13": "",
    "g++-14": "",
}
BY_DEFAULT = ("torch 2.11, static libstdc++",)
TESTS = [
    f"tests/ops/test_{op}_edges.py"
    for op in ("masked_bce", "patch_entropy", "region_contrast", "region_pool")
]
DOWNLOAD_SECONDS = 300


class Skipped(Exception):
    """A variant could not be built here; the message says why."""


class Failed(Exception):
    """What was run, and the end of what it said."""


def torch_headers(version: str) -> Path:
    """The folder torch/ of that version with its headers, kept in the user's cache; its libraries are not."""
    folder = CACHE / f"torch-{version}" / "torch"
    if folder.exists():
        return folder
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        command += ["--dest", work, f"torch=={version}"]
        try:
            run(command, timeout=DOWNLOAD_SECONDS)
        except (Failed, subprocess.TimeoutExpired) as error:
            raise Skipped(f"torch {version} cannot be downloaded: {str(error).splitlines()[-1]}") from None
        (wheel,) = Path(work).glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            wanted = [n for n in archive.namelist() if re.match(r"torch/(include/|version\.py$)", n)]
            archive.extractall(Path(work) / "unpacked", wanted)
        (Path(work) / "unpacked").rename(folder.parent)  # whole, or not there
    return folder


def variants_of(text: str) -> str:
    if unknown := [name for name in text.split(", ") if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(VARIANTS)}")
    return text


def available(variants: str, require: bool) -> dict[str, dict[str, str]]:
    """CMake's definitions of each variant that can be had here; the others are named."""
    found = {}
    for variant in variants.split(", "):
        try:
            found[variant] = defines_of(variant)
        except Skipped as reason:
            if require:
                sys.exit(f"build-check: {variant}: {reason}")
            print(f"build-check: {variant} SKIPPED: {reason}", flush=True)
    return found


def defines_of(variant: str) -> dict[str, str]:
    if variant.startswith("torch "):
        return {"FASTSEG_TORCH": str(torch_headers(variant.split()[1].replace("2.11", "2.11.0")))}
    if variant == "static libstdc++":
        return {"CMAKE_MODULE_LINKER_FLAGS": STATIC}
    if shutil.which(variant) is None:
        raise Skipped(f"{variant} is not on the PATH")
    return {"CMAKE_CXX_COMPILER": variant}


def build(defines: dict[str, str], work: Path, python: str, cuda: str) -> str:
    """Into the environment of `python`; what its build_info says."""
    compiler = defines.get("CMAKE_CXX_COMPILER", "default")
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    always = {
        "FASTSEG_CUDA": cuda,
        "FASTSEG_TORCH": "",
        "CMAKE_MODULE_LINKER_FLAGS": "",
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_COMPILE_WARNING_AS_ERROR": "ON",
        "Python_EXECUTABLE": python,
        "SKBUILD_PROJECT_VERSION": version,
        "SKBUILD_PROJECT_VERSION_FULL": version,
    }
    folder, target = work / f"objects-{compiler}", packages(work / "env")
    cmake = find_cmake(sys.executable)
    if cmake is None:
        raise Failed("there is no cmake >= 3.26, neither on the PATH nor as a package of this Python")
    configure = [cmake, "-S", ROOT, "-B", folder, *(f"-D{k}={v}" for k, v in {**always, **defines}.items())]
    run([*configure, "-G", "Ninja"] if shutil.which("ninja") else configure)
    run([cmake, "--build", folder, "--parallel", os.cpu_count() or 1])
    run([cmake, "--install", folder, "--prefix", target])
    shutil.copytree(
        ROOT / "python" / "fastseg",
        target / "fastseg",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.so"),
    )
    shutil.copytree(ROOT / "kernels" / "triton", target / "fastseg" / "triton", dirs_exist_ok=True)
    metadata = target / f"fastseg-{version}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fastseg\nVersion: {version}\n")
    told = run(
        [python, "-c", "import fastseg; print(fastseg.__file__, fastseg.build_info(), sep='\\n')"], cwd=work
    )
    file, info = told.splitlines()[-2:]
    if not Path(file).is_relative_to(work):
        raise Failed(f"another fastseg is in the way: {file}")
    return info


def run(command: list, cwd: Path = ROOT, timeout: float | None = None) -> str:
    command = [str(part) for part in command]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode != 0:
        raise Failed("\n".join([" ".join(command), *(done.stdout + done.stderr).splitlines()[-40:]]))
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        type=variants_of,
        metavar="VARIANTS",
        default=BY_DEFAULT,
        help=f"builds (%(default)s), each of one or, with a comma between, several of {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--tests", nargs="+", default=TESTS, help="arguments of pytest (edge cases and messages)"
    )
    parser.add_argument(
        "--cuda", choices=("ON", "OFF"), default="OFF", help="the CUDA kernels too (%(default)s)"
    )
    parser.add_argument("--require", action="store_true", help="fail where a variant cannot be had")
    parser.add_argument("--work", type=Path, default=ROOT / "build/build_check", help="folder (%(default)s)")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = make_environment(work / "env")
    for variants in options.only:
        found = available(variants, options.require)
        if not found:
            continue
        name, start = ", ".join(found), time.monotonic()
        try:
            defines = {key: value for each in found.values() for key, value in each.items()}
            info = build(defines, work, python, options.cuda)
            built = time.monotonic() - start
            command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options.tests]
            tests = run(command).splitlines()[-1]
        except Failed as error:
            sys.exit(f"build-check: {name}: FAILED: {error}")
        seconds = f"{built:.0f} s to build, {time.monotonic() - start - built:.0f} s to test"
        print(f"build-check: {name} passed: {tests}; {seconds}\n    {info}", flush=True)


if __name__ == "__main__":
    main()
