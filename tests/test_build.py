# SPDX-License-Identifier: BSD-3-Clause
"""How CMakeLists.txt meets the machine that builds: ccache on the PATH, no nvcc, a torch that is missing or too old."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.gpu_check.build import find_cmake  # noqa: E402

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
MODULE = "CMakeFiles/_C.dir/csrc/module.cpp.o"
CMAKE, NINJA = find_cmake(sys.executable), shutil.which("ninja", path=PATH)

pytestmark = pytest.mark.skipif(not (CMAKE and NINJA), reason="cmake >= 3.26 or ninja is not installed")


def configure(folder: Path, path: str = PATH, **defines: str) -> subprocess.CompletedProcess:
    defines = {
        "FASTSEG_CUDA": "OFF",
        "Python_EXECUTABLE": sys.executable,
        "SKBUILD_PROJECT_VERSION": "0",
        "SKBUILD_PROJECT_VERSION_FULL": "0",
        **defines,
    }
    command = [CMAKE, "-S", ROOT, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in defines.items())]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.long
def test_compiles_through_ccache(tmp_path: Path) -> None:
    """A stand-in notes what it is asked to compile, and the base that makes folders of sdists alike."""
    stand_in, log = tmp_path / "bin/ccache", tmp_path / "log.txt"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$CCACHE_BASEDIR $*" >> {log}\nexec "$@"\n')
    stand_in.chmod(0o755)
    done = configure(tmp_path / "build", path=f"{stand_in.parent}{os.pathsep}{PATH}")
    assert done.returncode == 0, done.stderr
    assert f"compiling through {stand_in}" in done.stdout
    for _ in range(2):
        subprocess.run([NINJA, "-C", tmp_path / "build", MODULE], check=True, capture_output=True)
    (line,) = log.read_text().splitlines()  # once: the second time nothing had changed
    assert line.startswith(f"{ROOT} ")
    assert line.endswith("csrc/module.cpp")


def test_ccache_can_be_left_out(tmp_path: Path) -> None:
    done = configure(tmp_path, CCACHE="/bin/true", CMAKE_CXX_COMPILER_LAUNCHER="")
    assert done.returncode == 0, done.stderr
    assert "CCACHE_BASEDIR" not in (tmp_path / "build.ninja").read_text()


def test_without_nvcc(tmp_path: Path) -> None:
    no_compiler = {"CMAKE_CUDA_COMPILER": ""}
    done = configure(tmp_path / "on", FASTSEG_CUDA="ON", **no_compiler)
    assert done.returncode == 1
    assert "no CUDA compiler was found: put nvcc on PATH, or set CUDACXX" in " ".join(done.stderr.split())
    done = configure(tmp_path / "auto", FASTSEG_CUDA="AUTO", **no_compiler)
    assert done.returncode == 0, done.stderr
    assert ".cu.o" not in (tmp_path / "auto/build.ninja").read_text()


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, "install torch first"),
        ("2.10.1", "fastseg needs torch >= 2.11, found 2.10.1 in "),
        ("3.0.0", "is newer than the last that fastseg was tried with, 2.14"),
    ],
)
def test_torch_is_missing_too_old_or_too_new(tmp_path: Path, version: str | None, told: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env/bin/python"
    if version:
        (fake,) = (folder / "torch" for folder in (tmp_path / "env/lib").glob("python*/site-packages"))
        fake.mkdir()
        (fake / "__init__.py").touch()
        (fake / "version.py").write_text(f"__version__ = '{version}+cpu'\n")
    done = configure(tmp_path / "build", Python_EXECUTABLE=str(python))
    assert done.returncode == (0 if version == "3.0.0" else 1)
    assert told in " ".join(done.stderr.split())


def test_a_free_threaded_python_is_refused(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    told = "import sysconfig; sysconfig.get_config_vars()['EXT_SUFFIX'] = '.cpython-313t-x86_64-linux-gnu.so'"
    (packages / "free_threaded.pth").write_text(told)
    done = configure(tmp_path / "build", Python_EXECUTABLE=str(tmp_path / "env/bin/python"))
    assert done.returncode == 1
    assert "needs a Python with its global lock" in " ".join(done.stderr.split())


def test_headers_of_another_torch(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(
        "from typing import Optional\n__version__ = '2.11.0+cu130'\ndebug = False\n"
    )
    done = configure(tmp_path / "build", FASTSEG_TORCH=str(tmp_path / "torch"))
    assert done.returncode == 0, done.stderr
    assert f"torch 2.11.0 in {tmp_path / 'torch'}" in done.stdout
    ninja = (tmp_path / "build/build.ninja").read_text()
    assert f"{tmp_path / 'torch'}/include" in ninja
    assert f"-L{Path(torch.__file__).parent / 'lib'}" in ninja  # linked is the torch that is installed
