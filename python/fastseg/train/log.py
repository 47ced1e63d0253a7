# SPDX-License-Identifier: BSD-3-Clause
"""What a training run tells: JSON lines for programs, TensorBoard for curves, a progress line for people."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from fastseg.errors import InputError
from fastseg.train.checkpoint import RunFolder, write_atomically

_SECONDS_BETWEEN_LINES = 10.0


class TrainingLog:
    """``log.jsonl``, a row per step, and ``validation.jsonl``, a row per validation; the same as curves.

    Rows are written in groups, so that the device is not asked for a number at every step.
    """

    def __init__(self, run: RunFolder, first_step: int) -> None:
        """Rows of steps that the checkpoint at ``first_step`` does not hold, left by a run that died, are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.steps = _Rows(run.file("log.jsonl"), lambda step: step < first_step)
        # A row of validation bears the number of steps done, as checkpoints do.
        self.validations = _Rows(run.file("validation.jsonl"), lambda step: step <= first_step)
        self.board = SummaryWriter(run.file("tensorboard"), purge_step=first_step)

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.steps.add(rows)
        self._draw("train", rows)

    def write_validation(self, row: dict[str, Any]) -> None:
        self.validations.add([row])
        self._draw("validation", [row])

    def sync(self) -> None:
        """Put on disk what was written, before a checkpoint says that it is there."""
        for rows in (self.steps, self.validations):
            os.fsync(rows.file.fileno())

    def close(self) -> None:
        for rows in (self.steps, self.validations):
            rows.file.close()
        self.board.close()

    def _draw(self, group: str, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(f"{group}/{name}", value, row["step"])


class _Rows:
    """A file of JSON lines that begins with those it had of steps to keep."""

    def __init__(self, path: str, keep: Callable[[int], bool]) -> None:
        kept = []
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                kept = [line for line in file if line.endswith("\n") and keep(json.loads(line)["step"])]
        write_atomically(path, "".join(kept).encode())
        self.path = path
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by TrainingLog.close()

    def add(self, rows: list[dict[str, Any]]) -> None:
        try:
            self.file.writelines(_json(row) + "\n" for row in rows)
            self.file.flush()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error


def _json(row: dict[str, Any]) -> str:
    # JSON knows neither infinity nor NaN, as of the gradient in a step that float16 skips.
    return json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()})


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere: loss, patches/s, time left."""

    def __init__(self, first_step: int, steps: int, batch: int, quiet: bool = False) -> None:
        self.first, self.steps, self.batch = first_step, steps, batch
        self.begin = self.last_line = time.monotonic()
        self.quiet = quiet
        self.bar: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} patches/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(
                "train", total=steps, completed=first_step, loss=float("nan"), rate=0.0
            )
            self.bar.start()

    def show(self, done: int, loss: float) -> None:
        now = time.monotonic()
        rate = (done - self.first) / max(now - self.begin, 1e-9)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, loss=loss, rate=rate * self.batch)
        elif not self.quiet and (now - self.last_line > _SECONDS_BETWEEN_LINES or done == self.steps):
            self.last_line = now
            left = (self.steps - done) / rate
            print(
                f"step {done}/{self.steps}  loss {loss:.4f}  {rate * self.batch:.1f} patches/s  "
                f"{left // 60:.0f}:{left % 60:02.0f} left",
                file=sys.stderr,
                flush=True,
            )

    def tell(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
