# SPDX-License-Identifier: BSD-3-Clause
"""``kill -9`` again and again, at any moment of a training, then resumed: the numbers of the run that was not."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fastseg.methods.config_file import load_config
from fastseg.train.checkpoint import RunFolder, load_checkpoint
from tests.project import ENVIRONMENT, command, fastseg, make_project

# Averaged weights, a best validation and a count of those without gain are state that a resumed run needs too.
SETTINGS = [
    "data.validation=[{raw: phantoms.h5:/raw, labels: phantoms.h5:/somata, region: {z: [16, 24]}}]",
    "data.patch=[4, 16, 16]",
    "predict.overlap=0",
    "train.ema=0.9",
    "train.checkpoint_every=3",
    "train.validate_every=7",
    "train.stop={patience: 100}",
]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def require_readable(run: RunFolder) -> None:
    """Every file of a killed run is whole, but for the last line of a log."""
    for path in (*(path for _, path in run.checkpoints()), *filter(Path.exists, [Path(run.best)])):
        load_checkpoint(str(path))
    for name in ("log.jsonl", "validation.jsonl"):
        for line in lines(Path(run.file(name))):
            if line.endswith("\n"):
                json.loads(line)
    if Path(run.file("config.yaml")).exists():
        load_config(run.file("config.yaml"))


def wait_for_the_moment(moment: str, run: RunFolder, process: subprocess.Popen, rng: random.Random) -> None:
    log, checkpoints = Path(run.file("log.jsonl")), Path(run.file("checkpoints"))
    size = log.stat().st_size if log.exists() else -1
    deadline = time.monotonic() + 60

    def has_come() -> bool:
        if moment == "checkpoint":  # one is being written under its other name
            return any(checkpoints.glob("*.partial"))
        if moment == "begin":  # the log is being rewritten without the rows of lost steps
            return any(Path(run.path).glob("*.partial"))
        return log.exists() and log.stat().st_size > max(size, 0)

    while not has_come() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0 if moment != "step" else 0.001)
    time.sleep(rng.random() * {"checkpoint": 0.0005, "begin": 0.0005, "step": 0.1}[moment])


@pytest.mark.parametrize(
    "kills", [pytest.param(3, marks=pytest.mark.long), pytest.param(24, marks=pytest.mark.slow)]
)
def test_killed_at_random_moments(tmp_path: Path, kills: int) -> None:
    config = make_project(tmp_path)
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    settings = [*SETTINGS, f"train.steps={12 * (kills + 1)}"]
    done = fastseg("train", config, f"output={whole.path}", *settings)
    assert done.returncode == 0, done.stderr

    rng = random.Random(kills)
    moments = rng.sample(["checkpoint", "step", "step", "checkpoint", "begin", "step"] * 4, kills)
    reached = []
    for moment in moments:
        process = subprocess.Popen(
            command("train", config, f"output={killed.path}", *settings, "--resume"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        wait_for_the_moment(moment, killed, process, rng)
        process.kill()
        _, err = process.communicate()
        assert process.returncode == -9, f"ended before it was killed: {err.decode()}"
        require_readable(killed)
        reached.append(killed.checkpoints()[-1][0] if killed.checkpoints() else 0)
    assert reached == sorted(reached), "a run went back behind a checkpoint"
    assert 0 < reached[-1] < 12 * (kills + 1)

    done = fastseg("train", config, f"output={killed.path}", *settings, "--resume")
    assert done.returncode == 0, done.stderr
    for name in ("log.jsonl", "validation.jsonl"):
        assert lines(Path(killed.file(name))) == lines(Path(whole.file(name)))
    for one, two in (
        (whole.load(), killed.load()),
        (load_checkpoint(whole.best), load_checkpoint(killed.best)),
    ):
        one["config"].pop("output")
        two["config"].pop("output")
        assert_same(one, two)
    assert not list(Path(killed.path).rglob("*.partial"))


def assert_same(one: object, two: object) -> None:
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            assert_same(one[name], two[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two
