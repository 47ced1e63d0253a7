# SPDX-License-Identifier: BSD-3-Clause
"""The benchmarks' own rules: nothing is timed that is wrong, and a table shows what the CSV holds."""

import argparse
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_pipeline
import bench_region_contrast_bank
import measure
from harness import Case, Op, run_case, select
from measure import FASTEST_CLOCK, HEAD_START, WARM_UP, time_in_turns
from run import OPS
from table import append_rows, device_file, latest, read_rows, render

from fastseg.commands.bench import Rates
from fastseg.commands.bench_prediction import PredictionRates
from fastseg.methods.registry import method_of
from fastseg.train.launches import Count

OPTIONS = argparse.Namespace(device="cpu", rounds=3, no_memory=True)


def square(number, wrong_value=1.0, wrong_gradient=1.0):
    def function(values):
        if number == 3:
            raise RuntimeError("no compiler")
        exact = (values * values).mean()
        return (wrong_gradient * exact + (wrong_value - wrong_gradient) * exact.detach()).clone()

    return function


def make(contestant, case):
    if contestant == "absent":
        raise ImportError("pip install absent")
    return {
        "fused": square(0),
        "wrong value": square(1, wrong_value=1.001),
        "wrong gradient": square(2, wrong_gradient=1.001),
        "broken": square(3),
        "nan": lambda values: square(0)(values) + float("nan"),
    }[contestant]


SQUARE = Op(
    "square",
    [Case("line", (1000,), torch.float32)],
    ["fused", "wrong value", "wrong gradient", "nan", "broken", "absent"],
    make,
    lambda case, device: (torch.linspace(-1, 1, 1000, device=device).requires_grad_(),),
    lambda case, inputs: [
        inputs[0].detach().double().square().mean(),
        2 * inputs[0].detach().double() / 1000,
    ],
    lambda case, inputs: (inputs[0].nbytes, 2 * inputs[0].nbytes),
)


def test_only_what_agrees_with_the_reference_is_timed(capsys):
    rows, complaints = run_case(SQUARE, SQUARE.cases[0], OPTIONS)
    assert [(row["contestant"], row["direction"]) for row in rows] == [
        ("fused", direction) for direction in ("forward", "backward", "both")
    ]
    assert [text.split(": ")[1].split(" is not")[0] for text in complaints] == [
        "wrong value",
        "wrong gradient",
        "nan",
    ]
    said = capsys.readouterr().out
    assert "absent is not installed (pip install absent)" in said
    assert "broken did not run: RuntimeError: no compiler" in said


