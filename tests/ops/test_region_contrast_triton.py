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


def run(*arguments):
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
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "2"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.timeout(1800)  # some 100 tests in one process
@pytest.mark.parametrize("file", FILES)
def test_under_the_interpreter(file):
    done = run(f"tests/ops/{file}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


@pytest.mark.long
def test_a_few_under_the_interpreter():
    done = run(f"tests/ops/{FILES[1]}", "-k", "cold or every_digit or integer_types or layouts")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 8


@pytest.mark.long
def test_contraction_is_seen():
    """Where z is not rounded before z - shift, as a GPU's compiler would have it, the tests of large z fail."""
    done = run("tests/ops/test_region_contrast_edges.py", "--plant-contraction", "-k", "cold or every_digit")
    failed = re.findall(r"FAILED \S+::(\w+)", done.stdout)
    assert {"test_cold_and_unnormalised", "test_every_digit_of_a_sure_positive"} <= set(failed), done.stdout[
        -3000:
    ]
