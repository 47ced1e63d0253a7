# SPDX-License-Identifier: BSD-3-Clause
"""The folder of a run, and checkpoints that are either whole or not there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
from typing import Any, Literal

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
        return _require(load_checkpoint(found[-1][1], map_location), found[-1][1], step=int, network=dict)

    def load_config(self) -> dict[str, Any]:
        """The configuration that the newest checkpoint was trained by."""
        return _require(self.load(), self.path, config=dict, channels=int)["config"]

    @property
    def best(self) -> str:
        """The path of the weights that were best in validation, if there was one."""
        return self.file("checkpoints", "best.pt")

    def save_best(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.best, buffer.getbuffer())

    def load_for_prediction(self, which: Literal["best", "newest"]) -> dict[str, Any]:
        """The best weights, or the newest where nothing was validated; with the average in place of the weights,
        under "network", where one was kept."""
        if which == "best" and os.path.exists(self.best):
            state = _require(load_checkpoint(self.best), self.best, step=int, network=dict)
        else:
            state = self.load()
        if state.get("average") is not None:
            state["network"].update(state["average"]["average"])
        return state


def load_checkpoint(path: str, map_location: Any = "cpu") -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        raise InputError(
            f"{path} is no readable checkpoint (without it, the one before is used): "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is no checkpoint: it holds a {type(state).__name__}")
    return state


def _require(state: dict[str, Any], path: str, **expected: type) -> dict[str, Any]:
    for key, kind in expected.items():
        if not isinstance(state.get(key), kind):
            raise InputError(f"{path} is no checkpoint of fastseg: {key} must be there as {kind.__name__}")
    return state


def write_atomically(path: str, content: bytes | memoryview) -> None:
    """Write a file under a temporary name of its own, flush it to disk, then rename it."""
    partial = temporary_name(path)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(os.path.dirname(path) or ".")
    except OSError as error:
        if os.path.exists(partial):
            os.remove(partial)
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def temporary_name(path: str) -> str:
    """A name beside ``path`` that no other writer of it takes."""
    return f"{path}.{secrets.token_hex(4)}.partial"


def read_json(path: str) -> Any:
    """What a JSON file holds; None where it is absent or unreadable."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _flush_folder(path: str) -> None:
    # A rename is on disk only when the folder is; file systems that cannot do this say so.
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
