# SPDX-License-Identifier: BSD-3-Clause
"""Domain adaptation: what cannot be, said in one line, and images of the test that are learnt from or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.methods.domain_adaptation.data import with_test_images
from fastseg.methods.domain_adaptation.training import train
from fastseg.train.ranks import Ranks
from tests.methods.domain_adaptation.adaptation import config_of, draw_domains, task_of


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_domains(tmp_path)


SAME = "data.test=[{raw: target.npy, region: {z: [3, 5]}}]"
SECTION = "domain_adaptation"
MISTAKES = {
    (
        "data.patch=[16, 32, 32]",
    ): r"network.kind attention_unet sees single slices: it needs a patch \[y, x\]",
    ("data.patch=[40, 32]",): r"data.patch \[40, 32\] must be a multiple of \[16, 16\]",
    ("network.kind=unet", "network.pooling=[2]"): "network.kind must be attention_unet, got unet",
    ("network.gate=down",): "network.gate: input should be 'up' or 'skip', got 'down'",
    ("network.dropout=[0.1]",): "network.dropout: list should have at least 5 items",
    ("network.dropout=[1, 0, 0, 0, 0]",): "network.dropout.*: input should be less than 1, got 1",
    (
        "network.weights=run",
    ): "network.weights begins strategy none alone: ynet begins with a phase of its own",
    ("data.target=[]",): "domain_adaptation.strategy ynet needs data.target",
    (
        f"{SECTION}.strategy=none",
        f"{SECTION}.match_histograms=true",
        "data.target=[]",
    ): "match_histograms needs",
    (f"{SECTION}.strategy=style", f"{SECTION}.match_histograms=true"): "match_histograms changes the source",
    (f"{SECTION}.strategy=magic",): "'none', 'pretrain', 'ynet' or 'style', got 'magic'",
    (f"{SECTION}.strategy=none", f"{SECTION}.phase=step_1"): "phase step_1 is none of strategy none",
    (f"{SECTION}.step_1.patience=3",): "domain_adaptation.step_1.patience needs data.validation",
    (f"{SECTION}.step_1.weights=[0, 0]",): "one of the weights of a step must be above 0",
    (f"{SECTION}.step_2.weights=[-1, 0]",): "step_2.weights.0: input should be greater than or equal to 0",
    (f"{SECTION}.step_1.optimizer=lion",): "step_1.optimizer: input should be 'adam' or 'sgd', got 'lion'",
    (f"{SECTION}.step_1.momentum=1",): "step_1.momentum: input should be less than 1, got 1",
    (f"{SECTION}.step_1.schedule=steep",): "step_1.schedule: input should be 'constant' or 'one_cycle'",
    (f"{SECTION}.pretrain.steps=0",): "pretrain.steps: input should be greater than 0, got 0",
    (f"{SECTION}.pretrain.batch=0",): "pretrain.batch: input should be greater than 0, got 0",
    (f"{SECTION}.pretrain.learning_rate=0",): "pretrain.learning_rate: input should be greater than 0, got 0",
    (f"{SECTION}.pretrain.noise=-1",): "pretrain.noise: input should be greater than or equal to 0, got -1",
    (f"{SECTION}.pretrain.factor=0",): "pretrain.factor: input should be greater than 0, got 0",
    (f"{SECTION}.target_share=1",): "target_share: input should be less than 1, got 1",
    (
        f"{SECTION}.freeze=all",
    ): "freeze: input should be 'encoder', 'above_bottleneck' or 'nothing', got 'all'",
    (f"{SECTION}.transductive=perhaps",): "transductive: input should be a valid boolean",
    (f"{SECTION}.stp_1.steps=3",): "did you mean domain_adaptation.step_1",
    (SAME,): "data.test.0 and data.target.0 share a part of target.npy.*transductive: true",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_each_mistake_is_one_clear_line(scene: Path, overrides: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=MISTAKES[overrides]) as caught:
        config_of(scene, "ynet", *overrides)
    assert "\n" not in str(caught.value)


def test_images_of_the_test_are_learnt_from_where_that_is_asked_for(scene: Path) -> None:
    config = config_of(scene, "ynet", SAME, "domain_adaptation.transductive=true")
    assert [entry.region.z for entry in with_test_images(config).data.target] == [
        (0, 4),
        (3, 5),
    ]
    apart = config_of(scene, "ynet")
    assert with_test_images(apart) == apart
    alone = config_of(scene, "ynet", "data.target=[]", "domain_adaptation.transductive=true")
    run = train(alone, quiet=True)
    assert load_config(run.file("config.yaml")).data.target == list(alone.data.test)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("colour", np.zeros((3, 6, 48, 64), "u1"), "must agree in channels"),
        (
            "deep",
            np.zeros((6, 48, 64), "u2"),
            r"needs source and target of one dtype: .*deep\.npy has uint16",
        ),
    ],
)
def test_what_cannot_be_matched(scene: Path, name: str, array: np.ndarray, message: str) -> None:
    np.save(scene.parent / f"{name}.npy", array)
    with pytest.raises(InputError, match=message):
        train(config_of(scene, "ynet", f"data.target=[{{raw: {name}.npy}}]"), quiet=True)
    assert not (scene.parent / "run").exists()


def test_images_of_several_channels_are_not_matched_but_may_be_restored(scene: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("source", "target"):
        np.save(scene.parent / f"{name}.npy", rng.integers(0, 255, (2, 6, 48, 64), dtype=np.uint8))
    with pytest.raises(InputError, match=r"takes grey images of one channel, .* has 2"):
        train(config_of(scene, "pretrain"), quiet=True)
    off = "domain_adaptation.match_histograms=false"
    for strategy in ("pretrain", "ynet"):
        train(config_of(scene, strategy, off, f"output={scene.parent / strategy}"), quiet=True)


def test_a_batch_that_processes_cannot_share_names_its_phase(scene: Path) -> None:
    with pytest.raises(InputError, match=r"domain_adaptation\.step_2\.batch is shared out evenly.* 3, got 4"):
        task_of(config_of(scene, "ynet"), "step_2", Ranks(0, 3))
