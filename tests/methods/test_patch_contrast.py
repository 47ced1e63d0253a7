# SPDX-License-Identifier: BSD-3-Clause
"""Patch contrast end to end on drawn images: what it learns, keeps, resumes and writes."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from fastseg.commands.infer import evaluate_run, predict_run
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError, Interrupted
from fastseg.methods.patch_contrast import PatchContrastTask
from fastseg.methods.patch_contrast_network import batch_norms
from fastseg.methods.registry import train
from fastseg.nets import FCNN, PatchFeaturiser
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config_file import load_config
from fastseg.train.inputs import each_image, open_training
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper

CONFIG = """\
method: patch_contrast
output: run
data: {train: [{raw: "images/*.png"}], patch: [64, 64]}
network: {dilations: [1, 2, 3]}
patch_contrast: {channels: 3, patch_size: 12, stride: 4, appearance: dark, sample_steps: 2, picture_every: 20,
                 stop_window: 10, stop_gain: null}
train: {steps: 40, batch: 4, learning_rate: 3.0e-3, validate_every: 20, checkpoint_every: 20, device: cpu}
"""


def draw_image(seed: int, shape: tuple[int, int] = (96, 110)) -> tuple[np.ndarray, np.ndarray]:
    """Dark violet disks on light pink, uneven and noisy, and where they are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    truth = np.zeros(shape, bool)
    for _ in range(12):
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(6, 10)
        truth |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    light = 0.9 + 0.1 * np.sin(x / 15 + seed)
    colour = np.where(truth[..., None], (90, 60, 140), (225, 180, 205)) * light[..., None]
    return np.clip(colour + rng.normal(0, 12, colour.shape), 0, 255).astype(np.uint8), truth


def scene(folder: Path, **changes: object) -> Path:
    """Four images of two sizes with their truth beside them, and a configuration."""
    for name in ("images", "truth"):
        (folder / name).mkdir()
    for i in range(4):
        image, truth = draw_image(i, (96, 110) if i % 2 else (80, 120))
        imageio.imwrite(folder / "images" / f"tissue_{i}.png", image)
        imageio.imwrite(folder / "truth" / f"tissue_{i}.png", truth.astype(np.uint8))
    (folder / "run.yaml").write_text(CONFIG)
    return folder / "run.yaml"


def config_of(path: Path, *overrides: str):
    return load_config(path, [f"output={path.parent / 'run'}", *overrides])


def dice(folder: Path, mask_folder: Path) -> list[float]:
    scores = []
    for i in range(4):
        truth = imageio.imread(folder / "truth" / f"tissue_{i}.png") != 0
        mask = imageio.imread(mask_folder / f"tissue_{i}.png")
        assert set(np.unique(mask)) <= {0, 255}
        scores.append(2 * (truth & (mask > 0)).sum() / (truth.sum() + (mask > 0).sum()))
    return scores


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("patch_contrast")
    return folder, train(config_of(scene(folder)), quiet=True)


def rows(run: RunFolder, name: str) -> list[dict]:
    return [json.loads(line) for line in Path(run.file(name)).read_text().splitlines()]


def test_images_without_labels_end_in_masks(trained: tuple[Path, RunFolder]) -> None:
    folder, run = trained
    scores = dice(folder, Path(run.file("masks")))
    assert min(scores) > 0.85, scores
    stored = open_volume(run.file("predictions", "train_1.h5") + ":/segmentation")
    assert stored.shape == (1, 96, 110)
    mask = imageio.imread(run.file("masks", "tissue_1.png"))
    assert (stored.read((0, 0, 0), stored.shape)[0, 0] == (mask > 0)).all()


def test_entropy_falls_and_the_gap_rises(trained: tuple[Path, RunFolder]) -> None:
    log = rows(trained[1], "log.jsonl")

    def mean(name: str, part: list[dict]) -> float:
        return sum(row[name] for row in part) / len(part)

    assert mean("entropy", log[-10:]) < 0.7 * mean("entropy", log[:5])
    gaps = [row["negative_distance"] - row["positive_distance"] for row in log]
    assert sum(gaps[-10:]) / 10 > 2 * sum(gaps[:5]) / 5


