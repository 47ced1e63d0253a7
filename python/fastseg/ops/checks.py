# SPDX-License-Identifier: BSD-3-Clause
"""Checks in the words of csrc/checks.h, for what C++ does not see: arguments that are no tensors, the tensors of the
reference, and those of a tracer, whose sizes are symbols. Also the dtypes and layouts in which the kernels answer."""

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BYTES = (torch.uint8, torch.bool)


def as_int(name: str, value: Any, expected: str = "an int") -> Any:
    """``value``, perhaps numpy's, as an int, or as the torch.SymInt that it is. expected: what else it may be, too."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    return int(value)


def is_number(value: object) -> bool:
    return isinstance(value, numbers.Real | torch.SymFloat) and not isinstance(value, bool)


def check_types(required: dict[str, Any], optional: dict[str, Any] = {}) -> None:  # noqa: B006 - nobody writes to it
    """That those that are required are tensors, and the others tensors or None."""
    for name, tensor in required.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    for name, tensor in optional.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def check_option(name: str, value: object, names: Sequence[str] | dict[str, int]) -> None:
    if value not in tuple(names):
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_dtype(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        *first, last = map(name_of, dtypes)
        expected = f"{', '.join(first)} or {last}" if first else last
        raise TypeError(f"{name} must be {expected}, got {name_of(tensor.dtype)}")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on {other.device}, where {other_name} is, got {tensor.device}")


def check_volume(name: str, tensor: Tensor, meaning: str = "(B, C, *S)", axes: str = "spatial axes") -> None:
    if not 3 <= tensor.dim() <= 5:
        raise ValueError(f"{name} must be {meaning} with 1 to 3 {axes}, got {tuple(tensor.shape)}")


def check_shape(name: str, tensor: Tensor, meaning: str, expected: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} must be {meaning} = {tuple(expected)}, got {tuple(tensor.shape)}")


def check_map(name: str, tensor: Tensor, meaning: str, volume: Tensor, one_for_all: bool = False) -> None:
    """A map over the voxels of a volume (B, C, *S) with a channel for each of its own or one for all."""
    batch, channels, *spatial = volume.shape
    allowed = (1,) if one_for_all else (1, channels)
    if tuple(tensor.shape) not in [(batch, k, *spatial) for k in allowed]:
        expected = ", ".join([" or ".join(map(str, dict.fromkeys(allowed))), *map(str, spatial)])
        raise ValueError(f"{name} must be {meaning} = ({batch}, {expected}), got {tuple(tensor.shape)}")


def real_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Of sums over the tensors, and of what is made of them."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the kernels read it channels last: as they do, contiguous goes first."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return bool(layout and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout))


def empty_map(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool) -> Tensor:
    """As the kernels allocate it."""
    layout = torch.contiguous_format
    if channels_last:
        layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.empty(shape, dtype=dtype, device=device, memory_format=layout)


def empty_like(tensor: Tensor) -> Tensor:
    """A gradient or a map like the tensor, likewise."""
    return empty_map(tensor.shape, tensor.dtype, tensor.device, is_channels_last(tensor))
