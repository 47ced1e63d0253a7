# SPDX-License-Identifier: BSD-3-Clause
"""A build of fastseg in an environment of its own, offline, for the GPU that is there: a step of gpu-check."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path

from table import ROOT

from .report import FAILED, PASSED, Result

VERIFY = """
import fastseg, json
print(json.dumps({"file": fastseg.__file__, **fastseg.build_info()}))
"""


def build(check, limit: float) -> Result:
    """By pip, or by cmake alone where scikit-build-core or pip is missing or fails. Points check.python at it."""
    end = time.monotonic() + limit
    python = make_environment(check.work / "env")
    defines = {
        "FASTSEG_CUDA": "ON" if check.gpu else "AUTO",
        "CMAKE_CUDA_FLAGS": "-lineinfo",
        **check.defines,
    }
    if check.gpu:
        defines["CMAKE_CUDA_ARCHITECTURES"] = f"{check.facts['architecture']}-real"
    notes, code = [], None
    missing = [name for name in ("pip", "scikit_build_core") if not _importable(python, name)]
    if missing:
        notes.append(f"{', '.join(missing)} not installed, so built by cmake alone")
    else:
        code = check.run(pip_command(python, check.work, defines), "build_pip.txt", end - time.monotonic())
        if code != 0:
            notes.append("pip failed, see build_pip.txt, so built by cmake alone")
    if code != 0:
        reason = build_by_cmake(check, python, defines, end)
        if reason:
            return Result(FAILED, "; ".join([*notes, reason]), fatal=True)
    done = subprocess.run([python, "-c", VERIFY], capture_output=True, text=True, cwd=check.work, check=False)
    (check.out / "build_info.json").write_text(done.stdout)
    if done.returncode != 0:
        reason = f"cannot be imported: {done.stderr.strip().splitlines()[-1]}"
        return Result(FAILED, "; ".join([*notes, reason]), fatal=True)
    info = json.loads(done.stdout.splitlines()[-1])
    if not Path(info["file"]).is_relative_to(check.work):
        return Result(FAILED, f"another fastseg is in the way: {info['file']}", fatal=True)
    check.python = python
    lacking = [op for op, devices in info["ops"].items() if "cuda" not in devices]
    if lacking and check.gpu:  # the others may still be tested
        return Result(FAILED, "; ".join([*notes, f"no CUDA kernel for {', '.join(lacking)}"]))
    kernels = (
        f"CUDA {info['cuda']} for {info['cuda_architectures']}"
        if info["cuda"]
        else "no CUDA kernels: no nvcc"
    )
    return Result(PASSED, "; ".join([*notes, kernels, info["compiler"]]))


def make_environment(folder: Path) -> str:
    """A virtual environment that sees the packages of this Python, but not what is installed there as editable."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    seen += [path for path in site.getsitepackages() if path not in seen and Path(path).is_dir()]
    # Folders named in a .pth file are searched, but the .pth files inside them, editable installs, are not read.
    (packages(folder) / "of_the_parent.pth").write_text("\n".join(seen) + "\n")
    return str(folder / "bin" / "python")


def packages(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def pip_command(python: str, work: Path, defines: dict[str, str]) -> list[str]:
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--force-reinstall", "-C", f"build-dir={work / 'pip'}"]
    for name, value in defines.items():
        command += ["-C", f"cmake.define.{name}={value}"]
    return [*command, str(ROOT)]


def build_by_cmake(check, python: str, defines: dict[str, str], end: float) -> str | None:
    """Why it failed, or None."""
    cmake = find_cmake(python)
    if cmake is None:
        return "there is no cmake >= 3.26, neither on the PATH nor as a package of this Python"
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    defines = {
        **defines,
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": python,
        "SKBUILD_PROJECT_VERSION": version,
        "SKBUILD_PROJECT_VERSION_FULL": version,
    }
    folder, target = check.work / "cmake", packages(check.work / "env")
    shutil.rmtree(folder, ignore_errors=True)
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), *(f"-D{k}={v}" for k, v in defines.items())]
    configure += ["-G", "Ninja"] if shutil.which("ninja", path=_path()) else []
    compile_all = [cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]
    for command in (configure, compile_all, [cmake, "--install", str(folder), "--prefix", str(target)]):
        if check.run(command, "build_cmake.txt", max(1, end - time.monotonic())) != 0:
            errors = re.findall(
                r"CMake Error.*\n\s*(.*)|^(.*\berror:.*)$|^(.*needs torch.*)$",
                check.read("build_cmake.txt"),
                re.M,
            )
            return f"cmake failed, see build_cmake.txt: {''.join(errors[0]) if errors else 'no message'}"
    for place, source in re.findall(r'^"(fastseg.*)" = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M):
        shutil.copytree(
            ROOT / source, target / place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so")
        )
    metadata = target / f"fastseg-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fastseg\nVersion: {version}\n")
    return None


def find_cmake(python: str) -> str | None:
    """The first that is new enough: on the PATH, or the one that the package `cmake` holds."""
    folder = _output([python, "-c", "import cmake; print(cmake.CMAKE_BIN_DIR)"])
    for cmake in (shutil.which("cmake", path=_path()), str(Path(folder or ".") / "cmake")):
        version = re.search(r"version (\d+)\.(\d+)", _output([cmake, "--version"]) or "") if cmake else None
        if version and tuple(map(int, version.groups())) >= (3, 26):
            return cmake
    return None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _importable(python: str, name: str) -> bool:
    return _output([python, "-c", f"import {name}"]) is not None
