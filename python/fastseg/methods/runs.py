# SPDX-License-Identifier: BSD-3-Clause
"""Runs of a configuration: whether one may go on with what its folder holds, and how one begins."""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from fastseg.errors import InputError
from fastseg.methods.config_file import dump_config
from fastseg.methods.registry import METHODS, method_of
from fastseg.methods.weights import load_weights
from fastseg.train.best import Chooser
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.config import Config, TrainConfig
from fastseg.train.memory import explaining_out_of_memory
from fastseg.train.ranks import Ranks
from fastseg.train.sessions import recorded
from fastseg.train.task import Task
from fastseg.train.trainer import fit

# Keys that may differ between a run and its continuation: they change where or how fast, not what.
_FREE_TO_CHANGE = (
    "output",
    "data.root",
    "data.threads",
    "data.cache_mib",
    "data.resident",
    "data.resident_mib",
    "data.test",
    "train.device",
    "train.compile",
    "train.graph",
    "train.checkpoint_every",
    "predict",
)


@contextlib.contextmanager
def phase_of(
    config: Config,
    ranks: Ranks,
    *,
    resume: bool,
    sizes: Sequence[str] = ("train.batch", "data.patch", "network.width"),
) -> Iterator[RunFolder]:
    """The folder of a run, or of a phase of it, while its task is built and trained.

    InputError where the folder holds another run, and where memory ends, which names ``sizes``, the keys that decide
    how much is needed.
    """
    run = RunFolder(config.output)
    needed = {key: functools.reduce(getattr, key.split("."), config) for key in sizes}
    with explaining_out_of_memory(ranks, needed):
        if ranks.first:
            require_fresh_or_same(config, run, resume)
        yield run


def require_fresh_or_same(config: Config, run: RunFolder, resume: bool) -> None:
    """InputError unless the folder holds no run, or ``resume`` is asked for and the run has this configuration."""
    found = run.checkpoints()
    if not found:
        return
    if not resume:
        raise InputError(
            f"{run.path} already holds a run at step {found[-1][0]}: add --resume to go on with it, "
            "or give another output"
        )
    now, before = _flatten(config.model_dump(mode="json")), _flatten(run.load_config())
    # Nor do the sections of other methods decide anything; their defaults may be those of another release.
    free = (*_FREE_TO_CHANGE, *(f"{name}." for name in METHODS if name != config.method))
    changed = sorted(
        key
        for key in now.keys() | before.keys()
        if now.get(key) != before.get(key) and not key.startswith(free)
    )
    if changed:
        key = changed[0]
        raise InputError(
            f"{run.path} was begun with {key} = {before.get(key)!r}, now it is {now.get(key)!r}: a run goes on "
            "with the configuration it was begun with"
            + (f"; {longer(config)}" if key == "train.steps" else "")
        )


def longer(config: Config) -> str:
    """How a run whose steps are done can be trained for more, its learning rate having fallen to 0."""
    if not method_of(config).learns_labels:
        return "to train longer, begin another run: output=OTHER train.steps=STEPS"
    return (
        "to train longer, begin another run with its weights: output=OTHER "
        f"network.weights={shlex.quote(config.output)} train.steps=STEPS"
    )


def fit_run(
    task: Task,
    config: Config,
    channels: int,
    run: RunFolder,
    ranks: Ranks,
    *,
    settings: TrainConfig | None = None,
    chooser: Chooser | None = None,
    begins: nn.Module | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """``fit`` into the run's folder, with the configuration and all that opening the network again takes.

    channels: of the images. settings: ``config.train`` unless the method changes it. begins: what takes over
    ``network.weights``, unless a checkpoint goes on; by default all of the task's network.
    """
    goes_on = ranks.from_first(bool(resume and run.checkpoints()))
    if config.network.weights is not None and not goes_on:
        loaded = load_weights(task.network if begins is None else begins, config.network.weights)
        if ranks.first and not quiet:
            print(loaded.describe(), flush=True)
    if ranks.first:
        write_atomically(run.file("config.yaml"), dump_config(config).encode())
    extra = {"config": config.model_dump(mode="json"), "channels": channels}
    options: dict[str, Any] = {"resume": resume, "extra": extra, "seed": config.seed, "quiet": quiet}
    with recorded(run, ranks, goes_on=goes_on):
        fit(task, settings or config.train, run, ranks, chooser=chooser, **options)


def tell(phase: str, ranks: Ranks, quiet: bool) -> None:
    """Say which phase of a run begins."""
    if ranks.first and not quiet:
        print(phase, flush=True)


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        items = values.items()
    elif isinstance(values, list) and any(isinstance(v, dict) for v in values):
        items = ((str(i), v) for i, v in enumerate(values))
    else:
        return {prefix[:-1]: values}
    return {key: value for name, child in items for key, value in _flatten(child, f"{prefix}{name}.").items()}
