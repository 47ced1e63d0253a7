# SPDX-License-Identifier: BSD-3-Clause
"""The cases of the benchmarks under pytest-benchmark: a whole step of each contestant, checked before it is timed."""

import pytest
import torch
from harness import check
from measure import step
from run import OPS

pytest.importorskip("pytest_benchmark")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = {f"{op.name}, {case}": (op, case) for op in OPS for case in op.cases if not case.huge}


@pytest.mark.parametrize(
    ("name", "contestant"),
    [(name, contestant) for name, (op, _) in CASES.items() for contestant in op.contestants],
)
def test_step(benchmark, name, contestant):
    op, case = CASES[name]
    inputs = op.make_inputs(case, DEVICE)
    try:
        function = op.make(contestant, case)
    except ImportError as error:
        pytest.skip(str(error))
    check(function, inputs, op.expected(case, inputs), op.tolerance[case.dtype])

    def whole_step():
        step(function, inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = name
    benchmark.pedantic(whole_step, rounds=10, warmup_rounds=2)
