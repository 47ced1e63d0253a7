# SPDX-License-Identifier: BSD-3-Clause
"""fastseg info: what this installation is made of, and what it lacks. Needs torch and numpy alone."""

from __future__ import annotations

import importlib.metadata
import platform
import re

_PACKAGES = ("torch", "triton", "numpy", "h5py", "numcodecs", "tifffile", "pydantic")


def describe_installation() -> list[str]:
    """Versions, devices, kernels and optional packages, then what is missing, a line each."""
    import torch

    import fastseg

    lines = [f"fastseg {importlib.metadata.version('fastseg')}, Python {platform.python_version()}"]
    lines += [f"  {name} {_version(name) or 'not installed'}" for name in _PACKAGES]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            lines.append(
                f"device cuda:{number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
                f"sm_{properties.major}{properties.minor}"
            )
    lines.append(f"device cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    build = fastseg.build_info()
    lines += [f"build {key}: {value}" for key, value in build.items()]
    return lines + [f"missing {what}" for what in _missing(build, torch)]


def missing_packages() -> list[str]:
    """The packages of the training layer that are not installed."""
    requirements = importlib.metadata.requires("fastseg") or []
    names = [re.match(r"[\w.-]+", r)[0] for r in requirements if re.search(r"extra == ['\"]train['\"]", r)]
    return [name for name in names if _version(name) is None]


def _missing(build: dict, torch) -> list[str]:
    told = []
    if build["cuda"] is None:
        slow = [op for op, on in build["ops"].items() if op != "region_contrast" and "cuda" not in on]
        told.append(
            f"CUDA kernels: built without nvcc, or with FASTSEG_CUDA=OFF. On a GPU the slower reference runs for "
            f"{', '.join(slow)}. Put nvcc 12.4 or newer on the PATH and install again from source"
        )
    if build["libstdc++"] == "static":
        told.append(
            "a shared libstdc++: the compiler linked a copy of its own. It works; where the compiler finds a "
            "libstdc++.so (Debian: libstdc++-12-dev), that of torch is used"
        )
    if build["openmp"] is None:
        told.append("OpenMP: the CPU kernels run on one thread. Build with a compiler that knows -fopenmp")
    if _version("triton") is None:
        told.append("triton: on a GPU the slower reference runs for region_contrast. pip install triton")
    if torch.version.cuda is None:
        told.append("CUDA in torch: this build of torch knows the CPU alone. See pytorch.org/get-started")
    elif not torch.cuda.is_available():
        told.append("a GPU that torch can use: see nvidia-smi")
    if packages := missing_packages():
        told.append(f"for the training layer: {', '.join(packages)}. pip install 'fastseg[train]'")
    return told


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
