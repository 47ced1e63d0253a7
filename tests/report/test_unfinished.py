# SPDX-License-Identifier: BSD-3-Clause
"""The page of runs that were resumed, stopped, killed, that failed or ran in several processes, and of long ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastseg.commands import report as command_module
from fastseg.errors import Interrupted
from tests.project import command, fastseg, make_project
from tests.report.page import HELD_OUT, SHORT, curves_of, logged, read_page, train
from tests.train.processes import finish, start


def test_a_resumed_run(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    run = train(config, HELD_OUT, *SHORT)
    (run / "checkpoints/step_00000008.pt").unlink()
    done = fastseg("train", config, HELD_OUT, *SHORT, "--resume")
    assert done.returncode == 0, done.stderr
    page = read_page(run)
    assert "finished, in 2 sessions" in page.text
    ((steps, values),) = curves_of(page.source, "Training loss")
    rows = logged(run, "loss")
    assert np.allclose(steps, np.arange(8), atol=0.05)
    assert np.allclose(values, rows[:, 1], atol=0.01)


def test_a_run_that_failed_and_a_start_that_was_refused(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    overrides = ["train.learning_rate=1e30", "train.clip_norm=null", "network.norm=none"]
    run = train(config, *SHORT, *overrides, code=2)
    page = read_page(run)
    assert "the training failed: the loss became" in page.text
    assert not page.all("use")
    (run / "report.html").write_text("an earlier page")
    train(config, *SHORT, "data.train.0.raw=none.h5:/raw", code=2)
    assert (run / "report.html").read_text() == "an earlier page"


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = "".join(
        json.dumps({"step": i, "loss": 1 / (i + 1), "gradient_norm": None}) + "\n" for i in range(30)
    )
    (run / "log.jsonl").write_text(rows + '{"step": 30, "lo')
    (run / "validation.jsonl").write_text('{"step": 10, "dice": 0.5}\nnull\n{"step": "x"}\n')
    (run / "config.yaml").write_text("train: [unfinished")
    done = fastseg("report", run)
    assert done.returncode == 0, done.stderr
    page = read_page(run)
    ((steps, values),) = curves_of(page.source, "Training loss")
    assert np.allclose(values, 1 / (steps.round() + 1), atol=0.01)
    assert len(steps) == 30
    assert "no sample predictions: there is no checkpoint yet" in page.text
    assert "is no readable YAML" in page.text
    assert "gradient_norm was not finite in 30 of 30 steps" in page.text


def test_long_logs_make_no_long_page(tmp_path: Path) -> None:
    run, rng = tmp_path / "run", np.random.default_rng(0)
    run.mkdir()
    values = rng.normal(1, 0.1, (100_000, 6)).tolist()
    names = ["loss", "learning_rate", "gradient_norm", "intra", "inter", "entropy"]
    with (run / "log.jsonl").open("w") as file:
        for step, row in enumerate(values):
            file.write(json.dumps({"step": step, **dict(zip(names, row, strict=True))}) + "\n")
    with (run / "validation.jsonl").open("w") as file:
        for step in range(0, 100_000, 10):
            file.write(json.dumps({"step": step, "dice": values[step][0]}) + "\n")
    assert fastseg("report", run).returncode == 0
    page = read_page(run)
    assert len(page.source) < 200_000
    assert len(page.all("figure")) == 7


def test_a_report_that_cannot_be_written_fails_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> str:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(command_module, "render_page", broken)
    config = make_project(tmp_path)
    done = fastseg("train", config, *SHORT)
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if line.startswith("fastseg:")]
    run = tmp_path / "run"
    assert told == [f"fastseg: no report: out of luck; fastseg report {run} tries again"]
    assert not (run / "report.html").exists()


@pytest.mark.long
def test_two_processes_write_one(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    done = finish(start(2, command("train", config, *SHORT)))
    assert [process.returncode for process in done] == [0, 0], done
    assert sum("report: " in process.stdout for process in done) == 1
    page = read_page(tmp_path / "run")
    assert "2 process(es)" in page.text
    assert len(page.all("use")) == 2


def test_a_run_that_was_asked_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_project(tmp_path)
    run = train(config, *SHORT)
    (run / "report.html").unlink()

    def stopped(*arguments: object, **options: object) -> None:
        row = {
            "begun": "2026-01-01",
            "seconds": 7200.0,
            "ended": "interrupted",
            "why": "asked to stop by SIGTERM",
        }
        (run / "sessions.json").write_text(json.dumps([row]))
        raise Interrupted("asked to stop by SIGTERM")

    monkeypatch.setattr(command_module, "train", stopped)
    assert fastseg("train", config, *SHORT, "--resume").returncode == 75
    page = read_page(run)
    assert "state interrupted: asked to stop by SIGTERM" in page.text
    assert "time 2.0 h" in page.text
    assert not page.all("use")  # it may be short of time
