# SPDX-License-Identifier: BSD-3-Clause
"""The page that every run of every method leaves: what it says is what was logged, and it stands by itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from fastseg.report.pictures import outline
from tests.methods.region_contrast.pretraining import draw_scene
from tests.methods.tissue import scene
from tests.project import fastseg, make_project
from tests.report.page import HELD_OUT, SHORT, Page, curves_of, logged, read_page, train

TARGET = "data.target=[{raw: phantoms.h5:/raw, labels: phantoms.h5:/somata, region: {z: [12, 24]}}]"


def table(page: Page) -> dict[str, dict[str, float]]:
    """The results by row, "chosen" and "last", and by measure."""
    names, *rows = re.findall(r"<tr>(.*?)</tr>", re.search(r"<h2>Results.*?</table>", page.source, re.S)[0])
    measures = re.findall(r"<th>(\w+)", names)
    found = {}
    for row in rows:
        label = re.search(r"<th>(\w+)", row)[1]
        found[label] = dict(zip(measures, re.findall(r"<td>(.*?)</td>", row), strict=True))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Supervised, chosen by morphology, with validation volumes and labels of the target."""
    config = make_project(tmp_path_factory.mktemp("page"))
    steps = ["train.steps=28", "train.learning_rate=0.02", "train.precision=fp32", "train.validate_every=6"]
    stop = "train.stop={rule: morphology, every: 1}"
    return train(config, *steps, stop, TARGET, HELD_OUT)


def test_curves_and_table_say_what_was_logged(run: Path) -> None:
    page = read_page(run)
    for title, name, file in (
        ("Training loss", "loss", "log.jsonl"),
        ("Learning rate", "learning_rate", "log.jsonl"),
        ("Validation: dice", "dice", "validation.jsonl"),
        ("Morphology: distance between target and source", "morphology_distance", "validation.jsonl"),
        ("target_solidity", "target_solidity", "validation.jsonl"),
        ("Target against its labels", "target_dice", "validation.jsonl"),
    ):
        rows = logged(run, name, file)
        steps, values = curves_of(page.source, title)[0]
        assert np.allclose(steps, rows[:, 0], atol=0.05), title
        assert np.allclose(values, rows[:, 1], atol=0.01 * np.ptp(rows[:, 1]) + 1e-9), title
    looks = {row["step"]: row for row in map(json.loads, (run / "validation.jsonl").open())}
    best = min(
        (r for r in looks.values() if "morphology_distance" in r), key=lambda r: r["morphology_distance"]
    )
    assert best["step"] == 4  # so that it is not the last, here
    assert f"chosen: {best['step']}" in page.text
    assert (
        f"step {best['step']}: the lowest morphology_distance, {best['morphology_distance']:.6g}" in page.text
    )
    found = table(page)
    for label, row in (("chosen", best), ("last", looks[28])):
        assert {k: v for k, v in found[label].items() if v != "&ndash;"} == {
            k: f"{v:.4g}" for k, v in row.items() if k != "step"
        }
    source = json.loads((run / "source_morphology.json").read_text())["values"][0]
    assert f"source {source:.4g}" in page.text
    assert page.text.count("for the record") == 3  # above two columns, and beside the curves
    assert "decided nothing" in page.text


def test_what_was_run_and_its_pictures(run: Path) -> None:
    page = read_page(run)
    stated = page.text
    for fact in (
        "method supervised",
        "seed 0",
        "steps 28 of 28, batch 2",
        "state finished",
        "fastseg 0.",
        "cpu (",
    ):
        assert fact in stated, fact
    assert (
        "phantoms.h5:/raw, labels phantoms.h5:/somata, annotated axis z every 4, region z [0, 16]" in stated
    )
    pictures = re.findall(
        r"(\w+): phantoms.h5:/raw, z (\d+), y 0 to 63, x 0 to 63\. Dice here [\d.]+", stated
    )
    assert [part for part, _ in pictures] == ["training"] * 2 + ["validation"] * 2 + ["target"] * 2
    assert all(int(z) % 4 == 0 and int(z) < 16 for part, z in pictures if part == "training")  # as annotated
    # A picture is stored once; raw data, and the same again below both outlines.
    assert len(page.all("use")) == 6
    assert len(page.all("image")) == 6 * 3
    configuration = re.search(r"<details>.*?<pre>(.*?)</pre>", page.source, re.S)[1]
    assert "stop:" in configuration
    assert yaml.safe_load((run / "config.yaml").read_text()) == yaml.safe_load(
        Page(f"<p>{configuration}</p>").words[0]
    )


