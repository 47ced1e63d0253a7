# SPDX-License-Identifier: BSD-3-Clause
"""Region contrast pretraining: runs, resuming, what is told of collapse, processes, and training from its weights."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from fastseg.commands.infer import predict_run
from fastseg.errors import InputError
from fastseg.methods.region_contrast.network import RegionNetwork
from fastseg.methods.region_contrast.pretexts import _numbered
from fastseg.methods.region_contrast.training import train
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from tests.methods.region_contrast.pretraining import CONFIG, PRETEXTS, config_of, draw_scene, task_of


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_scene(tmp_path)


def finetuning(scene: Path, *overrides: str) -> Config:
    labelled = f"data.train=[{{raw: {scene}/images/0.png, labels: {scene}/truth/0.png}}]"
    return config_of(
        scene,
        labelled,
        "region_contrast.stage=finetune",
        f"network.weights={scene / 'run'}",
        f"output={scene / 'fine'}",
        *overrides,
    )


@pytest.mark.parametrize("pretext", PRETEXTS)
def test_pretrains_then_trains_from_its_weights(
    scene: Path, pretext: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(config_of(scene, f"region_contrast.pretext={pretext}"))
    stated = json.loads(Path(run.file("pretraining.json")).read_text())
    assert stated["pretext"] == pretext
    assert np.isfinite(stated["loss"])
    assert stated["directions"] >= 1
    picture = imageio.imread(run.file("figures", "regions.png"))
    assert picture.std() > 10
    assert "region_contrast.stage=finetune network.weights=" in capsys.readouterr().out
    trained = train(finetuning(scene, f"data.test=[{{raw: {scene}/images/1.png}}]"))
    said = capsys.readouterr().out
    assert "begun at random: network.head.weight, network.head.bias" in said
    lost = {
        "regions": "embedding.weight, embedding.bias, assignment.weight, assignment.bias",
        "masked": "restoration.weight, restoration.bias",
        "images": "projection.0.weight, projection.0.bias, projection.2.weight, projection.2.bias",
    }
    assert f"in it and not used: {lost[pretext]}" in said
    assert Path(predict_run(trained.path, quiet=True)[0]).exists()


def test_training_begins_at_the_pretrained_weights(scene: Path) -> None:
    run = train(config_of(scene), quiet=True)
    before = {n.removeprefix("backbone."): v for n, v in run.load()["network"].items()}
    still = train(finetuning(scene, "train.steps=1", "train.learning_rate=1e-30"), quiet=True)
    after = still.load()["network"]
    shared = [name for name in after if "head" not in name]
    assert shared
    for name in shared:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("options", [("region_contrast.memory=40",), ("region_contrast.pretext=masked",)])
def test_a_broken_run_goes_on_as_if_it_had_not_been(scene: Path, options: tuple[str, ...]) -> None:
    whole = train(config_of(scene, *options), quiet=True).load()["network"]
    config = config_of(scene, *options, f"output={scene / 'other'}")
    short = config.model_copy(update={"train": config.train.model_copy(update={"steps": 6})})
    run = train(short, quiet=True)
    Path(run.checkpoints()[-1][1]).unlink()
    assert run.checkpoints()[-1][0] == 3
    resumed = train(config, resume=True, quiet=True).load()["network"]
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.long
def test_every_pretext_learns(scene: Path) -> None:
    for pretext, steps, less in (("regions", 60, 0.9), ("masked", 60, 0.9), ("images", 200, 0.98)):
        options = (f"region_contrast.pretext={pretext}", f"train.steps={steps}", "train.learning_rate=3e-3")
        config = config_of(scene, *options, "region_contrast.shift=4")
        task = task_of(config)
        before = task.validate()["loss"]
        stepper = Stepper(task.updates(config.train), config.train, Ranks())
        task.network.train()
        for step, batch in enumerate(task.batches(0, steps)):
            stepper.step(batch, step)
        task.network.eval()
        after = task.validate()["loss"]
        assert after < less * before, pretext


@pytest.mark.long
def test_views_of_a_volume(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "volume.npy", rng.integers(0, 255, (24, 40, 40), np.uint8))
    (tmp_path / "run.yaml").write_text(CONFIG.replace("images/*.png", "volume.npy"))
    for pretext in PRETEXTS:
        options = (
            f"region_contrast.pretext={pretext}",
            "data.patch=[8, 16, 16]",
            "region_contrast.shift=[2, 4, 4]",
            "region_contrast.mask_size=[4, 4, 4]",
        )
        run = train(config_of(tmp_path, *options, f"output={tmp_path / pretext}"), quiet=True)
        assert Path(run.file("figures", "regions.png")).exists()


def test_resnet_is_pretrained_too(scene: Path) -> None:
    network = (
        "network.kind=resnet50",
        "network.pooling=[2, 2, 2, 2, 2]",
        "data.patch=[64, 64]",
        "train.steps=2",
    )
    pretrained = train(config_of(scene, *network), quiet=True).load()["network"]
    trained = train(finetuning(scene, *network), quiet=True).load()["network"]
    assert trained.keys() > {n.removeprefix("backbone.") for n in pretrained if n.startswith("backbone.")}


def test_given_regions_are_pooled_by_their_ids(scene: Path) -> None:
    given = f"data.train=[{{raw: {scene}/images/*.png, labels: {scene}/superpixels/*.png}}]"
    task = task_of(config_of(scene, given, "region_contrast.given=true", "region_contrast.regions=6"))
    assert isinstance(task.network, RegionNetwork)
    assert task.network.assignment is None
    batch = task.loader.load(0)
    assert len(batch.target.unique()) > 10  # ids, not a class
    views, outcome = task._outcome(batch)
    for view, ids in zip(views, _numbered(views, 6), strict=True):
        target = view.shared(view.target)[:, 0]
        for sample, numbers in zip(target, ids, strict=True):
            assert numbers.max() == 5
            assert (numbers[sample == 0] == -1).all()
            for number in range(6):
                assert len(sample[numbers == number].unique()) == 1
    assert outcome.used is not None
    assert outcome.used.all()
    outcome.loss.backward()
    assert all(p.grad is not None for p in task.network.parameters())


def test_the_linear_probe_is_told_apart_by_its_features(scene: Path) -> None:
    labelled = f"data.train=[{{raw: {scene}/images/*.png, labels: {scene}/truth/*.png}}]"
    held_out = f"data.validation=[{{raw: {scene}/images/2.png, labels: {scene}/truth/2.png}}]"
    task = task_of(config_of(scene, labelled, held_out, "train.augment.enabled=false"))
    assert task.measure == "dice"
    task.network.eval()
    found = task.validate()["dice"]
    assert found > 0.5  # nuclei are dark: even random features tell them
    for parameter in task.network.backbone.parameters():
        parameter.data.zero_()
    assert task.validate()["dice"] < found - 0.1
    with pytest.raises(InputError, match=r"linear probe, which learns from labels"):
        task_of(config_of(scene, held_out))


@pytest.mark.long
def test_labels_change_nothing_that_is_learnt(scene: Path) -> None:
    labelled = f"data.train=[{{raw: {scene}/images/*.png, labels: {scene}/truth/*.png}}]"
    first = train(config_of(scene), quiet=True).load()["network"]
    second = train(config_of(scene, labelled, f"output={scene / 'other'}"), quiet=True).load()["network"]
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.normalize=zscore",), "data.normalize must be range or percentile, got zscore"),
        (("train.augment.rotate=10",), "rotate, tilt, scale and elastic of train.augment must be 0"),
        (("train.stop=morphology", "data.target=[{raw: images/0.png}]"), "which a pretraining does not make"),
        (("region_contrast.shift=16",), "less than half of data.patch"),
        (("region_contrast.shift=[1, 2, 3]",), "one number or 2, one per axis of data.patch"),
        (("network.kind=fcnn",), "network.kind must be unet or resnet50, got fcnn"),
        (("region_contrast.pretext=masked", "region_contrast.mask_size=32"), "leave something of data.patch"),
        (
            ("region_contrast.pretext=masked", "region_contrast.mask_size=[8, 8, 8]"),
            "one per axis of data.patch",
        ),
        (("region_contrast.pretext=images", "train.batch=1"), "train.batch must be at least 2, got 1"),
        (("region_contrast.stage=finetune",), "network.weights must name its run"),
        (("region_contrast.given=true",), "needs labels"),
        (
            ("region_contrast.given=true", "data.validation=[{raw: a.png, labels: b.png}]"),
            "leave data.validation out",
        ),
        (("network.weights=nowhere",), "network.weights nowhere is no run and no checkpoint"),
    ],
)
def test_what_cannot_be_is_said(scene: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(config_of(scene, *overrides), quiet=True)
    assert not (scene / "run").exists()


def test_a_pretraining_does_not_segment(scene: Path) -> None:
    run = train(config_of(scene, "train.steps=1", f"data.test=[{{raw: {scene}/images/0.png}}]"), quiet=True)
    with pytest.raises(InputError, match="is a pretraining, which segments nothing"):
        predict_run(run.path, quiet=True)
