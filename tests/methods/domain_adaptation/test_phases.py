# SPDX-License-Identifier: BSD-3-Clause
"""Domain adaptation in its parts: who gets a gradient, what is degraded, whose patches, what is matched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastseg.data.annotations import index_labels
from fastseg.data.buffers import Batch
from fastseg.data.histogram import MatchedVolume, histogram_of, match_histograms
from fastseg.data.volumes import Volume, open_volume
from fastseg.methods.domain_adaptation.data import mixed, open_domains
from fastseg.methods.domain_adaptation.network import YNetwork
from fastseg.methods.domain_adaptation.restoration import RestorationTask, degrade
from fastseg.methods.domain_adaptation.training import SourceTask
from fastseg.train.inputs import build_sampler
from fastseg.train.ranks import Ranks
from tests.methods.domain_adaptation.adaptation import config_of, draw_domains, task_of

PLAIN = ("train.augment=none", "network.dropout=[0, 0, 0, 0, 0]", "train.precision=fp32")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_domains(tmp_path)


def both_kinds(task: RestorationTask) -> tuple[Batch, torch.Tensor]:
    """A batch with patches of both domains, and which of them are the source's."""
    for step in range(50):
        batch = task.loader.load(step)
        labelled = (batch.codes == 1).flatten(1).all(1)
        if labelled.any() and not labelled.all():
            assert (batch.codes[~labelled] == 0).all()
            return batch, labelled
    raise AssertionError("no batch has patches of both domains")


