# SPDX-License-Identifier: BSD-3-Clause
"""The two doors of an op: pybind11 for plain tensors in eager mode, torch.library for whatever traces or transforms.

Both lead to the same C++ body. torch.library costs about ten times as much of the host's time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.compiler import is_compiling

from fastseg import _C

_EAGER, _EAGER_WITH_GRADIENT = 1, 2  # what _C.choose_door says; 0 is torch.library
_eager_is_open = True


@contextmanager
def force_library(forced: bool = True) -> Iterator[None]:
    """For tests and benchmarks: every call within takes torch.library's door, of all threads."""
    global _eager_is_open
    before, _eager_is_open = _eager_is_open, not forced
    try:
        yield
    finally:
        _eager_is_open = before


def open_doors(
    name: str,
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
    eager: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The op as a function that takes the eager door where it can.

    `save` and `backward` are those of torch.library.register_autograd, and serve both doors; results that were not
    asked for are None at the eager door and of shape (0,) at the other. `check` looks at the arguments before
    torch.library does: at the eager door C++ raises what it would. `eager` stands in for the function of _C.
    """
    library = getattr(torch.ops.fastseg, name).default
    choose_door = _C.choose_door
    eager = eager or getattr(_C, name)
    if backward is not None:
        torch.library.register_autograd(f"fastseg::{name}", backward, setup_context=save)

    def forward(ctx, *inputs):
        output = eager(*inputs)
        if save is not None:
            save(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward or _no_gradient)}
    function: Any = type(name, (torch.autograd.Function,), methods)
    # torch's own, without the steps in Python that Function.apply takes for functorch, which never comes in here
    with_gradient = super(torch.autograd.Function, function).apply

    def op(*inputs):
        if not is_compiling() and _eager_is_open:
            door = choose_door(*inputs)
            try:
                if door == _EAGER:
                    return eager(*inputs)
                if door == _EAGER_WITH_GRADIENT:
                    return with_gradient(*inputs)
            except _C.Unreadable:
                pass  # such as a sparse or a meta tensor: torch.library has a kernel for it, or says that it has none
        if check is not None:
            check(*inputs)
        return library(*inputs)

    return op


def _no_gradient(ctx, *grads):
    raise NotImplementedError("this op has no gradient")
