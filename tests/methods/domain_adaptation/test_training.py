# SPDX-License-Identifier: BSD-3-Clause
"""Domain adaptation as runs: what each strategy leaves, labels of the target that decide nothing, breaks, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastseg.commands.infer import evaluate_run, predict_run
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.methods.domain_adaptation import data as domains
from fastseg.methods.domain_adaptation.style import training as style
from fastseg.methods.domain_adaptation.training import train
from fastseg.methods.inference import trained_network
from fastseg.train.checkpoint import RunFolder
from fastseg.train.ranks import Ranks
from tests.methods.domain_adaptation.adaptation import (
    CONFIG,
    PHASES,
    assert_same,
    config_of,
    draw_domains,
    weights,
)
from tests.project import fastseg


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_domains(tmp_path)


@pytest.mark.parametrize("strategy", PHASES)
def test_every_strategy_leaves_a_run_that_segments(
    scene: Path, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(config_of(scene, strategy, "train.stop=morphology"))
    folders = {path.name for path in Path(run.path).iterdir() if (path / "checkpoints").exists()}
    assert folders == set(PHASES[strategy])
    (written,) = predict_run(run.path, quiet=True)
    assert open_volume(f"{written}:/segmentation").shape == (2, 48, 64)
    results, _ = evaluate_run(run.path)
    assert len(results) == 1
    assert load_config(run.file("config.yaml")).domain_adaptation.strategy == strategy
    said = capsys.readouterr().out
    assert said.count("both domains") == len(PHASES[strategy])
    with pytest.raises(InputError, match="already holds a run at step 6"):
        train(config_of(scene, strategy, "train.stop=morphology"), quiet=True)


def test_a_step_of_the_ynet_segments_and_a_pretraining_says_that_it_does_not(scene: Path) -> None:
    run = train(config_of(scene, "ynet"), quiet=True)
    (written,) = predict_run(run.file("step_1"), quiet=True)
    assert open_volume(f"{written}:/probability").shape == (2, 48, 64)
    with pytest.raises(InputError, match="is a phase of the run in the folder above it"):
        train(load_config(run.file("step_1", "config.yaml")), resume=True)
    other = train(config_of(scene, "pretrain", f"output={scene.parent / 'other'}"), quiet=True)
    with pytest.raises(InputError, match="restores images, and segments nothing"):
        predict_run(other.file("pretrain"), quiet=True)


@pytest.mark.parametrize("strategy", ["pretrain", "ynet"])
@pytest.mark.parametrize(("freeze", "levels"), [("encoder", 5), ("above_bottleneck", 4), ("nothing", 0)])
def test_what_is_frozen_stays_bit_for_bit(scene: Path, strategy: str, freeze: str, levels: int) -> None:
    decay = ("train.weight_decay=0.5", "train.learning_rate=0.01", f"domain_adaptation.freeze={freeze}")
    run = train(config_of(scene, strategy, *decay), quiet=True)
    before, after = weights(run.file(PHASES[strategy][-1])), weights(run.path)
    frozen = [name for name in after if any(f".encoder.levels.{level}." in name for level in range(levels))]
    assert len(frozen) == 4 * levels
    for name in after:
        assert torch.equal(before[name], after[name]) == (name in frozen), name
    # The decoder that restores is left behind where it was.
    assert not any("reconstruction" in name for name in after)


def test_the_second_step_moves_nothing_that_segments_whatever_decays(scene: Path) -> None:
    run = train(config_of(scene, "ynet", "train.weight_decay=0.5"), quiet=True)
    first, second = weights(run.file("step_1")), weights(run.file("step_2"))
    for name, value in first.items():
        assert torch.equal(value, second[name]) == (".segmentation." in name), name


def scramble(path: Path) -> None:
    labels = np.load(path)
    np.save(path, np.random.default_rng(5).permutation(labels.ravel()).reshape(labels.shape))


@pytest.mark.parametrize("strategy", ["pretrain", "ynet"])
def test_labels_of_the_target_decide_nothing(scene: Path, strategy: str) -> None:
    folder, stop = scene.parent, ("train.stop={rule: morphology, every: 1}", "train.steps=12")
    given = "data.target.0.labels=target_labels.npy"
    runs = {}
    for name, more in (("withheld", ()), ("given", (given,)), ("scrambled", (given,))):
        if name == "scrambled":
            scramble(folder / "target_labels.npy")
        runs[name] = train(config_of(scene, strategy, *stop, *more, f"output={folder / name}"), quiet=True)
    states = {name: run.load_for_prediction("best") for name, run in runs.items()}
    for name in ("given", "scrambled"):
        assert states[name]["step"] == states["withheld"]["step"]
        assert_same(states[name]["network"], states["withheld"]["network"])
        for phase in PHASES[strategy]:
            assert_same(weights(runs[name].file(phase)), weights(runs["withheld"].file(phase)))
    reported = [
        json.loads(Path(runs[name].file("validation.jsonl")).read_text().splitlines()[-1]) for name in runs
    ]
    assert "target_iou" not in reported[0]
    assert reported[1]["target_iou"] != reported[2]["target_iou"]


def test_volumes_are_measured_once(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(scene, "none", "domain_adaptation.match_histograms=true")
    run = train(config, quiet=True)
    Path(run.checkpoints()[-1][1]).unlink()

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(domains, "histogram_of", refuse)
    train(config, resume=True, quiet=True)
    Path(run.file("histograms.json")).unlink()
    with pytest.raises(AssertionError, match="measured again"):
        train(config, resume=True, quiet=True)


def test_style_composes_the_generator_with_what_learns_the_source(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a generator that turns images into their negative, in the place of the one that learns."""

    class Negative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.one - image

    def generate(config, *, resume: bool, quiet: bool, ranks: Ranks) -> RunFolder:
        run = RunFolder(Path(config.output) / "style")
        network = nn.ModuleDict({"generator": Negative(), "critic": nn.Conv2d(1, 1, 1)})
        network["generator"].one.data.fill_(0.75)
        run.save(1, {"step": 1, "network": network.state_dict(), "average": None})
        return run

    monkeypatch.setattr(style, "train", generate)
    monkeypatch.setattr(style, "build_generator", lambda config, channels: Negative())
    config = config_of(scene, "style", "train.weight_decay=0.5", "train.stop=morphology")
    run = train(config, quiet=True)
    plain = train(config_of(scene, "none", "train.weight_decay=0.5", f"output={scene.parent / 'plain'}"))
    image = torch.rand(1, 1, 1, 32, 32)
    styled, alone = (
        trained_network(load_config(r.file("config.yaml")), r.load(), [], torch.device("cpu"))
        for r in (run, plain)
    )
    assert torch.equal(styled.generator.one.data, torch.tensor([0.75]))
    # The source is learnt as it is, and the target is seen in its style.
    torch.testing.assert_close(styled(image), alone(0.75 - image), rtol=1e-4, atol=1e-5)
    assert len(predict_run(run.path, quiet=True)) == 1


