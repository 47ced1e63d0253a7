# SPDX-License-Identifier: BSD-3-Clause
"""What fastseg check says limits a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fastseg.commands import bench, limits
from fastseg.commands.bench import Rates
from fastseg.commands.check import _limits
from fastseg.commands.limits import Twice, joined, limit, measure_twice
from fastseg.train.launches import Count
from fastseg.train.ranks import Ranks
from fastseg.train.task import Task
from tests.methods.test_launches import METHODS
from tests.project import fastseg, make_project

FITS = Twice(130.0)


@pytest.mark.parametrize(
    ("loader", "model", "twice", "expected"),
    [
        (90.0, 100.0, FITS, "loading"),
        (
            900.0,
            100.0,
            FITS,
            "launches, and what else each step costs: batches of 4 give 130 patches/s in place of 100",
        ),
        (900.0, 100.0, Twice(110.0), "arithmetic: batches of 4 give 110 patches/s"),
        (900.0, 100.0, Twice(None), "memory: batches of 4 do not fit"),
        (900.0, 0.5, None, "arithmetic: a step takes 4 s"),
    ],
)
def test_the_limit_follows_from_what_was_measured(
    loader: float, model: float, twice: Twice | None, expected: str
) -> None:
    rates = Rates(loader, model, min(loader, model), 1, Count(1, 1, 0), None)
    assert limit(rates, twice, 2).startswith(expected)


@pytest.mark.parametrize("method", METHODS)
def test_batches_twice_as_large_are_steps_of_every_method(tmp_path: Path, method: str) -> None:
    task = METHODS[method](tmp_path)
    batches = task.batches(0, 2)
    first, second = next(batches), next(batches)
    both = joined(first, second)
    for one, two, whole in zip(
        *((b if isinstance(b, tuple) else (b,)) for b in (first, second, both)), strict=True
    ):
        assert torch.equal(whole.raw, torch.cat([one.raw, two.raw]))
        assert len(whole.places) == len(whole.voxel_size) == len(whole.raw) == 2 * len(one.raw)
    found = measure_twice(task, task.config, Ranks(), 0.01)
    assert found.model is not None
    assert found.model > 0
    assert found.peak is None


def out_of_memory(batch: object, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def broken(batch: object, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    raise RuntimeError("mistake")


def with_loss(folder: Path, loss: Callable[..., object]) -> Task:
    task = METHODS["supervised"](folder)
    task.loss = loss  # type: ignore[method-assign, assignment]
    return task


def test_what_does_not_fit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = with_loss(tmp_path, out_of_memory)
    assert measure_twice(task, task.config, Ranks(), 0.01) == Twice(None)
    task.loss = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="mistake"):
        measure_twice(task, task.config, Ranks(), 0.01)
    monkeypatch.setattr(limits, "_available_bytes", lambda: 1)
    assert measure_twice(task, task.config, Ranks(), 0.01) == Twice(None)


def test_memory_is_told_by_the_patch() -> None:
    """As on a GPU, of batches of 2 and of 4."""
    rates = Rates(900.0, 100.0, 99.0, 1, Count(1, 1, 0), None)
    lines = _limits(rates, Twice(130.0, 500 << 20), 300 << 20, 2)
    assert lines[1] == "memory of batches of 4: 500 MiB, 100 MiB a patch"
    assert len(_limits(rates, FITS, 0, 2)) == 1


def test_check_says_it(tmp_path: Path) -> None:
    done = fastseg("check", "--seconds", 0.2, make_project(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "\nwhat limits: " in done.stdout


def test_slow_steps_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten seconds each, on a clock of their own: two before the stages, one with loading."""
    seconds = [0.0]
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    task = METHODS["supervised"](tmp_path)
    learn = task.loss

    def slow(batch: object, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        seconds[0] += 10
        return learn(batch, step)

    load = task.batches

    def batches(first: int, last: int) -> Iterator[object]:
        for batch in load(first, last):
            seconds[0] += 0.1
            yield batch

    task.loss, task.batches = slow, batches  # type: ignore[method-assign, assignment]
    rates = bench.measure_pipeline(task, task.config, Ranks(), 3.0)
    assert rates.model == pytest.approx(task.config.train.batch / 10)
    assert 30 <= seconds[0] < 36
