# SPDX-License-Identifier: BSD-3-Clause
"""gpu-tune: what is tried, what counts as better, what is written; and its dry run, where Triton's kernels are compiled
for a GPU that is not there."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from fastseg.tuning import cuda  # noqa: E402
from harness import Case, Op  # noqa: E402

from fastseg import tuning  # noqa: E402
from tools.gpu_tune import __main__ as gpu_tune  # noqa: E402
from tools.gpu_tune.choices import Choices  # noqa: E402
from tools.gpu_tune.sweep import report, sweep, table  # noqa: E402

from .test_tuning import compiled  # noqa: E402

TAKEN = []  # in which order the toy was launched with which warps


def toy(wrong=None):
    """The sum of squares, whose "kernel" has a choice of warps; with `wrong` of them it is off."""

    def function(values):
        taken = tuning.choice("toy", "line", 90, {"warps": 4}, {"warps": (4, 8, 16, 32)})["warps"]
        TAKEN.append(taken)
        if taken == 32:
            raise RuntimeError("out of shared memory")
        return (values * values).sum() * (1.01 if taken == wrong else 1.0)

    return function


def op(function, *sizes):
    return Op(
        *("toy", [Case(f"line {size}", (size,), torch.float32) for size in sizes], ["fused"]),
        lambda contestant, case: function,
        lambda case, device: (torch.linspace(-1, 1, case.shape[0]).requires_grad_(),),
        lambda case, inputs: [
            inputs[0].detach().double().square().sum(),
            2 * inputs[0].detach().double(),
        ],
        lambda case, inputs: (0, 0),
    )


def tried(function, timer, *sizes, seconds=60.0, **options):
    toys = op(function, *sizes)
    try:
        return sweep([(toys, case) for case in toys.cases], Choices(), "cpu", timer, seconds, **options)
    finally:
        tuning.release()


def clock(**of_warps):
    """A timer by which a candidate takes this long, as its number says: 0 is 4 warps, 1 is 8, 2 is 16."""
    return lambda functions, inputs: {n: dict(enumerate(of_warps.values()))[n] for n in functions}


def test_the_fastest_of_what_is_right_is_written():
    trials = tried(toy(), clock(of_4=1.0, of_8=0.9, of_16=0.5), 10, 11)
    assert table(trials, {}) == {"toy": {"line": {"warps": 16}}}
    assert trials["toy", "line"].refused == {3: "RuntimeError: out of shared memory"}
    assert "| toy | line | 1000.000, 1000.000 | 3 of 4 | {'warps': 16} | 0.50 |" in report(trials)
    assert "- toy line {'warps': 32}: RuntimeError: out of shared memory" in report(trials)


def test_what_is_wrong_is_not_timed():
    trials = tried(toy(wrong=16), clock(of_4=1.0, of_8=0.9, of_16=0.5), 10)
    assert table(trials, {}) == {"toy": {"line": {"warps": 8}}}
    assert "Disagreement" in trials["toy", "line"].refused[2]
    assert tried(toy(wrong=4), clock(of_4=1.0, of_8=0.9, of_16=0.5), 10)["toy", "line"].ratios == {}


def test_what_is_hardly_faster_is_not_written():
    assert table(tried(toy(), clock(of_4=1.0, of_8=0.99, of_16=1.2), 10), {}) == {}


def test_a_candidate_must_do_in_all_cases():
    def timer(functions, inputs):
        return {n: (1.0, 0.9, 0.1 if len(inputs[0]) == 10 else 20.0)[n] for n in functions}

    assert table(tried(toy(), timer, 10, 11), {}) == {"toy": {"line": {"warps": 8}}}


def test_what_was_not_timed_now_stays_in_the_table():
    before = {"other": {"case": {"warps": 2}}, "toy": {"line": {"warps": 8}, "plane": {"warps": 8}}}
    trials = tried(toy(), clock(of_4=1.0, of_8=1.1, of_16=1.2), 10)  # the default is best now
    assert table(trials, before) == {"other": {"case": {"warps": 2}}, "toy": {"plane": {"warps": 8}}}


def test_time_is_kept_to_and_what_was_not_begun_is_told(capsys):
    assert tried(toy(), clock(), 10, 11, seconds=0.0) == {}
    assert "2 of 2 cases were not begun within 0 s" in capsys.readouterr().out


def test_processes_that_compile_share_the_candidates():
    TAKEN.clear()
    tried(toy(), lambda functions, inputs: dict.fromkeys(functions, 1.0), 10, checked=False, share=(1, 3))
    assert set(TAKEN) == {4, 8}  # the default, and every third from the second on


def test_choices_of_cuda_kernels_are_variables_of_the_build(tmp_path):
    library = compiled(tmp_path, cuda.header({}, True))
    choices = Choices(str(tmp_path / "program.so"))
    asked = choices.asked_for_by(lambda: library.threads_of_crop(90))
    assert asked == {("crop", ""): cuda.candidates("crop")}
    for values in cuda.candidates("crop"):
        choices.take(("crop", ""), values)
        assert library.threads_of_crop(90) == values["threads"]


def test_an_ordinary_build_has_no_choice_of_cuda_kernels():
    assert Choices().variables == {}


def test_the_cases_exist():
    from run import OPS

    from tools.gpu_tune.sweep import cases_of

    assert len(cases_of(OPS, gpu_tune.CASES)) == len(gpu_tune.CASES)


DRY = """
import sys
sys.path.insert(0, {root!r})
from tools.gpu_tune.stand_in import Driver, MOST_SPILLED, Spills
import torch, triton, triton.language as tl
from triton.runtime.errors import OutOfResources

driver = Driver(90)
triton.runtime.driver.set_active(driver)

@triton.jit
def rows(values, out, N: tl.constexpr, D: tl.constexpr):
    v = tl.load(values + tl.arange(0, N)[:, None] * D + tl.arange(0, D)[None])
    tl.store(out + tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None], tl.dot(v, tl.trans(v)))

values, out = torch.zeros(1 << 20, dtype=torch.bfloat16), torch.zeros(1 << 20)
for n, d, warps in ((64, 128, 4), (256, 128, 4), (256, 1024, 8)):
    try:
        rows[(1,)](values, out, n, d, num_warps=warps)
        print("compiled", *driver.compiled[-1])
    except (Spills, OutOfResources) as error:
        print("refused", type(error).__name__, error)
"""

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not installed, or its interpreter is on",
)


@pytest.mark.long
@needs_triton
def test_the_stand_in_compiles_and_refuses(tmp_path):
    (tmp_path / "dry.py").write_text(DRY.format(root=str(ROOT)))
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, tmp_path / "dry.py"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    first, *refused = done.stdout.splitlines()
    name, registers, shared, spilled = first.removeprefix("compiled ").split()
    assert name == "rows"
    assert int(registers) > 30
    assert int(shared) > 0
    assert int(spilled) == 0
    assert [line.split()[:2] for line in refused] == [["refused", "Spills"], ["refused", "OutOfResources"]]


@needs_triton
@pytest.mark.long
def test_a_dry_run(tmp_path):
    command = [sys.executable, "-m", "tools.gpu_tune", "--out", tmp_path, "--case", "512 x 128"]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| contrast_rows \| \d+ \| \d+ to \d+ \|", done.stdout), done.stdout
    assert not list(tmp_path.glob("*.json"))
