# SPDX-License-Identifier: BSD-3-Clause
"""Style transfer: a step as the published code takes it, what is learnt, resuming, processes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.errors import InputError
from fastseg.methods.domain_adaptation.style.inputs import style_config
from fastseg.methods.domain_adaptation.style.training import StyleTask, build_generator, load_generator, train
from fastseg.nets.cut import taken_at
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from tests.methods.domain_adaptation.style.styles import config_of, draw_styles_scene, in_float64, task_of


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_styles_scene(tmp_path)


def grey_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The mean shift between values of equal number, sorted."""
    return float(np.abs(np.sort(one, axis=None) - np.sort(other, axis=None)).mean())


def edges(image: np.ndarray) -> np.ndarray:
    """Where the mean over 5 x 5 is steep, by plane."""
    smooth = F.avg_pool2d(torch.from_numpy(image)[:, None].float(), 5, 1)[:, 0].numpy()
    return np.hypot(*np.gradient(smooth, axis=(1, 2)))


@pytest.mark.long
def test_restyled_images_have_the_greys_of_the_source_and_the_edges_of_the_target(
    scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("style.patch=[48, 48]", "style.width=8", "style.patches=64", "style.projection=32")
    options = (*sizes, "style.steps=40", "style.learning_rate=2e-3", "train.validate_every=100")
    config = config_of(scene, *options)
    run = train(config, ranks=Ranks())
    generator = load_generator(config, 1, run)
    source, target = (np.load(scene / f"{name}.npy") / np.float32(255) for name in ("source", "target"))
    with torch.no_grad():
        restyled = generator(torch.from_numpy(target)[None, None])[0, 0].numpy()
    assert grey_distance(restyled, source) < 0.75 * grey_distance(target, source)
    assert np.corrcoef(edges(restyled).ravel(), edges(target).ravel())[0, 1] > 0.6
    stated = json.loads(Path(run.file("style.json")).read_text())
    assert stated["distance"] < 0.75 * stated["distance_before"]
    assert stated["content"] > 0.5
    assert stated["notes"] == []
    assert imageio.imread(run.file("figures", "style.png")).std() > 10
    assert "grey levels of restyled images are" in capsys.readouterr().out


def published_steps(
    task: StyleTask, rounds: list[tuple[Tensor, Tensor, list[Tensor]]]
) -> list[dict[str, float]]:
    """optimize_parameters of CUT's model, pass by pass, at source images, target images and places of each round."""
    generator, judge, heads = task.generator.cut, task.discriminator, task.heads
    adam = {"lr": task.settings.learning_rate, "betas": (0.5, 0.999)}
    optimizer_d = torch.optim.Adam(judge.parameters(), **adam)
    optimizer_g, optimizer_f = (torch.optim.Adam(part.parameters(), **adam) for part in (generator, heads))

    def nce(before: Tensor, after: Tensor, where: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        features = zip(generator.encode(after), generator.encode(before), where, heads.heads, strict=True)
        for after_it, before_it, places, head in features:
            q, k = (F.normalize(head(taken_at(f, places)), dim=-1) for f in (after_it, before_it))
            for mine, other in zip(q, k, strict=True):
                logits = mine @ other.detach().T / 0.07
                total = total + F.cross_entropy(logits, torch.arange(len(mine))) / len(q)
        return total / 5

    rows = []
    for source, target, places in rounds:
        fake, same = generator(target), generator(source)
        loss_d = (judge(fake.detach()).square().mean() + (judge(source) - 1).square().mean()) * 0.5
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        gan = (judge(fake) - 1).square().mean()
        count = len(target)
        contrast = nce(target, fake, [p[:count] for p in places])
        contrast = (contrast + nce(source, same, [p[count:] for p in places])) * 0.5
        optimizer_g.zero_grad()
        optimizer_f.zero_grad()
        (gan + task.settings.nce_weight * contrast).backward()
        optimizer_g.step()
        optimizer_f.step()
        losses = {"discriminator_loss": loss_d, "generator_adversarial": gan, "generator_nce": contrast}
        rows.append({name: float(loss.detach()) for name, loss in losses.items()})
    return rows


def test_steps_are_those_of_the_published_code(scene: Path) -> None:
    config = config_of(scene, "style.decay=0", "style.nce_weight=0.5", "style.learning_rate=1e-3")
    task, twin = in_float64(task_of(config)), in_float64(task_of(config))
    with torch.no_grad():  # far from the tiny weights of the beginning
        for mine, theirs in zip(task.network.parameters(), twin.network.parameters(), strict=True):
            theirs.copy_(mine.mul_(20))
    stepper = Stepper(task.updates(task.config.train), task.config.train, Ranks(), task)
    rows, rounds = [], []
    for step, batch in enumerate(task.batches(0, 3)):
        source, target = task._images(batch)
        rounds.append((source, target, task._places(target, step)))
        rows.append(stepper.step(batch, step))
    assert not any("gradient_norm" in name for name in rows[0])  # nothing is clipped
    for row, published in zip(rows, published_steps(twin, rounds), strict=True):
        for name, value in published.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-5), name
    for (name, mine), theirs in zip(task.network.named_parameters(), twin.network.parameters(), strict=True):
        # A bias before an instance norm has a gradient of rounding alone, whose sign Adam takes for a direction.
        if name.endswith("weight"):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_without_identity_source_images_are_not_restyled(scene: Path) -> None:
    task = task_of(config_of(scene, "style.identity=false"))
    batch = next(iter(task.batches(0, 1)))
    made = task.shared(task.inputs(batch, 0), 0).made
    assert len(made) == 2
    torch.testing.assert_close(made, task.generator.cut(task._images(batch)[1]))
    both = task_of(config_of(scene))
    whole = both.shared(both.inputs(batch, 0), 0)
    assert len(whole.made) == 4
    assert [len(places) for places in whole.places] == [4] * 5


def test_the_rate_is_constant_and_then_falls_to_nothing(scene: Path) -> None:
    task = task_of(config_of(scene, "style.steps=20", "style.decay=0.5"))
    rates = [task._rate(step) for step in range(20)]
    assert rates[:10] == [1.0] * 10
    np.testing.assert_allclose(rates[10:], 1 - np.arange(1, 11) / 11)
    assert [task_of(config_of(scene, "style.decay=0"))._rate(step) for step in (0, 5)] == [1.0, 1.0]


def test_images_are_turned_and_never_changed(scene: Path) -> None:
    """Greys of either domain are those of its volume, in the generator's range; crops of the two lie apart."""
    task = task_of(config_of(scene, "train.augment.gamma=0.5", "train.augment.noise=0.2"))
    pair = next(iter(task.batches(0, 1)))
    for name, batch, images in zip(("source", "target"), pair, task._images(pair), strict=True):
        raw = torch.from_numpy(np.load(scene / f"{name}.npy")).unique() / 255
        levels = task.generator.slices(raw.float().view(1, 1, 1, 1, -1)).flatten()
        assert images.shape == (2, 1, 32, 32)
        assert (images.flatten()[:, None] - levels).abs().amin(1).max() < 1e-5
        plain = task.generator.slices(batch.raw.float() / 255)
        assert not torch.equal(plain, images)
        torch.testing.assert_close(plain.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    boxes = [[loader.box(step, 0)[1].tolist() for step in range(8)] for loader in task.loaders]
    assert boxes[0] != boxes[1]


def test_the_generator_s_run_is_not_trained_as_the_segmentation_is(scene: Path) -> None:
    stated = ("train.ema=0.9", "train.clip_norm=1", "train.weight_decay=0.1")
    whole = config_of(scene, *stated, "train.steps=7", "train.batch=5", "train.learning_rate=1")
    begun = whole.network.model_copy(update={"weights": "runs/other"})
    config = style_config(whole.model_copy(update={"network": begun}))
    train_config = config.train
    assert config.network.weights is None
    assert (train_config.ema, train_config.clip_norm, train_config.weight_decay) == (None, None, 0.0)
    assert (train_config.steps, train_config.batch, train_config.learning_rate) == (6, 2, 2e-4)
    assert config.output == str(scene / "run" / "style")
    assert (config.data.cache_mib, config.data.resident_mib) == (256, 512)
    entries = [*config.data.train, *config.data.target]
    assert [entry.labels for entry in entries] == [None, None]


def test_places_are_drawn_for_each_image_by_itself(scene: Path) -> None:
    task = task_of(config_of(scene, "style.patches=100"))
    given = torch.zeros(4, 1, 32, 32)
    places = task._places(given, 3)
    assert [tuple(layer.shape) for layer in places] == [(4, 100)] * 3 + [(4, 64)] * 2
    for layer, count in zip(places, task.generator.cut.places(32, 32), strict=True):
        assert all(len(row.unique()) == len(row) and int(row.max()) < count for row in layer)
        assert len({tuple(row.tolist()) for row in layer}) == 4
    second = task_of(config_of(scene, "style.patches=100"), Ranks(1, 2))._places(given[:2], 3)
    for layer, part in zip(places, second, strict=True):
        assert torch.equal(layer[1::2], part)
    assert not torch.equal(places[0], task._places(given, 4)[0])


@pytest.mark.long
def test_a_broken_run_goes_on_as_if_it_had_not_been(scene: Path) -> None:
    whole = train(config_of(scene), ranks=Ranks(), quiet=True)
    config = config_of(scene, f"output={scene / 'other'}")
    run = train(config, ranks=Ranks(), quiet=True)
    Path(run.checkpoints()[-1][1]).unlink()
    assert run.checkpoints()[-1][0] == 3
    train(config, ranks=Ranks(), quiet=True, resume=True)
    one, two = whole.load(), run.load()
    assert one["step"] == two["step"] == 6
    for name, value in one["network"].items():
        assert torch.equal(value, two["network"][name]), name
    logs = [Path(folder.file("log.jsonl")).read_text() for folder in (whole, run)]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) == 6
    with pytest.raises(InputError, match=r"already holds a run at step 6: add --resume"):
        train(config, ranks=Ranks(), quiet=True)
    changed = config_of(scene, f"output={scene / 'other'}", "style.nce_weight=2")
    with pytest.raises(InputError, match=r"domain_adaptation\.style\.nce_weight = 1\.0, now it is 2\.0"):
        train(changed, ranks=Ranks(), quiet=True, resume=True)
    before = Path(run.file("style.json")).read_text()
    train(config, ranks=Ranks(), quiet=True, resume=True)  # nothing is left to do
    assert json.loads(Path(run.file("style.json")).read_text()) == json.loads(before)


def test_a_generator_of_one_grey_is_told(scene: Path) -> None:
    task = task_of(config_of(scene))
    with torch.no_grad():
        for parameter in task.generator.cut.model[-2].parameters():
            parameter.zero_()
    assert task.validate()["contrast"] == 0
    assert task.looked is not None
    assert "the generator has collapsed" in task.looked.facts.trouble()[0]


@pytest.mark.parametrize("axis", ["z", "y"])
def test_the_generator_goes_before_any_network(scene: Path, axis: str) -> None:
    """Windows in the range of normalised images, slice by slice."""
    config = config_of(scene, f"data.slice_axis={axis}")
    generator = build_generator(config, 1)
    assert not generator.training
    window = torch.randn(2, 1, 9, 10, 11)
    restyled = nn.Sequential(generator, nn.Conv3d(1, 3, 1))(window)
    assert restyled.shape == (2, 3, 9, 10, 11)
    number = "zyx".index(axis) + 2
    slice_of = window.narrow(number, 4, 1)
    torch.testing.assert_close(
        generator(slice_of), generator(window).narrow(number, 4, 1), rtol=1e-4, atol=1e-5
    )
    generator.cut.model = nn.Sequential(*[nn.Identity()] * 31)
    with torch.no_grad():
        generator.middle.fill_(3)
        generator.reach.fill_(0.5)
    torch.testing.assert_close(generator(window), window)


def test_the_range_is_that_of_the_source(scene: Path) -> None:
    """In it the 1st and 99th percentile lie at -0.8 and 0.8."""
    for mode in ("range", "zscore", "percentile"):
        task = task_of(config_of(scene, f"data.normalize={mode}"))
        source = np.load(scene / "source.npy").astype(np.float64)
        low, high = np.percentile(source, [1, 99])
        shift, scale = {
            "range": (0, 255),
            "zscore": (source.mean(), source.std()),
            "percentile": (low, high - low),
        }[mode]
        ends = torch.tensor([(low - shift) / scale, (high - shift) / scale], dtype=torch.float32)
        found = task.generator.slices(ends.view(1, 1, 1, 1, 2)).flatten()
        torch.testing.assert_close(found, torch.tensor([-0.8, 0.8]), rtol=1e-4, atol=1e-4)


def test_the_range_spans_all_volumes_of_the_source(scene: Path) -> None:
    both = task_of(config_of(scene, "data.train=[{raw: source.npy}, {raw: target.npy}]"))
    ends = (
        np.array([np.percentile(np.load(scene / f"{name}.npy"), [1, 99]) for name in ("source", "target")])
        / 255
    )
    assert ends[0, 0] > ends[1, 0]  # the one that is brighter has the higher end
    assert ends[0, 1] > ends[1, 1]
    ends = torch.tensor([ends[1, 0], ends[0, 1]], dtype=torch.float32).view(1, 1, 1, 1, 2)
    found = both.generator.slices(ends).flatten()
    torch.testing.assert_close(found, torch.tensor([-0.8, 0.8]), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_is_refused(scene: Path) -> None:
    with pytest.raises(InputError, match=r"strategy style needs data\.target"):
        train(config_of(scene, "data.target=[]"), ranks=Ranks())
    with pytest.raises(
        InputError, match=r"domain_adaptation\.style\.batch is shared out.*processes, 2, got 3"
    ):
        task_of(config_of(scene, "style.batch=3"), Ranks(0, 2))
    with pytest.raises(
        InputError, match=r"style\.patch\.0: input should be greater than or equal to 32, got 31"
    ):
        config_of(scene, "style.patch=[31, 32]")
    with pytest.raises(InputError, match=r"style\.nce_weight: input should be greater than 0"):
        config_of(scene, "style.nce_weight=0")
    np.save(scene / "colour.npy", np.zeros((3, 3, 64, 64), np.uint8))
    with pytest.raises(InputError, match="target volumes must agree in channels"):
        train(config_of(scene, "data.target=[{raw: colour.npy, axes: czyx}]"), ranks=Ranks())
