# SPDX-License-Identifier: BSD-3-Clause
"""Weights of one run as the beginning of another: every tensor that does not come over is named."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from fastseg.errors import InputError
from fastseg.train.checkpoint import RunFolder, load_checkpoint

# What pretraining calls the network that later trainings begin with.
BACKBONE = "backbone."

_MOST_NAMES = 8


@dataclass(frozen=True)
class Loaded:
    """Names of tensors: those that came over, those of the network that the file has not, and of the file alone."""

    source: str
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]

    def describe(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        if self.missing:
            lines.append(f"not in it, begun at random: {_names(self.missing)}")
        if self.unexpected:
            lines.append(f"in it and not used: {_names(self.unexpected)}")
        return "\n  ".join(lines)


def load_weights(network: nn.Module, path: str) -> Loaded:
    """Take over the tensors of a run's newest checkpoint, or of a checkpoint file, that bear a name of the network's.

    Of pretraining they are those of its backbone. InputError where nothing fits, or a tensor of the same name has
    another shape: the network is then another one.
    """
    if os.path.isdir(path):
        state = RunFolder(path).load_for_prediction("newest")["network"]
    elif os.path.exists(path):
        state = load_checkpoint(path)
        state = state.get("network", state)
        if not isinstance(state, dict):
            raise InputError(f"network.weights {path} holds no tensors by name, but a {type(state).__name__}")
    else:
        raise InputError(f"network.weights {path} is no run and no checkpoint: nothing is there")
    state = {str(name): value for name, value in state.items()}
    inner = {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}
    left = [name for name in state if inner and not name.startswith(BACKBONE)]
    state = inner or state
    own = network.state_dict()
    shared = [name for name in own if isinstance(state.get(name), Tensor)]
    if not shared:
        raise InputError(
            f"network.weights {path} holds no tensor of this network, such as {next(iter(own))}; it has "
            f"{_names(state)}"
        )
    for name in shared:
        if own[name].shape != state[name].shape:
            raise InputError(
                f"network.weights {path}: {name} must be {tuple(own[name].shape)}, as network and data.train make it, "
                f"got {tuple(state[name].shape)}"
            )
    network.load_state_dict({name: state[name] for name in shared}, strict=False)
    return Loaded(
        path,
        shared,
        [name for name in own if name not in shared],
        left + [name for name in state if name not in own],
    )


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMES} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more
