# SPDX-License-Identifier: BSD-3-Clause
"""Domain adaptation over breaks, on several processes, and ended early in a phase."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fastseg.methods.domain_adaptation.training import train
from fastseg.train.checkpoint import RunFolder
from tests.methods.domain_adaptation.adaptation import PHASES, assert_same, config_of, draw_domains, weights
from tests.project import ENVIRONMENT, command, fastseg
from tests.train.processes import finish, start


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_domains(tmp_path)


@pytest.mark.long
def test_killed_in_each_phase_it_ends_as_if_it_had_not_been(scene: Path) -> None:
    folder = scene.parent
    whole, killed = folder / "whole", folder / "killed"
    options = ["domain_adaptation.strategy=ynet", "train.checkpoint_every=1", "train.stop=morphology"]
    assert fastseg("train", scene, *options, f"output={whole}").returncode == 0
    for reached in ("step_1", "step_2", "."):
        process = subprocess.Popen(
            command("train", scene, *options, f"output={killed}", "--resume"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        while not RunFolder(killed / reached).checkpoints():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert fastseg("train", scene, *options, f"output={killed}", "--resume").returncode == 0
    for run in ("step_1", "step_2", "."):
        assert_same(weights(whole / run), weights(killed / run))
    assert (whole / "histograms.json").read_bytes() == (killed / "histograms.json").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["pretrain", "ynet"])
def test_two_processes_have_the_losses_and_weights_of_one(scene: Path, strategy: str) -> None:
    """Without dropout, whose numbers each process draws for itself."""
    folder = scene.parent
    held_out = "data.validation=[{raw: source.npy, labels: source_labels.npy, region: {z: [0, 2]}}]"
    options = [
        f"domain_adaptation.strategy={strategy}",
        "network.dropout=[0, 0, 0, 0, 0]",
        "train.precision=fp32",
        "train.validate_every=3",
        held_out,
    ]
    assert fastseg("train", scene, *options, f"output={folder}/one").returncode == 0
    for done in finish(start(2, command("train", scene, *options, f"output={folder}/two"))):
        assert done.returncode == 0, done.stderr
    for phase in (*PHASES[strategy], "."):
        for log in ("log.jsonl", "validation.jsonl"):
            one, two = (
                [json.loads(line)["loss"] for line in (folder / run / phase / log).read_text().splitlines()]
                for run in ("one", "two")
            )
            assert two == pytest.approx(one, rel=1e-3)
        first, second = weights(folder / "one" / phase), weights(folder / "two" / phase)
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-3)


def test_patience_ends_a_phase_and_the_next_begins_with_its_best(scene: Path) -> None:
    held_out = "data.validation=[{raw: source.npy, labels: source_labels.npy, region: {z: [0, 2]}}]"
    patient = "domain_adaptation.step_1={steps: 40, patience: 1, learning_rate: 0.3}"
    later = "domain_adaptation.step_2={steps: 1, learning_rate: 1.0e-30}"
    options = (held_out, patient, "train.validate_every=1")
    run = train(config_of(scene, "ynet", *options, later), quiet=True)
    first = RunFolder(run.file("step_1"))
    rows = [json.loads(line) for line in Path(first.file("validation.jsonl")).read_text().splitlines()]
    assert {"restoration", "segmentation", "loss"} <= set(rows[0])
    assert len(rows) < 40
    best = first.load_for_prediction("best")
    assert best["step"] == min(rows, key=lambda row: row["loss"])["step"] < rows[-1]["step"]
    for name, value in weights(run.file("step_2")).items():
        torch.testing.assert_close(value, best["network"][name], rtol=0, atol=1e-6)
