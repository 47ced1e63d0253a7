# SPDX-License-Identifier: BSD-3-Clause
"""A run that is killed, or finds the disk full, goes on from its last checkpoint to the same numbers."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fastseg.train.checkpoint import RunFolder
from tests.project import ENVIRONMENT, command, fastseg, fastseg_on_small_disk, make_project


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in map(json.loads, (folder / "log.jsonl").open())]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def test_killed_and_resumed_gives_the_same_losses_and_weights(config: Path) -> None:
    whole, killed = config.parent / "whole", config.parent / "killed"
    assert fastseg("train", config, f"output={whole}").returncode == 0

    process = subprocess.Popen(
        command("train", config, f"output={killed}"), stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 120
    while not RunFolder(killed).checkpoints() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    reached = RunFolder(killed).checkpoints()[-1][0]
    assert reached < 30

    # Rows after the last checkpoint, half a line among them, are what a kill can leave behind.
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"step": 29, "loss": 123.0}\n{"step": 30, "lo')
    resumed = fastseg("train", config, f"output={killed}", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [step for step, _ in losses(killed)] == list(range(30))
    assert losses(killed) == losses(whole)
    first, second = (RunFolder(folder).load()["network"] for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_trial_runs_of_a_few_steps(config: Path, steps: int) -> None:
    done = fastseg("train", config, f"train.steps={steps}")
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in losses(config.parent / "run")] == list(range(steps))


@pytest.mark.long
def test_reader_threads_do_not_change_the_run(config: Path) -> None:
    for threads in (1, 3):
        done = fastseg("train", config, f"output={config.parent}/{threads}", f"data.threads={threads}")
        assert done.returncode == 0, done.stderr
    assert losses(config.parent / "1") == losses(config.parent / "3")


@pytest.mark.long
def test_full_disk_at_a_checkpoint_keeps_the_last_good_one(config: Path) -> None:
    run = RunFolder(config.parent / "run")
    assert fastseg("train", config).returncode == 0
    size = Path(run.checkpoints()[-1][1]).stat().st_size
    for step, path in run.checkpoints():
        if step > 20:
            Path(path).unlink()
    before = {path: Path(path).read_bytes() for _, path in run.checkpoints()}

    failed = fastseg_on_small_disk(size // 2, "train", config, "--resume")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("fastseg: ")
    assert "step_00000030.pt cannot be written: File too large" in failed.stderr
    assert {path: Path(path).read_bytes() for _, path in run.checkpoints()} == before
    assert not list(Path(run.file("checkpoints")).glob("*.partial"))

    assert fastseg("train", config, "--resume").returncode == 0
    assert run.checkpoints()[-1][0] == 30


def test_a_run_is_neither_overwritten_nor_changed_on_the_way(config: Path) -> None:
    assert fastseg("train", config, "train.steps=10").returncode == 0
    again = fastseg("train", config)
    assert again.returncode == 2
    assert "already holds a run at step 10: add --resume" in again.stderr
    done = fastseg("train", config, "--resume", "train.steps=10")
    run = f"{config.parent}/run"
    said = f"{run} has done all of its 10 steps; to train longer, begin another run with its weights: output=OTHER"
    assert done.stdout.startswith(f"{said} network.weights={run} train.steps=STEPS")
    more = fastseg("train", config, f"output={run}_more", f"network.weights={run}", "train.steps=3")
    assert (more.returncode, len(losses(Path(f"{run}_more")))) == (0, 3), more.stderr
    assert "to train longer" not in more.stdout
    other = fastseg("train", config, "--resume", "train.steps=10", "train.learning_rate=0.5")
    assert other.returncode == 2
    assert "was begun with train.learning_rate = 0.001, now it is 0.5" in other.stderr


def test_damaged_checkpoint_is_named(config: Path) -> None:
    assert fastseg("train", config, "train.steps=10").returncode == 0
    path = Path(RunFolder(config.parent / "run").checkpoints()[-1][1])
    path.write_bytes(path.read_bytes()[:1000])
    done = fastseg("predict", config.parent / "run")
    assert done.returncode == 2
    assert "step_00000010.pt is no readable checkpoint" in done.stderr


def test_a_loss_that_is_not_finite_stops_the_run(config: Path) -> None:
    done = fastseg("train", config, "train.learning_rate=1e30", "train.clip_norm=null")
    assert done.returncode == 2
    assert "lower train.learning_rate" in done.stderr
    assert all(loss == loss for _, loss in losses(config.parent / "run"))
