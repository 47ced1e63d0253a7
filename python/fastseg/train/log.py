# SPDX-License-Identifier: BSD-3-Clause
"""What a training run tells: JSON lines for programs, TensorBoard for curves, a progress line for people."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from fastseg.errors import InputError
from fastseg.train.checkpoint import RunFolder, write_atomically

_SECONDS_BETWEEN_LINES = 10.0


class TrainingLog:
    """One row per step, written in groups so that the device is not asked for a number at every step."""

    def __init__(self, run: RunFolder, first_step: int) -> None:
        """Rows from ``first_step`` on, left by a run that died after its last checkpoint, are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.path = run.file("log.jsonl")
        kept = []
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as file:
                kept = [
                    line for line in file if line.endswith("\n") and json.loads(line)["step"] < first_step
                ]
        write_atomically(self.path, "".join(kept).encode())
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self.board = SummaryWriter(run.file("tensorboard"), purge_step=first_step)

    def write(self, rows: list[dict[str, Any]]) -> None:
        try:
            self.file.writelines(json.dumps(row) + "\n" for row in rows)
            self.file.flush()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(f"train/{name}", value, row["step"])

    def close(self) -> None:
        self.file.close()
        self.board.close()


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

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
