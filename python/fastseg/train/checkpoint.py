# SPDX-License-Identifier: BSD-3-Clause
"""The folder of a run, and checkpoints that are either whole or not there."""

from __future__ import annotations

import glob
import io
import os
import re
from typing import Any

import torch

from fastseg.errors import InputError

# The newest and the one before it: a checkpoint is deleted only when two later ones are on disk.
_KEPT = 2


class RunFolder:
    """``config.yaml``, ``log.jsonl``, ``checkpoints/``, ``predictions/`` and ``figures/`` of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def file(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def checkpoints(self) -> list[tuple[int, str]]:
        """(step, path) of the checkpoints there are, oldest first."""
        folder = self.file("checkpoints")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        found = ((re.fullmatch(r"step_(\d+)\.pt", name), name) for name in names)
        return sorted((int(match[1]), os.path.join(folder, name)) for match, name in found if match)

    def save(self, step: int, state: dict[str, Any]) -> str:
        """Write the checkpoint of ``step``; earlier ones stay untouched if the disk is full."""
        for left_by_a_kill in glob.glob(os.path.join(glob.escape(self.file("checkpoints")), "*.partial")):
            os.remove(left_by_a_kill)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.file("checkpoints", f"step_{step:08d}.pt")
        write_atomically(path, buffer.getbuffer())
        for _, old in self.checkpoints()[:-_KEPT]:
            os.remove(old)
        return path

    def load(self, map_location: Any = "cpu") -> dict[str, Any]:
        """The newest checkpoint. InputError if the run has none or it is unreadable."""
        found = self.checkpoints()
        if not found:
            raise InputError(f"{self.path} holds no checkpoint: run fastseg train first")
        return load_checkpoint(found[-1][1], map_location)


def load_checkpoint(path: str, map_location: Any = "cpu") -> dict[str, Any]:
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        raise InputError(f"{path} is no readable checkpoint: {' '.join(str(error).split())[:200]}") from error


def write_atomically(path: str, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, flush it to disk, then rename it."""
    partial = path + ".partial"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if os.path.exists(partial):
            os.remove(partial)
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
