# SPDX-License-Identifier: BSD-3-Clause
"""A picture that training redraws: ``figures/<name>.png``, and its history in TensorBoard."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from fastseg.train.checkpoint import RunFolder, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LiveFigure:
    def __init__(self, run: RunFolder, name: str, tag: str) -> None:
        self.run, self.name, self.tag = run, name, tag
        self.board: Any = None

    @staticmethod
    def new(width: float, height: float) -> Figure:
        """An empty figure of so many inches, outside any session of pyplot's."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
        FigureCanvasAgg(figure)
        return figure

    def show(self, figure: Figure, step: int) -> None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomically(self.run.file("figures", f"{self.name}.png"), buffer.getvalue())
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.run.file("tensorboard"), purge_step=step)
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        self.board.add_image(self.tag, pixels, step, dataformats="HWC")

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
            self.board = None
