# SPDX-License-Identifier: BSD-3-Clause
"""An exponential moving average of a network's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, after every step; buffers are the network's own.

    In the first steps decay is (1 + n) / (10 + n), so that the weights the run began with are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.average = {name: p.detach().clone() for name, p in self._named()}

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        # Under every name that the state dict has, be it the same tensor twice.
        return list(self.network.named_parameters(remove_duplicate=False))

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [p.detach() for _, p in self._named()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network computes with the average."""
        own = {name: p.data for name, p in self._named()}
        try:
            for name, p in self._named():
                p.data = self.average[name]
            yield
        finally:
            for name, p in self._named():
                p.data = own[name]

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
