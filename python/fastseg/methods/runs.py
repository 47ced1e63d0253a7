# SPDX-License-Identifier: BSD-3-Clause
"""Whether a configuration may go on with the run that its output folder holds."""

from __future__ import annotations

from typing import Any

from fastseg.errors import InputError
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import METHOD_SECTIONS, Config

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
    "train.checkpoint_every",
    "predict",
)


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
    now, before = _flatten(config.model_dump(mode="json")), _flatten(run.load()["config"])
    # Nor do the sections of other methods decide anything; their defaults may be those of another release.
    free = (*_FREE_TO_CHANGE, *(f"{name}." for name in METHOD_SECTIONS if name != config.method))
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
        )


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        items = values.items()
    elif isinstance(values, list) and any(isinstance(v, dict) for v in values):
        items = ((str(i), v) for i, v in enumerate(values))
    else:
        return {prefix[:-1]: values}
    return {key: value for name, child in items for key, value in _flatten(child, f"{prefix}{name}.").items()}
