# SPDX-License-Identifier: BSD-3-Clause
"""A stand-in for CUDA graphs on the CPU: it records what torch dispatches, and replays that and no Python.

As with CUDA, a capture computes nothing that stays, a replay works in the memory of the capture, and numbers that the
host gave are those of the capture for ever. What CUDA refuses in a capture is refused: waiting for the device, values
of the host that go to it, random numbers of another generator. What CUDA would silently get wrong is refused too:
memory that is elsewhere by the time of a replay, and random numbers that Python drew.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastseg.train.launches import in_parts, waits

_FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray}
_TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}


class RecordedGraphs:
    """What ``fastseg.train.graph.CudaGraphs`` is on a GPU."""

    def __init__(self) -> None:
        self.captures, self.replays = 0, 0
        self.memory: int | None = None  # tensors that a capture may make

    def warm_up(self, run: Callable[[], Any]) -> Any:
        return run()

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        recording = _Recording(self.memory)
        drawn = torch.get_rng_state()
        python, numpy = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        try:
            with _Refusing(), recording:
                result = run()
        finally:
            recording.restore()
            torch.set_rng_state(drawn)
        if random.getstate() != python or np.random.get_state()[1].tolist() != numpy:  # noqa: NPY002
            raise RuntimeError("Python drew random numbers, which a replay would repeat")
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            recording.replay()

        return replay, result


class _Refusing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FROM_HOST or func in _TO_HOST:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.__name__}")
        return func(*args, **(kwargs or {}))


class _Recording(TorchDispatchMode):
    def __init__(self, memory: int | None) -> None:
        super().__init__()
        self.memory = memory
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: set[int] = set()  # storages of the capture's own
        self.kept: list[Tensor] = []  # so that none is made again at the same place
        self.outside: list[tuple[Tensor, int]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = in_parts(self, func, args, kwargs)
        if made is not NotImplemented:
            return made
        if waits(func, args, kwargs):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        if kwargs.get("generator") is not None:
            raise RuntimeError("a generator must be registered with the graph")
        inputs = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            place = tensor.untyped_storage().data_ptr()
            if place not in self.made:
                self.outside.append((tensor, tensor.data_ptr()))
                if (
                    place not in self.before
                ):  # not all ops say what they change, as batch norm of its statistics
                    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                    self.before[place] = (whole, whole.clone())
        result = func(*args, **kwargs)
        fresh: list[Tensor] = []
        if not any(r.alias_info for r in func._schema.returns):
            fresh = [leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor)]
            self.made |= {tensor.untyped_storage().data_ptr() for tensor in fresh}
            if self.memory is not None and len(self.made) > self.memory:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.kept += fresh
        self.calls.append((func, args, kwargs, fresh))
        return result

    # What was made in inference mode may be written to in that alone, and other tensors may there too.
    @torch.inference_mode()
    def restore(self) -> None:
        for whole, before in self.before.values():
            whole.copy_(before)

    @torch.inference_mode()
    def replay(self) -> None:
        for tensor, place in self.outside:
            if tensor.data_ptr() != place:
                raise RuntimeError("memory that the graph works on is elsewhere by now")
        for func, args, kwargs, fresh in self.calls:
            result = func(*args, **kwargs)
            if fresh:
                outputs = [leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor)]
                for mine, new in zip(fresh, outputs, strict=True):
                    mine.copy_(new)
