# SPDX-License-Identifier: BSD-3-Clause
"""Which implementation of an op runs: the meaning of `impl=` for every op."""

import warnings

import torch  # before _C, which finds torch's libraries already loaded

from fastseg import _C

IMPLEMENTATIONS = ("auto", "fused", "reference")

_KERNELS = {op: tuple(devices) for op, devices in _C.build_info()["ops"].items()}
_warned: set[tuple[str, str]] = set()


def offer(op: str, device: str) -> None:
    """A kernel of `op` for `device` that is registered from Python and not in the extension module."""
    _KERNELS[op] = (*_KERNELS[op], device)


def use_fused(op: str, impl: str, device: torch.device) -> bool:
    """Whether `impl` means the fused kernel of `op` on this device; "auto" warns once where there is none."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl == "reference":
        return False
    if device.type in _KERNELS[op]:
        return True
    if impl == "fused":
        raise ValueError(
            f'impl="fused": {op} has no kernel for device {device.type!r} in this build '
            f'(it has: {", ".join(_KERNELS[op])}); use impl="auto" or impl="reference"'
        )
    if not torch.compiler.is_compiling() and (op, device.type) not in _warned:
        _warned.add((op, device.type))
        warnings.warn(
            f"{op}: no fused kernel for device {device.type!r} in this build, using the slower reference",
            stacklevel=3,
        )
    return False
