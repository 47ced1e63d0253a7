# SPDX-License-Identifier: BSD-3-Clause
"""What a step of each method asks of its device: a bound on launches and allocations, and no wait. docs/launches.md has
the table; the counts do not depend on sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastseg.methods.config_file import load_config
from fastseg.methods.domain_adaptation import restoration as restoration_module
from fastseg.methods.domain_adaptation.style import training as style_module
from fastseg.methods.registry import prepare
from fastseg.train import stepper as train_stepper
from fastseg.train import task as train_task
from fastseg.train.config import Config
from fastseg.train.launches import Count, count
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from fastseg.train.task import Task
from tests.methods import tissue
from tests.methods.domain_adaptation import adaptation
from tests.methods.domain_adaptation.style import styles
from tests.methods.region_contrast import pretraining
from tests.project import make_project
from tests.train.recorded_graphs import RecordedGraphs

FLOAT = ("train.precision=fp32",)
PAGE = Path(__file__).parents[2] / "docs" / "launches.md"


def supervised(folder: Path) -> Task:
    return prepared(load_config(make_project(folder), [*FLOAT]))


def prepared(config: Config) -> Task:
    return prepare(config, Ranks())[2]


def patch_contrast(folder: Path) -> Task:
    return prepared(tissue.config_of(tissue.scene(folder), *FLOAT))


def style(folder: Path) -> Task:
    return styles.task_of(styles.config_of(styles.draw_styles_scene(folder)))


def restoration(folder: Path) -> Task:
    config = adaptation.config_of(
        adaptation.draw_domains(folder), "pretrain", *FLOAT, "domain_adaptation.pretrain.steps=20"
    )
    return adaptation.task_of(config, "pretrain")


def region_contrast(folder: Path) -> Task:
    scene = pretraining.draw_scene(folder)
    return pretraining.task_of(pretraining.config_of(scene, *FLOAT, "train.steps=20"))


METHODS: dict[str, Callable[[Path], Task]] = {
    "supervised": supervised,
    "restoration": restoration,
    "style": style,
    "patch_contrast": patch_contrast,
    "region_contrast": region_contrast,
}


def options(parameters: object, *, capturable: bool = True) -> dict[str, bool]:
    """Of a GPU's optimizers, which count their steps on the device."""
    return {"fused": True, "capturable": True} if capturable else {"fused": True}


def counted(task: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Count]:
    """Of the third step, which finds all that the first made: as it is, and beside the graph that replays the rest."""
    for module in (train_task, style_module, restoration_module):
        monkeypatch.setattr(module, "optimizer_options", options)
    settings = task.config.train
    stepper = Stepper(task.updates(settings), settings, Ranks(), task)
    task.network.train()
    batches = list(task.batches(1, 10))
    for step in (1, 2):
        stepper.step(batches[step - 1], step)
    found = {"eager": count(lambda: stepper.step(batches[2], 3))}
    stand_in = RecordedGraphs()
    monkeypatch.setattr(train_stepper, "graphs_of", lambda device: stand_in)
    stepper.wanted = True
    for step in range(4, 9):
        stepper.step(batches[step - 1], step)
    if stand_in.captures:
        monkeypatch.setattr(stepper.graphed.captured, "replay", lambda: None)  # type: ignore[union-attr]
        beside = count(lambda: stepper.step(batches[8], 9))
        found["graph"] = replace(beside, launches=beside.launches + 1)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_step_asks_no_more_of_its_device_than_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    found = counted(METHODS[method](tmp_path), monkeypatch)
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{method}` |"))
    stated = line.split("|")[2:-1]
    numbers = [found["eager"], *([found["graph"]] if "graph" in found else [])]
    measured = [n for c in numbers for n in (c.launches, c.allocations, c.waits)]
    bounds = [int(cell) for cell in stated if cell.strip() not in ("", "-")]
    assert len(measured) == len(bounds), measured
    # What torch takes for a step may be a little other in another version.
    assert all(
        mine <= 1.05 * bound + 2 if bound else mine == 0 for mine, bound in zip(measured, bounds, strict=True)
    ), measured
