# SPDX-License-Identifier: BSD-3-Clause
"""Which implementation of an op runs: the meaning of `impl=` for every op."""

import warnings
from typing import Any

import torch  # before _C, which finds torch's libraries already loaded
from torch import Tensor

from fastseg import _C

IMPLEMENTATIONS = ("auto", "fused", "reference")

_OPS = ("masked_bce", "patch_entropy", "region_contrast", "region_pool")
_KERNELS: dict[str, tuple[str, ...]] = {}
_warned: set[tuple[str, str]] = set()


def find_kernels() -> None:
    """Ask torch's dispatcher once, when all are registered, by the extension module or from Python."""
    for op in _OPS:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        _KERNELS[op] = tuple(key.lower() for key in ("CPU", "CUDA") if has_kernel(f"fastseg::{op}", key))


def build_info() -> dict[str, Any]:
    """How the extension was built: version, compiler, libstdc++ ("shared" or "static"), torch's headers, CUDA and its
    architectures, OpenMP; and for each op the devices it has a kernel for here, Triton's included."""
    return {**_C.build_info(), "ops": dict(_KERNELS)}


def use_fused(op: str, impl: str, tensor: Tensor) -> bool:
    """Whether `impl` means the fused kernel of `op` on the tensor's device; "auto" warns once where there is none."""
    if impl == "auto" and tensor.is_cpu:  # which every build serves
        return True
    device = tensor.device
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