def test_check_names_phases_and_target(scene: Path) -> None:
    for strategy, phases in PHASES.items():
        done = fastseg("check", "--seconds", 0, scene, f"domain_adaptation.strategy={strategy}")
        assert done.returncode == 0, done.stderr
        assert "target" in done.stdout
        assert [
            phase for phase in ("pretrain", "step_1", "step_2") if f"  {phase}: " in done.stdout
        ] == phases
        assert ("histograms: of data.train matched" in done.stdout) == (strategy != "none")
    assert not (scene.parent / "run").exists()
    assert fastseg("check", "--seconds", 0.2, scene, "domain_adaptation.strategy=ynet").returncode == 0


@pytest.mark.long
def test_none_is_supervised_training_and_may_begin_with_weights(scene: Path) -> None:
    run = train(config_of(scene, "none"), quiet=True)
    same = (
        "train.learning_rate=2e-4",
        "train.weight_decay=0",
        "train.augment={contrast: 0, brightness: 0}",
        "data.normalize=percentile",
        "network.kind=attention_unet",
    )
    text = CONFIG.replace("method: domain_adaptation", "method: supervised")
    text = text[: text.index("\ndomain_adaptation:")] + text[text.index("\ntrain: {steps") :]
    (scene.parent / "plain.yaml").write_text(text)
    done = fastseg("train", scene.parent / "plain.yaml", *same, f"output={scene.parent}/plain")
    assert done.returncode == 0, done.stderr
    assert_same(weights(run.path), weights(scene.parent / "plain"))
    begun = config_of(
        scene,
        "none",
        f"network.weights={run.path}",
        "train.learning_rate=1e-30",
        f"output={scene.parent / 'begun'}",
    )
    for name, value in weights(train(begun, quiet=True).path).items():
        torch.testing.assert_close(value, weights(run.path)[name], rtol=0, atol=1e-7)
