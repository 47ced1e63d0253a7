# SPDX-License-Identifier: BSD-3-Clause
"""fastseg info: what this installation is made of."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = ("torch", "triton", "numpy", "h5py", "numcodecs", "tifffile", "pydantic")


def describe_installation() -> list[str]:
    """Versions, devices, kernels and optional packages, a line each."""
    import torch

    import fastseg

    lines = [f"fastseg {importlib.metadata.version('fastseg')}, Python {platform.python_version()}"]
    lines += [f"  {name} {_version(name)}" for name in _PACKAGES]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            lines.append(
                f"device cuda:{number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
                f"sm_{properties.major}{properties.minor}"
            )
    lines.append(f"device cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    lines += [f"build {key}: {value}" for key, value in fastseg.build_info().items()]
    return lines


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
