# SPDX-License-Identifier: BSD-3-Clause
"""Sparse 2D annotations to dense 3D: what is learnt where, and three phases that survive a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastseg import masked_weighted_bce
from fastseg.commands.infer import evaluate_run, predict_run
from fastseg.data.annotations import AnnotatedVolume, Annotation, index_labels
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.methods.sparse_2d3d.training import slices_config
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import LossConfig
from fastseg.train.inputs import open_training
from tests.project import ENVIRONMENT, command, fastseg, make_project
from tests.train.processes import finish, start

SECTION = "sparse_2d3d={patch: [32, 32], steps: 12, batch: 2}"
OPTIONS = ("method=sparse_2d3d", SECTION, "train.steps=12", "train.checkpoint_every=3")
SHAPE = (6, 10, 12)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def volume_with_pseudo_labels(folder: Path, **options: object) -> AnnotatedVolume:
    """Slices 1 and 4 annotated; the pseudo-labels say the opposite of the labels everywhere."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, SHAPE).astype("u2")
    probability = np.where(labels > 0, 0.25, 0.75).astype("f2")
    arrays = {"raw": rng.normal(size=SHAPE).astype("f4"), "labels": labels, "probability": probability}
    arrays["segmentation"] = (probability >= 0.5).astype("u1")
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    opened = {name: open_volume(folder / f"{name}.npy") for name in arrays}
    pseudo = opened[str(options.pop("kind", "segmentation"))]
    annotation = Annotation(0, (1, 4))
    return AnnotatedVolume(opened["raw"], opened["labels"], annotation=annotation, pseudo=pseudo, **options)


