# SPDX-License-Identifier: BSD-3-Clause
"""Which device and which precision a run computes with."""

from __future__ import annotations

import platform

import torch

from fastseg.errors import InputError

# Of what torch says; the dispatcher's message alone is a page.
_MOST_SAID = 120

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def choose_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device if there is one, otherwise the CPU. InputError for devices without kernels, and
    those that this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"fastseg has kernels for cpu and cuda, not for {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0][:_MOST_SAID]
        raise InputError(
            f"train.device {name!r} cannot be used: {said}; it must be auto, cpu, cuda or cuda:N"
        ) from error
    return device


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, None for float32; ``auto`` takes bfloat16 where the device multiplies in it natively."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = device.type == "cpu" and (
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
        precision = "bf16" if native else "fp32"
    return _DTYPES[precision]


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the kind of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
