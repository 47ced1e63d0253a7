# SPDX-License-Identifier: BSD-3-Clause
"""gpu-check: who gets how much time, what counts as passed, failed or not run, and the exit code. No GPU needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_check  # noqa: E402
import gpu_steps  # noqa: E402
from gpu_report import FAILED, NOT_RUN, PASSED, Result, read_junit, read_sanitizer, summarize  # noqa: E402

from .ops import small_cases  # noqa: E402

NAMES = list(gpu_check.STEPS)
CLEAN = "========= COMPUTE-SANITIZER\n47 of 47 small cases ran on cuda in 9 s\n========= ERROR SUMMARY: 0 errors\n"


def test_all_steps_end_within_nine_minutes_however_long_each_takes():
    elapsed = 0.0
    for name in NAMES:
        limit = gpu_check.allowance(name, elapsed, gpu_check.BUDGET, NAMES)
        assert limit >= gpu_check.STEPS[name][2]  # what was reserved for it is there
        assert limit >= 15
        elapsed += limit
    assert elapsed <= gpu_check.BUDGET <= 9 * 60 - 20


def test_time_that_is_not_used_goes_to_later_steps():
    assert gpu_check.allowance("all other tests", 100, 520, NAMES) == gpu_check.STEPS["all other tests"][1]
    assert gpu_check.allowance("all other tests", 500, 520, NAMES) == 20


def junit(folder: Path, *cases: str) -> Path:
    (folder / "r.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return folder / "r.xml"


CPU, CUDA = '<testcase classname="t" name="a[cpu]"/>', '<testcase classname="t" name="a[cuda-fused]"/>'
SKIP = '<testcase classname="t" name="b"><skipped message="Skipped: h5py is not installed"/></testcase>'
BAD = '<testcase classname="t" name="c"><failure message="off by 3&#10;more"/></testcase>'


@pytest.mark.parametrize(
    ("cases", "on_gpu", "status", "note"),
    [
        ((CPU, CUDA, SKIP), True, PASSED, "2 tests passed, 1 of them on the GPU"),
        ((CPU, SKIP), False, PASSED, "1 tests passed"),
        (
            (CPU, SKIP),
            True,
            FAILED,
            "1 tests passed, 0 of them on the GPU: the GPU is there, but no test ran on it",
        ),
        ((CUDA, BAD), True, FAILED, "1 tests failed, 1 tests passed, 1 of them on the GPU: t::c: off by 3"),
        ((SKIP, SKIP), False, NOT_RUN, "every test was skipped, or there was none"),
    ],
)
def test_junit(tmp_path, cases, on_gpu, status, note):
    result = read_junit(junit(tmp_path, *cases), on_gpu)
    assert (result.status, result.note) == (status, note)
    assert result.missing == ([f"{cases.count(SKIP)} tests: h5py is not installed"] if SKIP in cases else [])


def test_junit_names_why_a_file_was_not_collected(tmp_path):
    text = "('/t/test_x.py', 0, 'Skipped: yaml is not installed')"
    case = f'<testcase name="x"><skipped message="collection skipped">{text}</skipped></testcase>'
    assert read_junit(junit(tmp_path, case, CPU), False).missing == [
        "1 tests: yaml is not installed (a whole file)"
    ]


def test_no_junit(tmp_path):
    assert read_junit(tmp_path / "absent.xml", False).status == FAILED


@pytest.mark.parametrize(
    ("text", "code", "status"),
    [
        (CLEAN, 0, PASSED),
        (CLEAN.replace("0 errors", "2 errors"), 99, FAILED),
        (
            CLEAN.replace(
                "ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)"
            ),
            0,
            FAILED,
        ),
        (CLEAN.replace("========= C", "torch: X is not supported\n========= C"), 0, PASSED),
        ("========= Error: Device not supported. Please refer to the documentation\n", 1, NOT_RUN),
        ("Traceback\nRuntimeError: masked_bce, small case 3\n========= ERROR SUMMARY: 0 errors\n", 1, FAILED),
        ("========= ERROR SUMMARY: 0 errors\n", 0, FAILED),  # our script never got to its end
        ("47 of 47 small cases ran on cuda in 9 s\n", 0, FAILED),  # the tool did not look
        (CLEAN, None, FAILED),
    ],
)
def test_sanitizer(text, code, status):
    assert read_sanitizer(text, code).status == status


def test_sanitizer_runs_the_small_cases(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $@"\nprintf "{CLEAN}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = gpu_steps.sanitizer("racecheck")(a_check(tmp_path), 60.0)
    assert result.status == PASSED
    log = (tmp_path / "racecheck.txt").read_text()
    assert (
        f"1 --tool racecheck --error-exitcode 99 {sys.executable} -m tests.ops.small_cases --device cuda"
        in log
    )


def test_sanitizer_out_of_time_says_so():
    result = read_sanitizer(CLEAN.replace("47 of 47", "40 of 47"), 0)
    assert (result.status, result.missing) == (PASSED, ["7 of 47 small cases: no time left"])


def test_summary_says_what_did_not_run(tmp_path):
    results = {
        "build": Result(PASSED, "CUDA 13.0"),
        "memcheck": Result(NOT_RUN, "compute-sanitizer is not on the PATH"),
        "tests of the ops": Result(FAILED, "1 tests failed", ["7 tests: hypothesis is not installed"]),
    }
    text = summarize("gpu-check", {"commit": "abc"}, results, 61.0, tmp_path)
    assert "1 passed, 1 FAILED, 1 did not run; 61 s in all." in text
    absent = text.split("## What did not run")[1]
    assert "- memcheck: compute-sanitizer is not on the PATH" in absent
    assert "- tests of the ops, in part: 7 tests: hypothesis is not installed" in absent


def a_check(folder: Path) -> gpu_steps.Check:
    return gpu_steps.Check(folder, folder / "work", "abc", {"gpu": "some GPU", "pytest": "9"})


def test_a_broken_step_does_not_stop_the_others(tmp_path, monkeypatch):
    def explode(check, limit):
        raise OSError("no space")

    steps = {"first": (explode, 9, 0), "second": (lambda check, limit: Result(PASSED, "fine"), 9, 0)}
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    results = gpu_check.run_steps(a_check(tmp_path), list(steps), 100)
    assert [(r.status, r.note) for r in results.values()] == [(FAILED, "OSError: no space"), (PASSED, "fine")]


def test_nothing_is_tested_on_a_failed_build(tmp_path, monkeypatch):
    steps = {name: (lambda check, limit: Result(FAILED, "no"), 9, 0) for name in ("build", "memcheck")}
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    results = gpu_check.run_steps(a_check(tmp_path), list(steps), 100)
    assert (results["memcheck"].status, results["memcheck"].note) == (NOT_RUN, "build failed")


def test_a_step_is_stopped_at_its_limit_and_may_still_report(tmp_path):
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('reported')"
    assert a_check(tmp_path).run([sys.executable, "-c", code], "log.txt", 1.5) is None
    assert "reported" in (tmp_path / "log.txt").read_text()


def test_versions_alone(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu_check.py", "--out", tmp_path / "out", "--steps", "versions"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/versions.json").read_text())
    assert found["found"]["torch"]
    assert "versions: passed" in done.stdout
    again = subprocess.run([*command[:3], tmp_path, *command[4:]], capture_output=True, text=True)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    assert (tmp_path / "out/summary.md").exists()


def test_small_cases_agree(capsys):
    small_cases.main(["--device", "cpu"])
    done, _, wanted = capsys.readouterr().out.split()[:3]
    assert done == wanted


def test_small_cases_bite(monkeypatch):
    def wrong(*tensors, **options):
        loss = small_cases.masked_weighted_bce_of_the_test(*tensors, **options)
        calls.append(loss)
        return loss * 1.1 if len(calls) % 2 else loss

    calls = []
    monkeypatch.setattr(
        small_cases, "masked_weighted_bce_of_the_test", small_cases.masked_weighted_bce, raising=False
    )
    monkeypatch.setattr(small_cases, "masked_weighted_bce", wrong)
    with pytest.raises(RuntimeError, match="masked_bce, small case 0"):
        small_cases.main(["--device", "cpu"])