def test_report_writes_it_again(run: Path) -> None:
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert fastseg("predict", run).returncode == fastseg("evaluate", run).returncode == 0
    done = fastseg("report", run)
    assert (done.returncode, done.stdout) == (0, f"wrote {run}/report.html\n")
    page = read_page(run)
    assert "Test volumes" not in before
    assert "Test volumes" in page.text
    assert not [a for a in page.all("img") if a["alt"] != "test_0.png"]
    assert len(page.source) < 2_000_000
    done = fastseg("report", run.parent)
    assert (done.returncode, "holds no run" in done.stderr) == (0, False)  # its runs are its phases
    done = fastseg("report", run / "checkpoints")
    assert (done.returncode, "holds no run: neither config.yaml nor log.jsonl" in done.stderr) == (2, True)


def test_names_cannot_break_out(tmp_path: Path) -> None:
    folder = tmp_path / '<img src=x onerror="alert(1)">&amp;'
    folder.mkdir()
    config = make_project(folder)
    evil = "phantoms.h5:/<script>alert(1)<script>"
    with h5py.File(folder / "phantoms.h5", "r+") as file:
        file["<script>alert(1)<script>"] = file["raw"][:]
    run = train(config, f"data.train.0.raw={json.dumps(evil)}", f"output={folder}/<b>", *SHORT)
    page = read_page(run)
    assert evil in page.text
    assert "<b>" in page.text
    assert not [a for a in page.all("img") if a.get("src") == "x"]


def test_sparse_2d3d_has_its_phases(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    small = "sparse_2d3d={patch: [32, 32], steps: 4, batch: 2}"
    run = train(config, "method=sparse_2d3d", small, HELD_OUT, *SHORT)
    page = read_page(run)
    assert "method sparse_2d3d" in page.text
    phase = page.source[page.source.index("Phase: slices") :]
    assert "steps</dt><dd>4 of 4" in phase
    rows = logged(run / "slices", "loss")
    assert np.allclose(curves_of(phase, "Training loss")[0][1], rows[:, 1], atol=0.01)
    assert len(page.all("use")) == 4


def test_patch_contrast(tmp_path: Path) -> None:
    config = scene(tmp_path)
    run = train(config, f"output={tmp_path / 'run'}", "train.steps=20")
    page = read_page(run)
    assert [a["alt"] for a in page.all("img")] == ["patch_contrast.png"]
    assert "the highest separation" in page.text
    assert "Validation: separation" in page.text
    for note in json.loads((run / "channels.json").read_text())["notes"]:
        assert note in page.text
    assert len(page.all("use")) == 2
    assert "no labels here" in page.text


def test_region_contrast(tmp_path: Path) -> None:
    draw_scene(tmp_path)
    before = train(tmp_path / "run.yaml", f"output={tmp_path / 'before'}")
    page = read_page(before)
    assert [a["alt"] for a in page.all("img")] == ["regions.png"]
    assert not page.all("use")  # it segments nothing
    for note in json.loads((before / "pretraining.json").read_text())["notes"]:
        assert note in page.text
    finetune = [
        "data.train=[{raw: images/*.png, labels: truth/*.png}]",
        "region_contrast.stage=finetune",
        f"network.weights={before}",
    ]
    page = read_page(train(tmp_path / "run.yaml", f"output={tmp_path / 'after'}", *finetune))
    assert len(page.all("use")) == 2


def test_the_outline_is_the_inner_border() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:5, 1:5] = True
    expected = mask.copy()
    expected[2:4, 2:4] = False
    assert np.array_equal(outline(mask), expected)
    assert not outline(np.ones((4, 4), bool)).any()  # it may go on beyond the picture


def test_figures_that_are_too_large_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    for name, size in (("a<b>", 1_600_000), ("c", 700_000), ("d", 500_000)):
        (run / "figures" / f"{name}.png").write_bytes(bytes(size))
    assert fastseg("report", run).returncode == 0
    page = read_page(run)
    assert [a["alt"] for a in page.all("img")] == ["d.png", "c.png"]
    assert "In figures/, too large for this page: a<b>.png." in page.text
    assert len(page.source) < 2_000_000
