# SPDX-License-Identifier: BSD-3-Clause
"""Work on a GPU that is captured once and replayed: a launch in the place of hundreds.

A CUDA graph repeats kernels and not Python: on the memory that they were captured with, with the numbers that the host
gave them then. So a function is captured only when its inputs have been alike for a few calls, is replayed for inputs
that are still alike, and runs as it is for all others, such as a last batch that is not full.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

# Calls with like inputs before a capture: the first make what later ones find, as an optimizer's state and the choices
# and workspaces of libraries, which a graph must neither allocate nor wait for.
WARM_UP = 3

# More captures than this mean that inputs keep changing: each costs more than it saves.
_MOST_CAPTURES = 8

# Calls without a graph after which to say that there is none yet.
_PATIENCE = 50


class Graphs(Protocol):
    """What is asked of a device; the tests have a stand-in that refuses what CUDA refuses."""

    def warm_up(self, run: Callable[[], Any]) -> Any:
        """What ``run`` returns, run where it will be captured."""

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What replays ``run``, which has not happened yet, and what it returned, filled in by each replay.
        RuntimeError where it cannot be captured."""


class CudaGraphs:
    """The graphs of a GPU, captured on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def warm_up(self, run: Callable[[], Any]) -> Any:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = run()
        current.wait_stream(self.stream)
        return result

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        graph = torch.cuda.CUDAGraph()
        # The outer stream is restored whatever happens: a capture that fails leaves its own behind. Other threads, such
        # as those that read patches, may do what a capture may not.
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            result = run()
        return graph.replay, result


def graphs_of(device: torch.device) -> Graphs | str:
    """The graphs of a device, or why it has none."""
    if device.type != "cuda":
        return f"{device.type} has no CUDA graphs"
    if torch.is_anomaly_enabled():
        return "torch.autograd.detect_anomaly looks at every value"
    if os.environ.get("CUDA_LAUNCH_BLOCKING", "0") != "0":
        return "CUDA_LAUNCH_BLOCKING waits for every kernel"
    return CudaGraphs(device)


@dataclass
class _Captured:
    key: Any
    static: list[Tensor]
    replay: Callable[[], None]
    result: Any


class Graphed:
    """A function of nested tuples, lists and dicts of tensors and constants, with results of the same kind.

    What it computes must depend on nothing but its inputs and the tensors that it keeps, it must not wait for the
    device, and random numbers must be of torch's generator of the device. Constants are part of what is captured: with
    others it runs as it is. The next call writes over the results.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        graphs: Graphs | str,
        *,
        kept: Callable[[], Iterable[Tensor]],
        tell: Callable[[str], None],
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        """graphs: or why there are none. kept: the tensors that the function keeps, and whose memory may change.
        tell: takes the line that says why there is no graph. undo: of what is left when a capture breaks off."""
        self.function, self.graphs, self.kept, self.tell, self.undo = function, graphs, kept, tell, undo
        self.captures, self.eager = 0, 0
        self.told = False
        self.forget()

    def forget(self) -> None:
        """Begin anew, as what the function keeps is elsewhere now."""
        self.captured: _Captured | None = None
        self.last, self.alike = None, 0

    def give_up(self, reason: str) -> None:
        """Run as it is from here on, without the memory of a graph."""
        self.forget()
        self._say(reason)

    def __call__(self, inputs: Any) -> Any:
        if isinstance(self.graphs, str):
            self._say(self.graphs)
            return self.function(inputs)
        leaves, spec = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (spec, [_kind(leaf) for leaf in leaves], [tensor.data_ptr() for tensor in self.kept()])
        if self.captured is not None and key == self.captured.key:
            torch._foreach_copy_(self.captured.static, tensors)
            self.captured.replay()
            return self.captured.result
        self.alike = self.alike + 1 if key == self.last else 1
        self.last = key
        if self.alike > WARM_UP:
            return self._capture(inputs, leaves, spec, key, self.graphs)
        self.eager += 1
        if self.eager == _PATIENCE and self.captures == 0:
            self._say(f"its inputs have not been alike for {WARM_UP + 1} steps on end", for_good=False)
        return self.graphs.warm_up(lambda: self.function(inputs))

    def _capture(self, inputs: Any, leaves: list[Any], spec: Any, key: Any, graphs: Graphs) -> Any:
        self.captured = None  # its memory goes back first
        self.captures += 1
        if self.captures > _MOST_CAPTURES:
            self._say("its inputs keep changing")
            return self.function(inputs)
        fixed = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        static = [leaf for leaf in fixed if isinstance(leaf, Tensor)]
        try:
            replay, result = graphs.capture(lambda: self.function(tree_unflatten(fixed, spec)))
        except RuntimeError as error:  # out of memory is one
            reason = (
                "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error).split("\n")[0]
            )
            del fixed, static
            self.undo()
            self._say(f"the capture failed: {reason}")
            return self.function(inputs)
        self.captured = _Captured(key, static, replay, result)
        replay()
        return result

    def _say(self, reason: str, for_good: bool = True) -> None:
        if for_good:
            self.graphs = reason
        if not self.told:
            self.tell(reason)
        self.told = True


def _kind(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
