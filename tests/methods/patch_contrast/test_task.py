# SPDX-License-Identifier: BSD-3-Clause
"""The parts of patch contrast that need no training: parameters, void steps, the end, batch norms, inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastseg.errors import InputError
from fastseg.methods.patch_contrast.network import batch_norms
from fastseg.methods.patch_contrast.training import PatchContrastTask
from fastseg.nets import FCNN, PatchFeaturiser
from fastseg.train import stepper as stepper_module
from fastseg.train.folders import each_image
from fastseg.train.graph import WARM_UP
from fastseg.train.inputs import open_training
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from tests.methods.tissue import config_of, scene
from tests.train.recorded_graphs import RecordedGraphs


def task_of(path: Path, *overrides: str) -> PatchContrastTask:
    config = each_image(config_of(path, *overrides))
    return PatchContrastTask(config, open_training(config, labelled=False), Ranks())


def test_parameters_are_those_of_the_paper(tmp_path: Path) -> None:
    task = task_of(scene(tmp_path), "network.dilations=[1,2,3,5,10,20]", "patch_contrast.channels=4")
    assert sum(p.numel() for p in task.network.parameters()) == 7_372
    assert sum(p.numel() for p in (*FCNN().parameters(), *PatchFeaturiser().parameters())) == 10_758
    features = task_of(
        tmp_path / "run.yaml",
        *("network.dilations=[1,2,3,5,10,20]", "patch_contrast.channels=4"),
        *("patch_contrast.similarity=features", "patch_contrast.patch_size=50"),
    )
    assert sum(p.numel() for p in features.network.parameters()) == 10_758


def test_a_void_step_changes_nothing(tmp_path: Path) -> None:
    task = task_of(scene(tmp_path))
    stepper = Stepper(task.updates(task.config.train), task.config.train, Ranks(), task)
    task.network.train()
    batch = task.loader.load(0)
    stepper.step(batch, 0)
    with torch.no_grad():
        task.network.confidence.network.head.bias.fill_(60.0)  # sure of everything: no negatives
    before = {name: p.clone() for name, p in task.network.named_parameters()}
    row = stepper.step(batch, 1)
    assert row["void"] == 1
    assert row["loss"] == 0
    assert all(torch.equal(p, before[name]) for name, p in task.network.named_parameters())
    assert all(state["step"] == 1 for state in task.optimizer.state.values())
    # It does not count for the stopping criterion either.
    assert task.network.window_sums[2] == 1


@pytest.mark.parametrize(
    "changes", [(), ("patch_contrast.similarity=bce", "patch_contrast.contrast=negative")]
)
def test_replayed_steps_draw_windows_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...]
) -> None:
    """To the bit what steps of Python compute, with a picture and a void step among them."""
    path, stand_in = scene(tmp_path), RecordedGraphs()
    monkeypatch.setattr(stepper_module, "graphs_of", lambda device: stand_in)
    drawn: list[tuple[int, list[int]]] = []

    def steps(graph: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        task = task_of(path, f"train.graph={graph}", "patch_contrast.picture_every=6", *changes)
        task.picture.on = True
        monkeypatch.setattr(
            task.picture, "draw", lambda step, *_: drawn.append((step, list(task.picture.steps)))
        )
        stepper = Stepper(task.updates(task.config.train), task.config.train, Ranks(), task)
        task.network.train()
        rows = []
        for step in range(16):
            if step in (10, 11):  # sure of everything: no negatives
                task.network.confidence.network.head.bias.data += 60.0 if step == 10 else -60.0
            rows.append(
                {name: float(value) for name, value in stepper.step(task.loader.load(step), step).items()}
            )
        assert [float(point.isnan().any()) for point in task.picture.distances] == [0, 0]
        return rows, {name: tensor.clone() for name, tensor in task.network.state_dict().items()}

    replayed, network = steps("on")
    eager, expected = steps("off")
    assert (stand_in.captures, stand_in.replays) == (1, 16 - WARM_UP - 3)  # 0, 6 and 12 are drawn
    assert replayed == eager
    assert [row["void"] for row in eager] == [float(step == 10) for step in range(16)]
    torch.testing.assert_close(network, expected, rtol=0, atol=0, equal_nan=True)  # no gap was taken yet
    assert drawn == 2 * [(0, [0]), (6, [0]), (12, [0, 10])]


def test_features_learn_too(tmp_path: Path) -> None:
    task = task_of(
        scene(tmp_path), "patch_contrast.similarity=features", "patch_contrast.patch_size=50", "train.steps=2"
    )
    stepper = Stepper(task.updates(task.config.train), task.config.train, Ranks(), task)
    task.network.train()
    before = {name: p.clone() for name, p in task.network.named_parameters()}
    for step in range(4):
        stepper.step(task.loader.load(step), step)
    moved = {name for name, p in task.network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before)


def test_training_ends_when_the_gap_no_longer_grows(tmp_path: Path) -> None:
    task = task_of(scene(tmp_path), "patch_contrast.stop_gain=0.01")

    def window(positive: float, negative: float, done: int) -> bool:
        task.network.window_sums.copy_(torch.tensor([10 * positive, 10 * negative, 10.0]))
        return task.finished(done)

    assert not window(0.3, 0.2, 10)  # the first; positives are further apart than negatives
    assert not window(0.3, 0.2, 20)  # no gain, but nothing is separated yet
    assert not window(0.1, 0.2, 30)
    assert not window(0.1, 0.2, 35)  # not the end of a window
    assert not window(0.1, 0.202, 40)  # 2 % more
    assert window(0.1, 0.2028, 50)  # 0.8 % more
    assert task.finished(60)
    patient = task_of(tmp_path / "run.yaml")
    patient.network.converged.fill_(True)
    assert not patient.finished(50)


def test_batch_norms_are_recalibrated_or_take_what_they_see(tmp_path: Path) -> None:
    task = task_of(scene(tmp_path))
    with torch.no_grad():
        for layer in batch_norms(task.network):
            layer.running_mean.fill_(1e3)
    task.network.eval()
    task.validate()
    layers = batch_norms(task.network)
    assert all((layer.running_mean.abs() < 50).all() and layer.momentum == 0.1 for layer in layers)
    assert not any(layer.training for layer in layers)
    of_batch = task_of(tmp_path / "run.yaml", "patch_contrast.batch_norm=batch")
    image = of_batch.loader.load(0).raw.float() / 255
    training = of_batch.network.maps(image)
    torch.testing.assert_close(of_batch.network.eval().maps(image), training, rtol=0, atol=0)
    assert not any("running" in name for name in of_batch.network.state_dict())


def test_intensities_must_have_a_black_and_a_white(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.normalize must be range or percentile, got zscore"):
        task_of(scene(tmp_path), "data.normalize=zscore")
    with pytest.raises(InputError, match=r"features needs 2D patches and patch_contrast.patch_size 50"):
        task_of(tmp_path / "run.yaml", "patch_contrast.similarity=features")
    with pytest.raises(InputError, match=r"patch_contrast.choice: labelled needs data.validation"):
        task_of(tmp_path / "run.yaml", "patch_contrast.choice=labelled")


def test_folders_become_an_entry_per_image(tmp_path: Path) -> None:
    path = scene(tmp_path)
    (tmp_path / "truth" / "tissue_3.png").unlink()
    found = each_image(config_of(path, "data.train=[{raw: images}, {raw: images/tissue_1.png}]"))
    assert [Path(entry.raw).name for entry in found.data.train] == [
        *(f"tissue_{i}.png" for i in range(4)),
        "tissue_1.png",
    ]
    with pytest.raises(InputError, match=r"do not pair up: .*images/tissue_3.png: no labels of that name"):
        each_image(config_of(path, "data.test=[{raw: images, labels: truth/*.png}]"))
