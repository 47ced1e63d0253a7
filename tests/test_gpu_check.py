# SPDX-License-Identifier: BSD-3-Clause
"""gpu-check: who gets how much time, what counts as passed, failed or not run, and the exit code. No GPU needed."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import telling  # noqa: E402
from table import append_rows, read_rows  # noqa: E402

from tools.gpu_check import __main__ as gpu_check  # noqa: E402
from tools.gpu_check import build, steps  # noqa: E402
from tools.gpu_check.__main__ import Step  # noqa: E402
from tools.gpu_check.report import (  # noqa: E402
    FAILED,
    NOT_RUN,
    PASSED,
    Result,
    read_junit,
    read_sanitizer,
    summarize,
)

from .ops import small_cases  # noqa: E402

NAMES = list(gpu_check.STEPS)
CLEAN = "========= COMPUTE-SANITIZER\n47 of 47 small cases ran on cuda in 9 s\n========= ERROR SUMMARY: 0 errors\n"


def test_all_steps_end_within_nine_minutes_however_long_each_takes():
    elapsed = 0.0
    for turn in sorted({step.turn for step in gpu_check.STEPS.values()}):
        side_by_side = [name for name in NAMES if gpu_check.STEPS[name].turn == turn]
        limits = [gpu_check.allowance(name, elapsed, gpu_check.BUDGET, NAMES) for name in side_by_side]
        for name, limit in zip(side_by_side, limits, strict=True):
            assert limit >= max(15, gpu_check.STEPS[name].reserved)  # what was reserved for it is there
        elapsed += max(limits)
    assert elapsed <= gpu_check.BUDGET <= 9 * 60 - 20


def test_time_that_is_not_used_goes_to_later_steps():
    assert gpu_check.allowance("all other tests", 100, 520, NAMES) == gpu_check.STEPS["all other tests"].most
    assert gpu_check.allowance("all other tests", 500, 520, NAMES) == 20


def test_nothing_else_runs_while_something_is_timed():
    assert sorted(NAMES, key=lambda name: gpu_check.STEPS[name].turn) == NAMES
    for timed in ("host time", "benchmarks"):
        assert [n for n in NAMES if gpu_check.STEPS[n].turn == gpu_check.STEPS[timed].turn] == [timed]


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
        (CLEAN + "numbers: masked_bce, small case 3: off by 0.1\n", 3, PASSED),
        (
            CLEAN.replace("0 errors", "2 errors") + "numbers: masked_bce, small case 3: off by 0.1\n",
            99,
            FAILED,
        ),
        ("Traceback\nRuntimeError: masked_bce, small case 3\n========= ERROR SUMMARY: 0 errors\n", 1, FAILED),
        ("========= ERROR SUMMARY: 0 errors\n", 0, FAILED),  # our script never got to its end
        ("47 of 47 small cases ran on cuda in 9 s\n", 0, FAILED),  # the tool did not look
        (CLEAN, None, FAILED),
    ],
)
def test_sanitizer(text, code, status):
    assert read_sanitizer(text, code).status == status


def test_numbers_that_differ_are_a_line_of_their_own():
    wrong = "numbers: masked_bce, small case 3: off by 0.1, the largest value is 1\n"
    result = read_sanitizer(wrong + CLEAN, 3)
    assert (result.status, result.parts["numbers"].status) == (PASSED, FAILED)
    assert result.parts["numbers"].note == f"1 small cases differ: {wrong.strip().removeprefix('numbers: ')}"
    assert not read_sanitizer(CLEAN, 0).parts


def test_sanitizer_runs_the_small_cases(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $@"\nprintf "{CLEAN}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = steps.sanitizer("racecheck")(a_check(tmp_path), 60.0)
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


def a_check(folder: Path) -> steps.Check:
    return steps.Check(folder, folder / "work", "abc", {"gpu": "some GPU", "pytest": "9"})


def run(monkeypatch, folder, budget=100.0, **found):
    monkeypatch.setattr(gpu_check, "STEPS", found)
    return gpu_check.run_steps(a_check(folder), list(found), budget)


def fine(check, limit):
    return Result(PASSED, "fine")


def test_a_broken_step_does_not_stop_the_others(tmp_path, monkeypatch):
    def explode(check, limit):
        raise OSError("no space")

    results = run(monkeypatch, tmp_path, first=Step(explode, 0, 9, 0), second=Step(fine, 1, 9, 0))
    assert [(r.status, r.note) for r in results.values()] == [(FAILED, "OSError: no space"), (PASSED, "fine")]


def test_nothing_is_tested_on_a_failed_build(tmp_path, monkeypatch):
    def broken(check, limit):
        return Result(FAILED, "no", fatal=True)

    results = run(monkeypatch, tmp_path, build=Step(broken, 0, 9, 0), memcheck=Step(fine, 1, 9, 0))
    assert (results["memcheck"].status, results["memcheck"].note) == (NOT_RUN, "build failed")


def test_a_step_that_takes_all_it_may_leaves_the_later_ones_their_time(tmp_path, monkeypatch):
    limits = {}

    def greedy(name):
        def take(check, limit):
            limits[name] = limit
            time.sleep(limit / 10)  # a tenth, so that the test is quick
            return Result(FAILED, "stopped at its limit")

        return take

    results = run(
        monkeypatch,
        tmp_path,
        budget=40.0,
        tests=Step(greedy("tests"), 0, 100, 0),
        memcheck=Step(greedy("memcheck"), 0, 100, 0),
        benchmarks=Step(fine, 1, 100, 15),
        rest=Step(fine, 2, 100, 5),
    )
    assert limits == {"tests": pytest.approx(20, abs=1), "memcheck": pytest.approx(20, abs=1)}
    assert results["benchmarks"].status == results["rest"].status == PASSED


def test_steps_of_a_turn_run_side_by_side(tmp_path, monkeypatch):
    meeting = threading.Barrier(2, timeout=20)

    def meet(check, limit):
        meeting.wait()
        return Result(PASSED, "met")

    results = run(monkeypatch, tmp_path, tests=Step(meet, 0, 9, 0), memcheck=Step(meet, 0, 9, 0))
    assert [result.note for result in results.values()] == ["met", "met"]


def test_parts_of_a_step_are_lines_of_their_own(tmp_path, monkeypatch):
    def with_parts(check, limit):
        return Result(PASSED, "fine", parts={"numbers": Result(FAILED, "off by 1")})

    results = run(monkeypatch, tmp_path, memcheck=Step(with_parts, 0, 9, 0))
    assert {name: r.status for name, r in results.items()} == {
        "memcheck": PASSED,
        "memcheck: numbers": FAILED,
    }


@pytest.mark.parametrize("devices", [["cpu", "cuda"], ["cpu"]])
def test_an_op_without_a_kernel_on_the_gpu_is_told_and_the_others_are_tested(tmp_path, monkeypatch, devices):
    info = {"file": str(tmp_path / "work/x"), "ops": {"a": ["cpu", "cuda"], "b": devices}}
    info |= {"cuda": "13.0", "cuda_architectures": "90", "compiler": "GNU"}
    answer = subprocess.CompletedProcess([], 0, json.dumps(info), "")
    check = a_check(tmp_path)
    check.facts["architecture"] = "90"
    monkeypatch.setattr(build, "make_environment", lambda folder: "the python")
    monkeypatch.setattr(build, "_importable", lambda python, name: True)
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(steps.Check, "run", lambda *_: 0)
    result = build.build(check, 60)
    assert check.python == "the python"
    assert not result.fatal
    assert (result.status, "no CUDA kernel for b" in result.note) == (
        (FAILED, True) if devices == ["cpu"] else (PASSED, False)
    )


def test_a_step_is_stopped_at_its_limit_and_may_still_report(tmp_path):
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('reported')"
    assert a_check(tmp_path).run([sys.executable, "-c", code], "log.txt", 1.5) is None
    assert "reported" in (tmp_path / "log.txt").read_text()


def test_versions_alone(tmp_path):
    command = [sys.executable, "-m", "tools.gpu_check", "--out", tmp_path / "out", "--steps", "versions"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/versions.json").read_text())
    assert found["found"]["torch"]
    assert "versions: passed" in done.stdout
    again = subprocess.run([*command[:4], tmp_path, *command[5:]], capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    assert (tmp_path / "out/summary.md").exists()


def test_small_cases_agree(capsys):
    small_cases.main(["--device", "cpu"])
    done, _, wanted = capsys.readouterr().out.split()[:3]
    assert done == wanted


def test_small_cases_bite(monkeypatch, capsys):
    def wrong(*tensors, **options):
        loss = small_cases.masked_weighted_bce_of_the_test(*tensors, **options)
        calls.append(loss)
        return loss * 1.1 if len(calls) % 2 else loss

    calls = []
    monkeypatch.setattr(
        small_cases, "masked_weighted_bce_of_the_test", small_cases.masked_weighted_bce, raising=False
    )
    monkeypatch.setattr(small_cases, "masked_weighted_bce", wrong)
    with pytest.raises(SystemExit) as stop:
        small_cases.main(["--device", "cpu"])
    said = capsys.readouterr().out
    assert stop.value.code == 3
    assert "numbers: masked_bce, small case 0: off by" in said
    done, _, wanted = said.splitlines()[-1].split()[:3]  # it went on to the end
    assert done == wanted


def a_gpu(folder: Path, gibibytes: int) -> steps.Check:
    check = a_check(folder)
    check.facts["gpu GiB"] = gibibytes
    return check


@pytest.mark.parametrize(("gibibytes", "huge"), [(80, True), (24, False)])
def test_benchmarks_begin_with_what_tells_most(tmp_path, monkeypatch, gibibytes, huge):
    commands = []

    def run(check, command, log, limit, **environment):
        commands.append(command)
        found = [
            row | {"date": "d", "commit": "abc", "device": "A GPU"}
            for row in rows("a", "b f c", "fused", 1, 2)
        ]
        append_rows(tmp_path / "benchmarks/a_gpu.csv", found)
        (tmp_path / log).write_text("# 3 of 9 cases were not begun within 9 s\n")
        return 0

    monkeypatch.setattr(steps.Check, "run", run)
    monkeypatch.setattr(steps, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(steps, "render", lambda found: "table")
    result = steps.benchmarks(a_gpu(tmp_path, gibibytes), 200)
    assert result.status == PASSED
    assert "3 of 9 cases were not begun within 9 s" in result.missing
    assert ["--telling" in command for command in commands] == [True, False]
    assert all(("--huge" in command) == huge for command in commands)
    assert len(read_rows(tmp_path / "kept/a_gpu.csv")) == 6
    commands.clear()
    assert "the other cases: no time left" in steps.benchmarks(a_gpu(tmp_path, gibibytes), 15).missing


def test_contestants_are_compiled_by_several_processes(tmp_path, monkeypatch):
    def run(check, command, log, limit, **environment):
        number = command[command.index("--compile") + 1].removesuffix("/4")
        text = f"# op, case {number}: compiled in 2.0 s\n"
        text += "# op, other: compile did not compile: RuntimeError: no\n" if number == "3" else ""
        (tmp_path / log).write_text(text)
        return None if number == "1" else 0

    monkeypatch.setattr(steps.Check, "run", run)
    monkeypatch.setattr(steps, "cores", lambda: 16)
    result = steps.compiled(a_gpu(tmp_path, 80), 100)
    assert (result.status, result.note) == (FAILED, "4 by 4 processes; see compiled_1.txt")
    assert result.missing == ["op, other: compile did not compile: RuntimeError: no"]


def test_the_tests_of_the_ops_on_a_gpu_are_those_with_cuda_and_leave_cores_to_their_neighbours(
    tmp_path, monkeypatch
):
    commands = []

    def run(check, command, log, limit, **environment):
        commands.append(command)
        junit(tmp_path, CUDA).rename(tmp_path / "tests_ops.xml")
        return 0

    check = a_gpu(tmp_path, 80)
    check.facts["pytest-xdist"] = "3"
    monkeypatch.setattr(steps.Check, "run", run)
    monkeypatch.setattr(steps, "cores", lambda: 16)
    assert steps.gpu_tests(check, 100).status == PASSED
    assert "-k cuda" in " ".join(map(str, commands[0]))
    assert "-n 10 --dist worksteal" in " ".join(map(str, commands[0]))


def rows(op, case, contestant, forward, backward, **more):
    for direction, value in (("forward", forward), ("backward", backward), ("both", forward + backward)):
        row = {"op": op, "case": case, "threads": 1, "contestant": contestant, "direction": direction}
        yield row | {"median_ms": value, "of_copy": 0.5, "of_matrix": "", "host_us": 220, **more}


def test_table_to_paste():
    found = [
        *rows("masked_bce", "3D float32 codes", "fused", 0.028, 0.018),
        *rows("masked_bce", "3D float32 codes", "compile", 0.018, 0.016),
        *rows("region_contrast", "512 x 128 bfloat16", "fused", 0.006, 0.007, of_matrix=0.1),
    ]
    text = telling.paste(found, [{"name": "a.sum()", "door": "torch", "what": "", "us": 94.3}])
    assert (
        "| masked_bce 2x1x128^3 f32 codes | 0.028 / 0.018 | 0.018 / 0.016 | 0.74x | 50%, 50% | 220 |" in text
    )
    contrast = next(line for line in text.splitlines() if "N 512 / 2048" in line)
    assert "| 0.006 / 0.007; not measured; not measured; not measured | -; -; -; - |" in contrast
    assert "| 10%, 10%; -; -; - |" in contrast
    assert "| a.sum() | torch | 94 |" in text
    assert text.count("\n| ") == len(telling.ROWS) + 3


def test_the_telling_cases_exist_and_are_beside_torch_compile():
    from run import OPS

    known = {(op.name, str(case)): op for op in OPS for case in op.cases}
    for case in telling.CASES:
        assert {telling.OURS, telling.PEER} <= set(known[case].contestants)