def loss_and_gradient(
    volume: AnnotatedVolume, pseudo_weight: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    target, codes = (torch.from_numpy(a)[None] for a in volume.read_target((0, 0, 0), SHAPE))
    logits = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = masked_weighted_bce(logits, target, codes, pseudo_weight=pseudo_weight)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad, logits.detach()


def test_annotations_override_pseudo_labels(tmp_path: Path) -> None:
    volume = volume_with_pseudo_labels(tmp_path)
    target, codes = volume.read_target((0, 0, 0), SHAPE)
    truth = np.load(tmp_path / "labels.npy") > 0
    for z in range(SHAPE[0]):
        annotated = z in (1, 4)
        assert (codes[0, z] == (1 if annotated else 2)).all()
        np.testing.assert_array_equal(target[0, z] != 0, truth[z] if annotated else ~truth[z])
    index = index_labels(volume, seed=0)
    plane = SHAPE[1] * SHAPE[2]
    assert (index.labelled_voxels, index.pseudo_voxels) == (2 * plane, 4 * plane)
    assert index.foreground_voxels == np.count_nonzero(target)


def test_boxes_have_the_codes_of_the_whole(tmp_path: Path) -> None:
    volume = volume_with_pseudo_labels(tmp_path)
    whole, codes = volume.read_target((0, 0, 0), SHAPE)
    part, part_codes = volume.read_target((3, 2, 1), (6, 9, 12))
    np.testing.assert_array_equal(part, whole[:, 3:6, 2:9, 1:12])
    np.testing.assert_array_equal(part_codes, codes[:, 3:6, 2:9, 1:12])


def test_a_mask_leaves_the_rest_to_pseudo_labels_and_an_ignored_label_to_nobody(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, "u1")
    mask[2, 3:5] = 1
    np.save(tmp_path / "mask.npy", mask)
    volume = volume_with_pseudo_labels(tmp_path, ignore_label=2)
    volume = replace(volume, mask=open_volume(tmp_path / "mask.npy"), annotation=Annotation())
    _, codes = volume.read_target((0, 0, 0), SHAPE)
    labels = np.load(tmp_path / "labels.npy")
    np.testing.assert_array_equal(codes[0], np.where(labels == 2, 0, np.where(mask == 1, 1, 2)))


def test_soft_pseudo_labels_are_the_probabilities(tmp_path: Path) -> None:
    volume = volume_with_pseudo_labels(tmp_path, kind="probability")
    target, _ = volume.read_target((0, 0, 0), SHAPE)
    assert target.dtype == np.float16
    assert set(np.unique(target[0, [1, 4]])) == {0.0, 1.0}
    np.testing.assert_array_equal(
        target[0, [0, 2, 3, 5]], np.load(tmp_path / "probability.npy")[[0, 2, 3, 5]]
    )


def test_pseudo_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    volume = volume_with_pseudo_labels(tmp_path)
    with pytest.raises(
        InputError, match=r"pseudo-labels .*npy must be \(2, 6, 10, 12\) .*got \(1, 6, 10, 12\)"
    ):
        replace(volume, classes=(1, 2))


def test_weight_zero_gives_no_gradient_off_the_annotated_slices(tmp_path: Path) -> None:
    _, gradient, _ = loss_and_gradient(volume_with_pseudo_labels(tmp_path), 0.0)
    off = [z for z in range(SHAPE[0]) if z not in (1, 4)]
    assert (gradient[0, 0, off] == 0).all()
    assert (gradient[0, 0, [1, 4]] != 0).all()


@pytest.mark.parametrize("kind", ["segmentation", "probability"])
def test_weight_one_is_the_dense_loss_on_the_union(tmp_path: Path, kind: str) -> None:
    volume = volume_with_pseudo_labels(tmp_path, kind=kind)
    loss, gradient, logits = loss_and_gradient(volume, 1.0)
    target = torch.from_numpy(volume.read_target((0, 0, 0), SHAPE)[0]).float()[None]
    logits.requires_grad_()
    dense = F.binary_cross_entropy_with_logits(logits, target)
    dense.backward()
    torch.testing.assert_close(loss, dense.detach())
    torch.testing.assert_close(gradient, logits.grad)


def test_the_ramp_rises_from_nothing_to_the_weight() -> None:
    ramp = LossConfig(pseudo_weight=0.5, pseudo_ramp=(0.1, 0.6))
    assert [ramp.pseudo_weight_at(step, 100) for step in (0, 10, 35, 60, 99)] == [0, 0, 0.25, 0.5, 0.5]
    jump = LossConfig(pseudo_weight=0.5, pseudo_ramp=(0.5, 0.5))
    assert [jump.pseudo_weight_at(step, 10) for step in (4, 5)] == [0, 0.5]
    assert LossConfig(pseudo_weight=0.5).pseudo_weight_at(0, 10) == 0.5


def scramble_what_is_not_annotated(path: Path) -> None:
    """Everything but the slices 0, 4, 8 and 12 that the project annotates; its test slices 12..23 among it."""
    with h5py.File(path, "r+") as file:
        labels = file["somata"][:]
        hidden = [z for z in range(len(labels)) if z not in (0, 4, 8, 12)]
        labels[hidden] = np.random.default_rng(1).integers(0, 2, labels[hidden].shape)
        file["somata"][...] = labels


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return RunFolder(folder).load()["network"]


@pytest.mark.long
def test_nothing_is_learnt_from_masks_that_are_held_out(config: Path) -> None:
    folder = config.parent
    assert fastseg("train", config, *OPTIONS, f"output={folder}/first").returncode == 0
    scramble_what_is_not_annotated(folder / "phantoms.h5")
    assert fastseg("train", config, *OPTIONS, f"output={folder}/second").returncode == 0
    first, second = (
        h5py.File(folder / run / "pseudo_labels" / "train_0.h5")["probability"][:]
        for run in ("first", "second")
    )
    assert first.shape == (16, 64, 64)
    assert first.std() > 0
    np.testing.assert_array_equal(first, second)
    one, other = weights(folder / "first"), weights(folder / "second")
    assert all(torch.equal(one[name], other[name]) for name in one)


def _soon(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)


@pytest.mark.long
def test_killed_in_each_phase_it_ends_as_if_it_had_not_been(config: Path) -> None:
    folder = config.parent
    whole, killed = folder / "whole", folder / "killed"
    assert fastseg("train", config, *OPTIONS, f"output={whole}").returncode == 0
    phases = (
        lambda: bool(RunFolder(killed / "slices").checkpoints()),
        lambda: (killed / "pseudo_labels").exists(),
        lambda: bool(RunFolder(killed).checkpoints()),
    )
    for reached in phases:
        process = subprocess.Popen(
            command("train", config, *OPTIONS, f"output={killed}", "--resume"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        _soon(reached, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert fastseg("train", config, *OPTIONS, f"output={killed}", "--resume").returncode == 0
    for run in ("slices", "."):
        one, other = weights(whole / run), weights(killed / run)
        assert all(torch.equal(one[name], other[name]) for name in one)
    names = ("pseudo_labels/train_0.h5",)
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in names)


def test_a_phase_that_is_done_is_not_repeated(config: Path) -> None:
    run = config.parent / "run"
    assert fastseg("train", config, *OPTIONS).returncode == 0
    pseudo = run / "pseudo_labels" / "train_0.h5"
    before = pseudo.stat().st_mtime_ns
    shutil.rmtree(run / "checkpoints")
    assert fastseg("train", config, *OPTIONS, "--resume").returncode == 0
    assert pseudo.stat().st_mtime_ns == before
    record = json.loads((run / "pseudo_labels" / "done.json").read_text())
    (run / "pseudo_labels" / "done.json").write_text(json.dumps({**record, "network": "another"}))
    assert fastseg("train", config, *OPTIONS, "--resume").returncode == 0
    assert pseudo.stat().st_mtime_ns != before


def test_each_phase_can_be_predicted_and_evaluated(config: Path) -> None:
    assert fastseg("train", config, *OPTIONS, "sparse_2d3d.pseudo_labels=soft").returncode == 0
    run = config.parent / "run"
    done = fastseg("train", config, *OPTIONS)
    assert (done.returncode, "already holds a run at step 12" in done.stderr) == (2, True)
    for path in (run, run / "slices"):
        (written,) = predict_run(str(path), quiet=True)
        assert open_volume(f"{written}:/segmentation").shape == (12, 64, 64)
        results, _ = evaluate_run(str(path))
        assert len(results) == 1
    assert load_config(run / "config.yaml").method == "sparse_2d3d"
    assert load_config(run / "slices" / "config.yaml").method == "supervised"


@pytest.mark.parametrize("kind", ["sliding_cnn", "unet"])
@pytest.mark.parametrize("axis", ["y", "x"])
def test_slices_across_any_axis(config: Path, axis: str, kind: str) -> None:
    options = (
        f"data.train.0.annotated={{axis: {axis}, slices: [5, 40]}}",
        "sparse_2d3d.patch=[16, 32]",
        f"sparse_2d3d.network={{kind: {kind}, width: 2, pooling: [2, 2], norm: batch}}",
        "train.augment.rotate=20",
    )
    done = fastseg("train", config, *OPTIONS, *options)
    assert done.returncode == 0, done.stderr
    run = config.parent / "run"
    slices = load_config(run / "slices" / "config.yaml")
    expected = {"y": ((16, 1, 32), (16, 1, 64)), "x": ((16, 32, 1), (16, 64, 1))}
    assert (slices.patch, slices.window) == expected[axis]
    assert (slices.train.augment.rotate, load_config(run / "config.yaml").train.augment.rotate) == (0, 20)
    assert open_volume(f"{run}/pseudo_labels/train_0.h5:/segmentation").shape == (16, 64, 64)


def test_slices_are_predicted_whole_and_sampled_where_annotated(config: Path) -> None:
    loaded = load_config(config, [*OPTIONS, "data.sampling={uniform: 1, labelled: 0, foreground: 0}"])
    slices = slices_config(loaded, open_training(loaded))
    assert slices.window == (1, 64, 64)
    assert slices.data.sampling.model_dump() == {"uniform": 0, "labelled": 1, "foreground": 0}
    unet = load_config(config, [*OPTIONS, "sparse_2d3d.network={kind: unet, pooling: [2, 2, 2, 2, 3]}"])
    with pytest.raises(InputError, match=r"data.patch \[32, 32\] must be a multiple of \[48, 48\]"):
        slices_config(unet, open_training(unet))


def test_mistakes(config: Path) -> None:
    section = SECTION.replace("steps", "axis: y, steps")
    done = fastseg("train", config, *OPTIONS, section)
    assert (done.returncode, "across one axis, data.train and sparse_2d3d.axis name y, z" in done.stderr) == (
        2,
        True,
    )
    done = fastseg("train", config, *OPTIONS, "data.patch=[32, 32]", "network.pooling=[2, 2]")
    assert (done.returncode, "data.patch must be [z, y, x], of the 3D network" in done.stderr) == (2, True)
    assert not (config.parent / "run").exists()


@pytest.mark.long
def test_two_processes_share_all_phases(config: Path) -> None:
    """A slices' network without dropout, whose numbers each process draws for itself."""
    folder = config.parent
    section = "sparse_2d3d.network={kind: unet, width: 2, pooling: [2, 2], norm: instance}"
    options = (*OPTIONS, section, "train.precision=fp32", "network.norm=instance")
    done = finish(start(2, command("train", config, *options, f"output={folder}/two")))
    assert [process.returncode for process in done] == [0, 0], done
    assert fastseg("train", config, *options, f"output={folder}/one").returncode == 0
    files = [h5py.File(folder / name / "pseudo_labels" / "train_0.h5") for name in ("one", "two")]
    one, two = (file["probability"][:].astype("f4") for file in files)
    assert one.std() > 0.01
    np.testing.assert_allclose(one, two, atol=1e-3)
    first, second = weights(folder / "one"), weights(folder / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-3)
