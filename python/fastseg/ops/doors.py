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
    backward: Callable[..., Any] | str = "",
    *,
    check: Callable[..., None] | None = None,
    eager: Callable[..., Any] | None = None,
    differentiable: int | None = None,
    results: int | None = None,
) -> Any:
    """The op as a function that takes the eager door where it can.

    `save` and `backward` are those of torch.library.register_autograd, and serve both doors; instead of a `backward`,
    the words by which a gradient is refused. Results that were not asked for are None at the eager door and of shape
    (0,) at the other. `check` looks at the arguments before torch.library does: at the eager door C++ raises what it
    would. `eager` stands in for the function of _C. Of several results the first `differentiable` have a gradient, and
    the function gives the first `results`: what only the backward pass needs does not meet autograd, which takes time
    for every result. Its attribute `whole` is the function that gives them all.
    """
    library = getattr(torch.ops.fastseg, name).default
    choose_door = _C.choose_door
    call = eager or getattr(_C, name)

    def refuse(ctx, *grads):
        raise NotImplementedError(backward)

    def mark_and_save(ctx, inputs, output):
        if differentiable is not None:
            ctx.mark_non_differentiable(*(one for one in output[differentiable:] if one is not None))
            ctx.set_materialize_grads(False)
        if save is not None:
            save(ctx, inputs, output)

    gradient = refuse if isinstance(backward, str) else backward
    if backward:
        torch.library.register_autograd(f"fastseg::{name}", gradient, setup_context=mark_and_save)

    def door(results: int | None) -> Any:
        keep = save if save is not None and results is not None else mark_and_save

        def forward(ctx, *inputs):
            output = call(*inputs)
            keep(ctx, inputs, output)
            return output if results is None else output[:results]

        methods = {"forward": staticmethod(forward), "backward": staticmethod(gradient)}
        function: Any = type(name, (torch.autograd.Function,), methods)
        # Torch's own, without the steps in Python that Function.apply takes for functorch, which never comes in here,
        # and those between the engine and `backward`.
        with_gradient = super(torch.autograd.Function, function).apply
        function._backward_cls.apply = gradient

        def op(*inputs):
            if not is_compiling() and _eager_is_open:
                door = choose_door(*inputs)
                try:
                    if door == _EAGER_WITH_GRADIENT:
                        return with_gradient(*inputs)
                    if door == _EAGER:
                        output = call(*inputs)
                        return output if results is None else output[:results]
                except _C.Unreadable:
                    pass  # such as a sparse or a meta tensor: torch.library has a kernel for it, or says so
            if check is not None:
                check(*inputs)
            output = library(*inputs)
            return output if results is None else output[:results]

        return op

    op = door(results)
    op.whole = op if results is None else door(None)
    return op
