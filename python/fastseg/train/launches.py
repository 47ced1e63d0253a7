# SPDX-License-Identifier: BSD-3-Clause
"""What a piece of work asks of its device: launches, allocations and waits, counted as torch dispatches them.

The count is the same on any device, as far as torch takes the same way on it: it needs no GPU. An op counts as one
launch, which is a kernel or two on a GPU; a fused or foreach op over all weights counts as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Their sizes or results are values on the device, which the host waits for.
_WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::_unique",
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",
    "aten::bincount",
}

# Those that torch does not dispatch for a tensor that is on the CPU already.
_TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}

_NO_LAUNCH = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::lift_fresh", "aten::detach")


def waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the host waits for the device in an op."""
    name = func._schema.name
    if name in _WAITING or f"{name}.{func._schema.overload_name}" in _WAITING:
        return True
    if name in ("aten::index", "aten::index_put", "aten::index_put_"):
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if name == "aten::_to_copy":
        target = kwargs.get("device")
        return target is not None and target.type == "cpu" != args[0].device.type
    return False


def launches(func: Any) -> bool:
    """Whether an op computes something: it is no view, and allocates or tells more than a shape."""
    schema = func._schema
    if schema.name.startswith(_NO_LAUNCH):
        return False
    view = schema.returns and all(r.alias_info and not r.alias_info.is_write for r in schema.returns)
    return not view


def in_parts(mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an op returns that is made of others, which go through ``mode``; NotImplemented for one that is not.

    torch takes such an op apart before a mode sees it, but not in inference mode.
    """
    if not torch.is_inference_mode_enabled():
        return NotImplemented
    with mode, torch._C.DisableTorchFunction():  # those modes would hand over the op whole again
        return func.decompose(*args, **kwargs)


@dataclass(frozen=True)
class Count:
    """Of one piece of work. allocations: tensors in memory of their own."""

    launches: int
    allocations: int
    waits: int

    def __str__(self) -> str:
        return f"{self.launches} launches, {self.allocations} allocations, {self.waits} waits for the device"


class Counting(TorchDispatchMode):
    """``with Counting() as counting: work()``, then ``counting.count``; ``counting.ops`` are launches by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.allocations, self.waits = 0, 0
        self._functions = _ToHost(self)

    @property
    def count(self) -> Count:
        return Count(self.ops.total(), self.allocations, self.waits)

    def __enter__(self) -> Counting:
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._functions.__exit__(*raised)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = in_parts(self, func, args, kwargs)
        if made is not NotImplemented:
            return made
        self.waits += waits(func, args, kwargs)
        if launches(func):
            self.ops[func._schema.name] += 1
        result = func(*args, **kwargs)
        if not any(r.alias_info for r in func._schema.returns):
            self.allocations += sum(isinstance(leaf, Tensor) for leaf in tree_iter(result))
        return result


class _ToHost(TorchFunctionMode):
    def __init__(self, counting: Counting) -> None:
        super().__init__()
        self.counting = counting

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counting.waits += func in _TO_HOST
        return func(*args, **(kwargs or {}))


def count(work: Callable[[], Any]) -> Count:
    """What ``work`` asks of its device, this once."""
    with Counting() as counting:
        work()
    return counting.count
