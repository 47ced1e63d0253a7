# SPDX-License-Identifier: BSD-3-Clause
"""A run that a scheduler stops goes on later, be it with another number of processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from fastseg.errors import EXIT_INTERRUPTED
from fastseg.methods.supervised.training import SupervisedTask
from fastseg.train.checkpoint import RunFolder
from tests.project import ENVIRONMENT, Finished, fastseg, make_project
from tests.train.processes import ROOT

STEPS = 60
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("-m", "fastseg.cli", "train"),
)
SETTINGS = (f"train.steps={STEPS}", "train.checkpoint_every=20", "train.precision=fp32")


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def train_until(step: int, *arguments: object) -> Finished:
    """Train in this process, with a SIGTERM in the middle of ``step``."""
    loss_of = SupervisedTask.loss

    def loss(task: SupervisedTask, batch: object, now: int) -> object:
        if now == step:
            signal.raise_signal(signal.SIGTERM)
        return loss_of(task, batch, now)

    with patch.object(SupervisedTask, "loss", loss):
        return fastseg("train", *arguments)


@pytest.mark.long
def test_one_two_one_processes_are_one(tmp_path: Path) -> None:
    config, run = make_project(tmp_path), tmp_path / "run"
    assert fastseg("train", config, *SETTINGS, f"output={tmp_path}/whole").returncode == 0

    first = train_until(9, config, *SETTINGS)
    assert first.returncode == EXIT_INTERRUPTED, first.stderr
    assert "asked to stop by SIGTERM; the checkpoint of step 10 is written, --resume goes on" in first.stderr
    assert RunFolder(run).checkpoints()[-1][0] == 10

    process = subprocess.Popen(
        [*TORCHRUN, str(config), *SETTINGS, "--resume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    while len(rows(run)) <= 10 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    reached = RunFolder(run).checkpoints()[-1][0]
    assert 10 < reached < STEPS, err
    assert err.count(f"the checkpoint of step {reached} is written") == 2, err
    assert len(rows(run)) == reached

    last = fastseg("train", config, *SETTINGS, "--resume")
    assert last.returncode == 0, last.stderr
    whole, parts = rows(tmp_path / "whole"), rows(run)
    assert len(whole) == len(parts) == STEPS
    for a, b in zip(whole, parts, strict=True):
        assert b == pytest.approx(a, rel=5e-3)


@pytest.mark.long
def test_torchrun_refuses_a_batch_that_cannot_be_shared_out(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    done = subprocess.run(
        [*TORCHRUN, str(config), "train.batch=3"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode != 0
    message = "it must be a multiple of the number of processes, 2, got 3"
    assert done.stderr.count(message) == 1, done.stderr
    assert not (tmp_path / "run").exists()
