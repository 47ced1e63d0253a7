# SPDX-License-Identifier: BSD-3-Clause
"""Launches of Triton kernels for less of the host's time: only the first call of a signature goes through JITFunction.

JITFunction looks at every argument to find the compiled kernel. Here a key does that which is never coarser than
Triton's own, and the compiled kernel is launched as JITFunction would launch it. The device of the arguments must be
the current one.
"""

from typing import Any

from torch import Tensor

_compiled: dict[tuple, tuple[Any, list[str]]] = {}


def signature(arguments: tuple) -> list:
    """What Triton specialises a kernel on: dtypes and the alignment of tensors; integers that are 1, multiples of 16 or
    beyond 32 bits; what is None."""
    key: list = []
    for value in arguments:
        if isinstance(value, Tensor):
            key += (value.dtype, value.data_ptr() % 16 == 0)
        elif type(value) is int:
            key.append((value == 1, value % 16 == 0, -(2**31) <= value < 2**31, value < 2**63))
        else:
            key.append(None if value is None else type(value))
    return key


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """kernel[grid](*arguments, **constants). The first argument is a tensor, and the constants, which are tl.constexpr
    and options of the launch, come in one order at every call of a kernel. Kernels are known by their id: they never
    go away."""
    key = (id(kernel), arguments[0].get_device(), *signature(arguments), *constants.values())
    found = _compiled.get(key)
    if found is None:
        compiled = kernel[grid](*arguments, **constants)
        if compiled is not None:  # as Triton's interpreter gives
            _compiled[key] = compiled, kernel.arg_names[len(arguments) :]
        return
    compiled, names = found
    compiled[(*grid, 1, 1)[:3]](*arguments, *(constants[name] for name in names))
