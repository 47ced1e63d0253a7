# SPDX-License-Identifier: BSD-3-Clause
"""Files of microscopes that hold several images of channels and slices, read plane by plane by the format's library."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastseg.data.chunks import ChunkedSource
from fastseg.data.native_codecs import ChunkLayout
from fastseg.data.sources import reason
from fastseg.errors import InputError


class PlanesSource(ChunkedSource):
    """A source whose axes from y on, mostly ``yx`` or ``yxc``, are planes that ``plane`` reads, one thread at a time;
    those read last stay in memory. ``kind`` is the format's name in errors."""

    kind: str
    cache_bytes = 256 << 20

    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = self.path = path
        try:
            with self.handle() as file:
                self.describe(file)
        except InputError:
            raise
        except Exception as error:  # damaged files raise whatever the library stumbles over
            raise InputError(
                f"{path} cannot be opened as {self.kind}: {reason(error)} (docs/volumes.md lists formats)"
            ) from error
        self.within = len(self.axes) - self.axes.index("y")
        self.chunks = (1,) * (len(self.shape) - self.within) + self.shape[-self.within :]
        self.stored = ChunkLayout(path, self.dtype, self.chunks)

    def after_fork(self) -> None:
        super().after_fork()
        self._reading = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_reading"}

    def describe(self, file: Any) -> None:
        """Set shape, axes, dtype and what else the file states."""
        raise NotImplementedError

    def plane(self, file: Any, index: dict[str, int]) -> np.ndarray:
        """The plane at ``index``, a number for each axis before y."""
        raise NotImplementedError

    def fetch(self, index: tuple[int, ...]) -> np.ndarray:
        leading = len(self.shape) - self.within
        with self.handle() as file, self._reading:
            plane = np.array(self.plane(file, dict(zip(self.axes, index[:leading], strict=False))))
        return plane[(None,) * leading]


def chosen(path: str, wanted: str | None, names: Sequence[str]) -> int:
    """Which of the images of a file: by name, or by number from 0; the only one where nothing is said."""
    text = (wanted or "").strip("/")
    if text in names:
        return names.index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    if not text and len(names) == 1:
        return 0
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    wrong = f"no image {text!r}" if text else "several images"
    raise InputError(f"{path} holds {wrong}: name one as {path}:/0 or by its name, of {listed or 'none'}")