def test_an_unlabelled_sample_of_a_mixed_batch_gives_segmentation_no_gradient(scene: Path) -> None:
    task = task_of(config_of(scene, "ynet", *PLAIN, "domain_adaptation.step_1.weights=[0, 1]"), "step_1")
    batch, labelled = both_kinds(task)
    seen: list[torch.Tensor] = []
    network = task.network
    assert isinstance(network, YNetwork)

    def keep(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> None:
        logits.retain_grad()
        seen.append(logits)

    network.network.segmentation.register_forward_hook(keep)
    loss, _ = task.loss(task.inputs(batch, 0), 0)
    loss.backward()
    gradient = seen[0].grad
    assert gradient is not None
    assert (gradient[~labelled] == 0).all()
    assert (gradient[labelled] != 0).all()
    # As [has mask] BCE of each sample by itself, and the mean over all of them.
    image = (batch.raw.float() - batch.shift.view(-1, 1, 1, 1, 1)) * batch.scale.view(-1, 1, 1, 1, 1)
    logits = network(image)
    each = F.binary_cross_entropy_with_logits(logits, batch.target.float(), reduction="none").flatten(1)
    torch.testing.assert_close(loss.detach(), (each.mean(1) * labelled).mean().detach())


def test_the_loss_of_a_step_is_weighted_and_all_images_are_restored(scene: Path) -> None:
    tasks = {
        weights: task_of(
            config_of(scene, "ynet", *PLAIN, f"domain_adaptation.step_1.weights={list(weights)}"), "step_1"
        )
        for weights in ((0.98, 0.02), (1.0, 0.0), (0.0, 1.0))
    }
    batch, _ = both_kinds(tasks[0.98, 0.02])
    losses = {
        weights: float(task.loss(task.inputs(batch, 0), 0)[0].detach()) for weights, task in tasks.items()
    }
    expected = 0.98 * losses[1.0, 0.0] + 0.02 * losses[0.0, 1.0]
    assert losses[0.98, 0.02] == pytest.approx(expected, rel=1e-5)
    image = (batch.raw.float() - batch.shift.view(-1, 1, 1, 1, 1)) * batch.scale.view(-1, 1, 1, 1, 1)
    _, restored = tasks[1.0, 0.0].network.both(image)
    assert losses[1.0, 0.0] == pytest.approx(float((restored - image).square().mean().detach()), rel=1e-5)


def test_only_what_a_step_learns_is_in_its_optimizer(scene: Path) -> None:
    config = config_of(scene, "ynet")
    parts = {
        "step_1": {"encoder", "segmentation", "reconstruction"},
        "step_2": {"encoder", "reconstruction"},
    }
    kinds = {"step_1": torch.optim.SGD, "step_2": torch.optim.AdamW}
    for phase, expected in parts.items():
        task = task_of(config, phase)
        (update,) = task.updates(task.config.train)
        assert isinstance(update.optimizer, kinds[phase])
        assert update.optimizer.param_groups[0]["lr"] == {"step_1": 1e-3, "step_2": 2e-4}[phase]
        names = {id(p): name.split(".")[1] for name, p in task.network.named_parameters()}
        assert {names[id(p)] for p in update.parameters} == expected
    assert task_of(config, "step_1").updates(config.train)[0].optimizer.param_groups[0]["momentum"] == 0.99
    last = SourceTask(config, open_domains(config, Ranks()), Ranks())
    (update,) = last.updates(config.train)
    assert {id(p) for p in update.parameters} == {
        id(p) for name, p in last.network.named_parameters() if ".segmentation." in name
    }
    # The published schedules: one cycle in pretraining, a constant rate in the Y-Net's first steps.
    pretraining = task_of(config_of(scene, "pretrain"), "pretrain")
    rates = {}
    for name, task in (("pretrain", pretraining), ("step_2", task_of(config, "step_2"))):
        (update,) = task.updates(task.config.train)
        rates[name] = []
        for _ in range(5):
            rates[name].append(update.schedule.get_last_lr()[0])
            update.optimizer.step()
            update.schedule.step()
    assert len(set(rates["step_2"])) == 1
    assert max(rates["pretrain"]) > 5 * rates["pretrain"][0]


def test_degradation_is_noise_clipping_and_a_coarser_grid() -> None:
    y, x = np.mgrid[:32, :32]
    image = torch.from_numpy(0.4 + 0.001 * (y + x)).float().expand(2, 1, 1, 32, 32).clone()
    image[1] *= 2
    # A straight line in y and x survives halving and doubling, but for the border.
    still = degrade(image, [1, 2], noise=0.0, factor=2)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(still[inner], image[inner])
    noisy = degrade(image, [1, 2], noise=0.3, factor=1)
    assert (noisy.amax((1, 2, 3, 4)) <= image.amax((1, 2, 3, 4))).all()
    assert (noisy >= 0).all()
    faint = torch.full((1, 1, 1, 200, 200), 0.1)
    faint[..., 0] = 0.5
    spread = (degrade(faint, [3], noise=0.06, factor=1)[..., 1:] - 0.1).std()
    assert float(spread) == pytest.approx(0.03, rel=0.02)  # of the largest value, 0.5
    coarse = degrade(image, [1, 2], noise=0.3, factor=2)
    assert coarse.std() < noisy.std()
    flat = F.avg_pool2d(noisy[:, :, 0], 2)
    expected = F.interpolate(flat, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(coarse[:, :, 0], expected)
    # By the seed alone, and of each image by itself.
    torch.testing.assert_close(degrade(image[1:], [2], noise=0.3, factor=2), coarse[1:])
    assert not torch.equal(degrade(image[:1], [7], noise=0.3, factor=2), coarse[:1])
    sideways = degrade(image.movedim(2, 4), [1, 2], noise=0.3, factor=2, axis=2)
    assert sideways.shape == (2, 1, 32, 32, 1)


@pytest.mark.parametrize("normalize", ["percentile", "range", "zscore", "none"])
def test_pretraining_restores_what_was_there_before(scene: Path, normalize: str) -> None:
    config = config_of(scene, "pretrain", *PLAIN, f"data.normalize={normalize}")
    task = task_of(config, "pretrain")
    batch = task.loader.load(0)
    image = (batch.raw.float() - batch.shift.view(-1, 1, 1, 1, 1)) * batch.scale.view(-1, 1, 1, 1, 1)
    shown: list[torch.Tensor] = []
    task.network.register_forward_hook(lambda module, inputs, out: shown.extend((inputs[0], out)))
    loss, _ = task.loss(task.inputs(batch, 0), 0)
    bounded = normalize in ("percentile", "range")
    clean = image.clamp(0, 1) if bounded else image
    restored = shown[1].sigmoid() if bounded else shown[1]
    assert not torch.equal(shown[0], clean)
    torch.testing.assert_close(loss, (restored - clean).square().mean())
    # Without a black of its own, each patch's darkest value is what noise is clipped at: greys below 0 are kept.
    darkest = clean.amin((1, 2, 3, 4)) if not bounded else torch.zeros(len(clean))
    assert (shown[0].amin((1, 2, 3, 4)) >= darkest - 1e-5).all()
    assert (shown[0].amin() < 0) == (normalize == "zscore")
    assert (batch.codes == 0).all()  # labels are not even read


@pytest.mark.parametrize(("share", "uniform"), [(0.5, 0.1), (0.25, 1.0), (0.75, 0.0)])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_target_has_its_share_of_the_patches(
    scene: Path, share: float, uniform: float, labelled: bool
) -> None:
    sampling = f"data.sampling={{uniform: {uniform}, labelled: {1 - uniform}, foreground: 0}}"
    config = config_of(scene, "ynet", f"domain_adaptation.target_share={share}", sampling)
    domains = open_domains(config, Ranks())
    drawing, volumes = mixed(config, domains, labelled)
    assert [volume.labels is not None for volume in volumes] == [labelled, False]
    sampler = build_sampler(drawing, volumes, [index_labels(volume, 0) for volume in volumes])
    drawn = [sampler.draw(step, place)[0] for step in range(500) for place in range(4)]
    assert np.mean(drawn) == pytest.approx(share, abs=0.04)


def test_sources_are_matched_as_they_are_read_and_the_target_is_not(scene: Path) -> None:
    on, off = (config_of(scene, "ynet", f"domain_adaptation.match_histograms={m}") for m in ("true", "false"))
    held_out = "data.validation=[{raw: source.npy, labels: source_labels.npy, region: {z: [0, 2]}}]"
    domains = open_domains(on, Ranks())
    source, target = domains.sources[0].raw, domains.targets[0].raw
    plain = open_volume(scene.parent / "source.npy")
    assert not isinstance(target, MatchedVolume)
    expected = match_histograms(histogram_of([plain]), histogram_of([target]))(plain[:])
    np.testing.assert_array_equal(source[:], expected)
    np.testing.assert_array_equal(source.crop((1, 2, 3), (4, 20, 30))[:], expected[:, 1:4, 2:20, 3:30])
    assert (
        abs(np.median(source[:]) - np.median(target[:])) < 3 < abs(np.median(plain[:]) - np.median(target[:]))
    )
    assert (source[:][plain[:] == 0] == 0).all()
    assert type(open_domains(off, Ranks()).sources[0].raw) is Volume
    # What is validated on is of the source too.
    validated = open_domains(config_of(scene, "ynet", held_out), Ranks()).held_out[0]
    assert isinstance(validated.raw, MatchedVolume)
    assert validated.labels is not None
    # Every patch of the source comes matched, whichever loader brings it.
    for resident in ("true", "false"):
        task = task_of(config_of(scene, "ynet", *PLAIN, f"data.resident={resident}"), "step_1")
        batch, labelled = both_kinds(task)
        assert set(batch.raw[labelled].unique().tolist()) <= set(np.unique(expected).tolist())


def test_matching_reads_no_more_than_a_patch_once_it_has_counted(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(config_of(scene, "ynet", *PLAIN, "data.resident=false"), "step_1")
    read, boxes = Volume.read, []

    def count(volume: Volume, start: list[int], stop: list[int], out: np.ndarray | None = None) -> np.ndarray:
        boxes.append(int(np.prod(np.subtract(stop, start))))
        return read(volume, start, stop, out)

    monkeypatch.setattr(Volume, "read", count)
    task.loader.load(0)
    assert set(boxes) == {32 * 32}


def test_matching_is_on_with_both_domains_and_off_without(scene: Path) -> None:
    for strategy, expected in (("none", False), ("style", False), ("pretrain", True), ("ynet", True)):
        section = config_of(scene, strategy).domain_adaptation
        assert section.matching == expected
        if strategy == "style":
            continue
        stated = config_of(scene, strategy, f"domain_adaptation.match_histograms={not expected}")
        assert stated.domain_adaptation.matching != expected


def test_a_table_gives_what_straight_lines_give(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for dtype, most in (("u1", 256), ("u2", 65_536)):
        volumes = []
        for name in ("s", "t"):
            np.save(tmp_path / f"{name}.npy", rng.integers(0, most, (2, 30, 40)).astype(dtype))
            volumes.append(open_volume(tmp_path / f"{name}.npy"))
        lookup = match_histograms(*(histogram_of([volume]) for volume in volumes))
        raw = volumes[0][:]
        np.testing.assert_array_equal(lookup(raw), lookup._between(raw))
        assert lookup(raw).dtype == raw.dtype