class Event:
    """Of a GPU that does its work at once."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


def test_a_gpu_is_kept_busy_until_the_host_has_queued_a_step(monkeypatch):
    busy = []
    for name, stand_in in {"Event": Event, "_sleep": busy.append, "synchronize": lambda: None}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(measure.torch, "empty", lambda size, dtype, device: torch.zeros(1))

    def slow(values):
        time.sleep(0.02)
        return (values * values).sum()

    functions = {"slow": slow, "quick": lambda values: (values * values).sum()}
    times = time_in_turns(functions, (torch.ones(3, requires_grad=True),), 4, "cuda")
    in_warm_up, timed = busy[: 2 * WARM_UP], busy[2 * WARM_UP :]
    assert in_warm_up[0] == timed[1] == 1e-3 * FASTEST_CLOCK  # at least
    assert all(cycles >= HEAD_START * 0.02 * FASTEST_CLOCK for cycles in timed[::2])
    assert len(times["slow"]["both"].host) == len(times["slow"]["both"].device) == 4
    assert min(times["slow"]["forward"].host) >= 0.02


def test_ours_must_run():
    op = Op(**{**vars(SQUARE), "contestants": ["fused"], "make": lambda contestant, case: square(3)})
    rows, complaints = run_case(op, op.cases[0], OPTIONS)
    assert not rows
    assert complaints == ["square, line float32: fused did not run: RuntimeError: no compiler"]


def test_csv_and_table(tmp_path):
    rows, _ = run_case(SQUARE, SQUARE.cases[0], OPTIONS)
    run = dict(commit="abc", device="CPU Some(R) Model, 2 cores", torch="2.11.0", command="python x.py")
    file = device_file(tmp_path, run["device"])
    assert file.name == "cpu_some_model.csv"
    for date in ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"):
        append_rows(file, [run | row | {"date": date} for row in rows])
    stored = read_rows(file)
    assert len(stored) == 2 * len(rows)
    assert {row["date"] for row in latest(stored)} == {"2026-01-02T00:00:00Z"}
    table = render(latest(stored))
    assert "commit abc; 2026-01-02" in table
    assert sum(line.startswith("| line float32 |") for line in table.splitlines()) == 1
    file.write_text("date,commit\n")
    with pytest.raises(ValueError, match="other columns"):
        append_rows(file, stored)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_has_the_shapes_of_real_volumes_and_one_beyond_2_31(op):
    names = [str(case) for case in op.cases]
    assert len(set(names)) == len(names)
    if op.flops(op.cases[0])[0]:
        pytest.skip("takes rows, not volumes")
    assert {(8, 3, 512, 512), (2, 32, 64, 64, 64), (2, 1, 128, 128, 128)} <= {case.shape for case in op.cases}
    for case in op.cases:
        assert case.huge == (torch.Size(case.shape).numel() > 2**31)


@pytest.mark.parametrize(
    ("variant", "shape", "dtype"),
    [
        ("bank", (128, 1300, 32), torch.float32),
        ("groups", (512, 512, 32), torch.bfloat16),
        ("neg_mse", (10, 90, 750), torch.float32),
    ],
)
def test_every_contestant_of_a_bank_has_the_loss_and_the_gradient(variant, shape, dtype):
    op = select(bench_region_contrast_bank.OP, ["fused", "eager", "tiles"])
    rows, complaints = run_case(op, bench_region_contrast_bank.case(*shape, dtype, variant), OPTIONS)
    assert not complaints
    assert {row["contestant"] for row in rows} == {"fused", "eager", "tiles"}


def test_the_table_of_networks_has_a_row_for_each_and_each_is_a_configuration(tmp_path, monkeypatch, capsys):
    seen = []

    def fake(config, seconds):
        seen.append((config.method, config.train.graph, config.train.compile, seconds))
        predicted = (
            PredictionRates(4.0, 3.0, 8, 0.1, 0.2, Count(30, 40, 0))
            if method_of(config).segments(config)
            else None
        )
        return config, Rates(9.0, 8.0, 7.0, 8, Count(100, 200, 0), None), predicted, "cpu"

    monkeypatch.setattr(bench_pipeline, "measure", fake)
    monkeypatch.setattr(bench_pipeline, "SHAPE", (16, 64, 64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        sys, "argv", ["bench_pipeline.py", "--compile", "--seconds", "2", "--results", str(tmp_path)]
    )
    bench_pipeline.main()
    (file,) = tmp_path.iterdir()
    rows = read_rows(file)
    assert [(row["network"], row["how"]) for row in rows] == [
        (network, how) for network in bench_pipeline.NETWORKS for how in ("eager", "compile")
    ]
    assert {(row["of_model"], row["launches"], row["graph_launches"]) for row in rows} == {
        ("0.875", "100", "")
    }
    assert {row["network"]: row["predict_of_model"] for row in rows} == {
        network: "" if network == "region_contrast" else "0.75" for network in bench_pipeline.NETWORKS
    }
    assert set(seen) >= {("supervised", "off", False, 2.0), ("patch_contrast", "off", True, 2.0)}
    assert capsys.readouterr().out.count("\n| 3D width ") == 6
    assert bench_pipeline.config_of(tmp_path, "3D width 8", "graph", "cuda").train.graph == "on"
