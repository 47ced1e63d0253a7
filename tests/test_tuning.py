# SPDX-License-Identifier: BSD-3-Clause
"""kernels/tuning: the choice of a kernel for an architecture, at launch for Triton and in tuning.h for CUDA."""

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fastseg.tuning import cuda

from fastseg import tuning

ROOT = Path(__file__).resolve().parents[1]
DEFAULT, CANDIDATES = {"warps": 4, "stages": 3}, {"warps": (4, 8), "stages": (2, 3)}


def ask(case="bfloat16 128", architecture=90, **options):
    return tuning.choice("rows", case, architecture, DEFAULT, CANDIDATES, **options)


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(tuning, "_tables", lambda: {90: {"rows": {"bfloat16 128": {"warps": 8}}}})


@pytest.mark.usefixtures("table")
def test_the_table_of_the_architecture_counts_and_else_the_default():
    assert ask() == {"warps": 8, "stages": 3}
    assert ask("float32 64") == ask(architecture=80) == DEFAULT


def test_a_table_of_other_choices_is_refused(monkeypatch):
    monkeypatch.setattr(tuning, "_tables", lambda: {90: {"rows": {"bfloat16 128": {"tile": 8}}}})
    with pytest.raises(
        ValueError, match=r"names \['tile'\] for rows, bfloat16 128, not in \['stages', 'warps'\]"
    ):
        ask()


@pytest.mark.usefixtures("table")
def test_candidates_are_recorded_and_one_can_be_forced():
    @tuning.remembered
    def kept(case):
        return ask(case, fits=lambda values: values["warps"] * values["stages"] <= 16)["warps"]

    assert kept("bfloat16 128") == 8
    with tuning.record() as asked:
        assert kept("bfloat16 128") == 8
    assert asked == {
        ("rows", "bfloat16 128"): [DEFAULT, {"warps": 4, "stages": 2}, {"warps": 8, "stages": 2}]
    }
    tuning.force({("rows", "bfloat16 128"): {"warps": 2}})
    assert kept("bfloat16 128") == 2
    assert ask("float32 64") == DEFAULT
    tuning.release()
    assert kept("bfloat16 128") == 8


def test_every_cuda_kernel_has_a_launch_and_few_candidates():
    launched = "".join(file.read_text() for file in (ROOT / "kernels/cuda").iterdir())
    assert set(re.findall(r"tuning::(\w+)\(", launched)) == set(cuda.CHOICES)
    for kernel in cuda.CHOICES:
        assert 1 < len(cuda.candidates(kernel)) <= cuda.MOST_CANDIDATES


STAND_IN = """
using cudaError_t = int;
namespace fastseg {
inline int of_gpu = 0;
inline int architecture() { return of_gpu; }
}
"""
PROGRAM = """
#include "tuning.h"
extern "C" __attribute__((visibility("default"))) int threads_of_crop(int architecture) {
  fastseg::of_gpu = architecture;
  return fastseg::tuning::crop([](auto choice) { return decltype(choice)::kThreads; });
}
"""


def compiled(folder: Path, header: str) -> ctypes.CDLL:
    for name, text in (("cuda_utils.cuh", STAND_IN), ("tuning.h", header), ("program.cpp", PROGRAM)):
        (folder / name).write_text(text)
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror"]
    command.append("-fno-gnu-unique")  # the variables of two libraries are not one
    subprocess.run([*command, folder / "program.cpp", "-o", folder / "program.so"], check=True)
    return ctypes.CDLL(str(folder / "program.so"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is absent: no header is compiled")
def test_header_chooses_by_architecture(tmp_path, monkeypatch):
    monkeypatch.setitem(cuda.CHOICES, "crop", {"threads": (256, 128, 512)})
    tuned = {sm: {"crop": {"": {"threads": threads}}} for sm, threads in ((90, 512), (100, 512), (80, 256))}
    library = compiled(tmp_path, cuda.header(tuned, False))
    assert [library.threads_of_crop(sm) for sm in (0, 80, 86, 90, 100)] == [256, 256, 256, 512, 512]


class Tuning(ctypes.Structure):
    _fields_ = (("candidate", ctypes.c_int), ("asked", ctypes.c_longlong))


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is absent: no header is compiled")
def test_header_of_all_candidates_takes_the_one_that_is_named(tmp_path):
    library = compiled(tmp_path, cuda.header({}, True))
    variable = Tuning.in_dll(library, "fastseg_tuning_crop")
    for number, values in enumerate(cuda.candidates("crop")):
        variable.candidate = number
        assert library.threads_of_crop(90) == values["threads"]
        assert variable.asked == number + 1


def test_header_refuses_a_value_that_is_no_candidate(tmp_path):
    (tmp_path / "sm_90.json").write_text(json.dumps({"crop": {"": {"threads": 100}}}))
    with pytest.raises(SystemExit, match=r"sm_90.json has .*100.* for crop, which is none of its candidates"):
        cuda.header(cuda.tables(tmp_path), False)


def test_the_tables_of_this_repository_can_be_read():
    cuda.header(cuda.tables(), False)
