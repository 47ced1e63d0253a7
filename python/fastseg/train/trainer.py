# SPDX-License-Identifier: BSD-3-Clause
"""The training loop. A method says what a batch and a loss are; this says when, how fast and how safely."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.errors import InputError, Interrupted
from fastseg.nets.batch_norm import synchronise_batch_norm
from fastseg.train.average import WeightAverage
from fastseg.train.best import Best, Chooser
from fastseg.train.checkpoint import RunFolder, load_checkpoint
from fastseg.train.config import TrainConfig
from fastseg.train.interruption import StopRequest, listening
from fastseg.train.log import Progress, TrainingLog
from fastseg.train.randomness import random_states, restore_random, seed_random
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from fastseg.train.task import Task

# Losses stay on the device for so many steps before they are read back together.
_STEPS_BETWEEN_READBACKS = 10

# What torch warns of without need.
_KNOWN = (
    # The weights of a 1x1x1 convolution are contiguous and channels last at once.
    "Grad strides do not match bucket view strides",
    # The schedule goes on in a step that the gradient scaler or the task skips.
    r"Detected call of `lr_scheduler.step\(\)` before",
)


def fit(
    task: Task,
    settings: TrainConfig,
    run: RunFolder,
    ranks: Ranks,
    *,
    chooser: Chooser | None = None,
    resume: bool = False,
    extra: dict[str, Any] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """Train ``task.network`` for ``settings.steps`` steps, or until validation brings no more gain.

    chooser: what says which checkpoint is the best, and when there is no more gain, instead of validation, which then
    is for the record alone.

    Every process of ``ranks`` calls this with its own task; the first one writes. ``extra`` is kept in every
    checkpoint, ``seed`` seeds the global random generators, of each process differently. With ``resume`` all
    state is that of the newest checkpoint, so that the steps after it give the numbers they would have given
    without the break: to the bit with the same processes and threads, within rounding with others, as far as
    the task draws its random numbers per step and place.

    Raises Interrupted, on all processes at the same step and after a checkpoint, when one of them gets SIGTERM or
    SIGUSR1, and InputError when the loss is no longer finite.
    """
    training = _Training(task, settings, run, ranks, chooser, extra or {}, quiet)
    training.begin(resume, seed)
    with warnings.catch_warnings():
        for message in _KNOWN:
            warnings.filterwarnings("ignore", message)
        training.go_on()


class _Training:
    def __init__(
        self,
        task: Task,
        settings: TrainConfig,
        run: RunFolder,
        ranks: Ranks,
        chooser: Chooser | None,
        extra: dict[str, Any],
        quiet: bool,
    ) -> None:
        self.task, self.settings, self.run, self.ranks, self.extra = task, settings, run, ranks, extra
        self.chooser = chooser
        self.quiet, self.first, self.network = quiet, 0, task.network
        if ranks.count > 1:
            synchronise_batch_norm(self.network, ranks.device)
        if settings.compile:
            parts = self.network.children() if isinstance(self.network, nn.ModuleDict) else [self.network]
            for part in parts:
                part.compile(dynamic=False)
        self.stepper = Stepper(task.updates(settings), settings, ranks, task)
        self.average = WeightAverage(self.network, settings.ema) if settings.ema is not None else None
        gain = settings.stop.gain if settings.stop is not None else 0.0
        self.measure = chooser.measure if chooser is not None else settings.measure
        lower = chooser.lower_is_better if chooser is not None else self.measure in task.lower_is_better
        self.best = Best(lower=lower, gain=gain)
        self.waiting: list[tuple[int, dict[str, Tensor | float]]] = []

    def begin(self, resume: bool, seed: int) -> None:
        """At the newest checkpoint, which the first process names: others may see an older folder over a network."""
        found = self.run.checkpoints() if resume else []
        path = self.ranks.from_first(found[-1][1] if found else None)
        if path is None:
            seed_random(seed, 0, self.ranks.rank)
            if self.ranks.first and os.path.exists(self.run.best):
                os.remove(self.run.best)
            return
        state = load_checkpoint(path, self.ranks.device)
        self.network.load_state_dict(state["network"])
        self.stepper.load_state_dict(state)
        self.best.load_state_dict(state["best"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.first = state["step"]
        if len(state["random"]) == self.ranks.count:
            restore_random(state["random"][self.ranks.rank], self.ranks.device)
        else:
            seed_random(seed, self.first, self.ranks.rank)

    def go_on(self) -> None:
        settings, first = self.settings, self.ranks.first
        if self._gains_nothing() or (self.first > 0 and self.task.finished(self.first)):
            return
        self.log = TrainingLog(self.run, self.first) if first else None
        self.progress = Progress(self.first, settings.steps, settings.batch, self.quiet or not first)
        if first and not self.quiet:
            self.stepper.tell = self.progress.tell
        self.network.train()
        try:
            with listening() as request:
                self._steps(request)
        finally:
            self.stepper.graphed = None  # a circle, in which the task's files would stay open
            self.progress.close()
            if self.log is not None:
                self.log.close()

    def _steps(self, request: StopRequest) -> None:
        settings = self.settings
        for step, batch in enumerate(self.task.batches(self.first, settings.steps), self.first):
            self.waiting.append((step, self.stepper.step(batch, step)))
            if self.average is not None:
                self.average.update()
            done = step + 1
            last = self.task.finished(done) or done == settings.steps
            asked = self.ranks.any(request.name is not None)
            validating = last or done % settings.validate_every == 0
            choosing = self.chooser is not None and (last or self.chooser.is_look(done))
            saving = last or asked or done % settings.checkpoint_every == 0
            if validating or choosing or saving or len(self.waiting) == _STEPS_BETWEEN_READBACKS:
                self._read_back()
            if validating or choosing:
                self._validate(done, validating, choosing)
            ended = last or self._gains_nothing()
            if saving or ended:
                self._checkpoint(done)
            if ended:
                return
            if asked:
                raise Interrupted(
                    f"asked to stop by {request.name or 'a signal to another process'}; the checkpoint of step "
                    f"{done} is written, --resume goes on"
                )

    def _read_back(self) -> None:
        """Log the steps taken since the last time, with the mean over processes."""
        rows = _on_host([values for _, values in self.waiting])
        steps = [step for step, _ in self.waiting]
        self.waiting.clear()
        if not rows:
            return
        if self.ranks.count > 1:
            flat = torch.tensor([value for row in rows for value in row.values()], dtype=torch.float64)
            means = iter((self.ranks.sum(flat) / self.ranks.count).tolist())
            rows = [{name: next(means) for name in row} for row in rows]
        rows = [{"step": step, **row} for step, row in zip(steps, rows, strict=True)]
        bad = next((row for row in rows if not math.isfinite(row["loss"])), None)
        if self.log is not None:
            self.log.write([row for row in rows if bad is None or row["step"] < bad["step"]])
        if bad is not None:
            raise InputError(
                f"the loss became {bad['loss']} at step {bad['step']}: lower train.learning_rate "
                f"({self.settings.learning_rate}) or set train.precision: fp32; earlier checkpoints are kept"
            )
        self.progress.show(steps[-1] + 1, rows[-1]["loss"])

    def _validate(self, done: int, validating: bool, choosing: bool) -> None:
        self.network.eval()
        with self.average.in_place() if self.average is not None else contextlib.nullcontext():
            measures = self.task.validate() if validating else {}
            if self.chooser is not None and choosing:
                measures = {**measures, **self.chooser.measures()}
        self.network.train()
        if not measures:
            return
        if self.chooser is None and self.measure not in measures:
            raise InputError(f"train.measure must be one of {', '.join(measures)}, got {self.measure!r}")
        is_best = self.measure in measures and self.best.take(measures[self.measure], done)
        if self.log is not None:
            self.log.write_validation({"step": done, **measures})
            if is_best:
                decided = {"measure": self.measure, "lower_is_better": self.best.lower}
                self.run.save_best({**self._weights(done), "measures": measures, **decided})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in measures.items())
        self.progress.tell(
            f"step {done}/{self.settings.steps}  validation {shown}{'  (best)' if is_best else ''}"
        )

    def _gains_nothing(self) -> bool:
        stop = self.settings.stop
        return stop is not None and stop.patience is not None and self.best.without_gain >= stop.patience

    def _checkpoint(self, done: int) -> None:
        randomness = self.ranks.gather(random_states(self.ranks.device))
        if self.log is not None:
            self.log.sync()
            self.run.save(
                done,
                {
                    **self._weights(done),
                    **self.stepper.state_dict(),
                    "best": self.best.state_dict(),
                    "random": randomness,
                },
            )

    def _weights(self, done: int) -> dict[str, Any]:
        average = None if self.average is None else self.average.state_dict()
        return {"step": done, "network": self.network.state_dict(), "average": average, **self.extra}


def _on_host(rows: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
    """The rows as numbers: all that is on the device is read at once."""
    values = [value for row in rows for value in row.values() if isinstance(value, Tensor)]
    read = iter(torch.stack([value.double() for value in values]).tolist() if values else [])
    return [
        {name: next(read) if isinstance(value, Tensor) else float(value) for name, value in row.items()}
        for row in rows
    ]