def test_a_live_picture_is_drawn(trained: tuple[Path, RunFolder]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = imageio.imread(trained[1].file("figures", "patch_contrast.png"))
    assert picture.shape[1] > picture.shape[0] > 300
    assert picture[..., :3].std() > 20
    board = EventAccumulator(trained[1].file("tensorboard"))
    board.Reload()
    assert [event.step for event in board.Images("patch_contrast/windows")] == [0, 20]


def test_the_channels_are_described(trained: tuple[Path, RunFolder]) -> None:
    described = json.loads(Path(trained[1].file("channels.json")).read_text())
    assert len(described["channels"]) == 3
    chosen = described["channels"][described["choice"]["channel"]]
    assert (chosen["inside"] < chosen["outside"]) != described["choice"]["inverted"]
    assert described["choice"]["plausible"]


def test_the_run_predicts_other_images(trained: tuple[Path, RunFolder]) -> None:
    folder, run = trained
    image, truth = draw_image(9, (70, 75))
    imageio.imwrite(folder / "other.png", image)
    (path,) = predict_run(
        run.path, raw=str(folder / "other.png"), output=str(folder / "other.h5"), quiet=True
    )
    mask = open_volume(f"{path}:/segmentation").read((0, 0, 0), (1, 70, 75))[0, 0] != 0
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.85
    # What the openings and closings were made from is gone.
    assert not list(folder.glob("*as_predicted*"))


def test_the_state_that_predicts_is_in_the_checkpoint(trained: tuple[Path, RunFolder]) -> None:
    state = trained[1].load_for_prediction("best")
    best = max(rows(trained[1], "validation.jsonl"), key=lambda row: row["separation"])
    assert state["step"] == best["step"]
    assert int(state["network"]["channel"]) == best["channel"]


def test_a_run_goes_on_to_the_same_numbers(trained: tuple[Path, RunFolder], tmp_path: Path) -> None:
    folder, whole = trained
    broken = config_of(folder / "run.yaml", f"output={tmp_path / 'run'}")
    original = PatchContrastTask.loss

    def dies(self, batch, step):
        if step == 25:
            raise Interrupted("killed")
        return original(self, batch, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatchContrastTask, "loss", dies)
        with pytest.raises(Interrupted):
            train(broken, quiet=True)
    train(broken, resume=True, quiet=True)
    for name in ("log.jsonl", "validation.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == Path(whole.file(name)).read_bytes()


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
    stepper = Stepper(task.updates(task.config.train), task.config.train, Ranks())
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


def test_features_learn_too(tmp_path: Path) -> None:
    task = task_of(
        scene(tmp_path), "patch_contrast.similarity=features", "patch_contrast.patch_size=50", "train.steps=2"
    )
    stepper = Stepper(task.updates(task.config.train), task.config.train, Ranks())
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


def test_a_converged_run_ends_with_a_checkpoint_and_stays_ended(tmp_path: Path) -> None:
    path = scene(tmp_path)
    config = config_of(path, "patch_contrast.stop_gain=1.0e+9", "train.steps=400", "train.validate_every=400")
    run = train(config, quiet=True)
    assert [step for step, _ in run.checkpoints()][-1] < 100
    assert rows(run, "validation.jsonl")
    log = Path(run.file("log.jsonl")).read_text()
    train(config, resume=True, quiet=True)
    assert Path(run.file("log.jsonl")).read_text() == log


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


def test_labels_may_choose_instead(tmp_path: Path) -> None:
    path = scene(tmp_path)
    validation = "data.validation=[{raw: 'images/*.png', labels: 'truth/*.png'}]"
    test = "data.test=[{raw: images/tissue_0.png, labels: truth/tissue_0.png}]"
    run = train(config_of(path, validation, test, "patch_contrast.choice=labelled"), quiet=True)
    for row in rows(run, "validation.jsonl"):
        assert row["dice"] == row["dice_of_best_channel"]
    predict_run(run.path, quiet=True)
    results, _ = evaluate_run(run.path)
    assert next(iter(results.values())).dice > 0.8
    with pytest.raises(InputError, match=r"patch_contrast.choice: labelled needs data.validation"):
        task_of(path, "patch_contrast.choice=labelled")


def test_intensities_must_have_a_black_and_a_white(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.normalize must be range or percentile, got zscore"):
        task_of(scene(tmp_path), "data.normalize=zscore")
    with pytest.raises(InputError, match=r"features needs 2D patches and patch_contrast.patch_size 50"):
        task_of(tmp_path / "run.yaml", "patch_contrast.similarity=features")


def test_folders_become_an_entry_per_image(tmp_path: Path) -> None:
    path = scene(tmp_path)
    (tmp_path / "truth" / "tissue_3.png").unlink()
    found = each_image(config_of(path, "data.train=[{raw: images}, {raw: images/tissue_1.png}]"))
    assert [Path(entry.raw).name for entry in found.data.train] == [
        *(f"tissue_{i}.png" for i in range(4)),
        "tissue_1.png",
    ]
    with pytest.raises(
        InputError, match=r"labels truth/\*.png must be as many images as raw images, 4, got 3"
    ):
        each_image(config_of(path, "data.test=[{raw: images, labels: truth/*.png}]"))
