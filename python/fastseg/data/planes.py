# SPDX-License-Identifier: BSD-3-Clause
"""Files of microscopes that hold several images of channels and slices, read plane by plane by the format's library."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastseg.data.cache import ChunkCache
from fastseg.data.sources import Slices, Source, describe_box, reason
from fastseg.errors import InputError

_CACHE_BYTES = 256 << 20


class PlanesSource(Source):
    """A source whose axes from y on, mostly ``yx`` or ``yxc``, are planes that ``plane`` reads, one thread at a time;
    those read last stay in memory. ``kind`` is the format's name in errors."""

    kind: str

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
        self._cache = ChunkCache(_CACHE_BYTES)

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

    def read(self, slices: Slices) -> np.ndarray:
        leading, within = slices[: -self.within], slices[-self.within :]
        out = np.empty([s.stop - s.start for s in slices], self.dtype)
        for place in np.ndindex(out.shape[: -self.within]):
            index = tuple(s.start + i for s, i in zip(leading, place, strict=True))
            out[place] = self._cache.get(index, lambda i=index: self._read(i))[within]
        return out

    def _read(self, index: tuple[int, ...]) -> np.ndarray:
        try:
            with self.handle() as file, self._reading:
                return np.array(self.plane(file, dict(zip(self.axes, index, strict=False))))
        except InputError:
            raise
        except Exception as error:
            box = describe_box(tuple(slice(i, i + 1) for i in index))
            raise InputError(f"{self.path} cannot be read at {box}: {reason(error)}") from error


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
