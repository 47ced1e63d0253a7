# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast's Triton kernels under Triton's interpreter, which must be switched on before Triton is imported."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("test_region_contrast.py", "test_region_contrast_edges.py")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize("file", FILES)
def test_under_the_interpreter(file):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.triton_interpreter",
        "-p",
        "no:cacheprovider",
    ]
    command += [str(Path("tests/ops") / file)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30
