# SPDX-License-Identifier: BSD-3-Clause
"""The machine code of the CUDA kernels that stands in the built extension: what runs is what is counted."""

import importlib.util
import os
import re
import subprocess
from functools import cache
from pathlib import Path

from .sass import cuobjdump, run


class NotBuilt(Exception):
    """There is no machine code to read; the message says why."""


@cache
def cubins(architecture: str, folder: Path) -> dict[str, Path]:
    """Of each file of kernels/cuda/, by its stem; they are written to ``folder``."""
    extension = importlib.util.find_spec("fastseg._C")
    if extension is None or extension.origin is None:
        raise NotBuilt("the extension fastseg._C is not built")
    try:
        dump = cuobjdump()
    except FileNotFoundError as error:
        raise NotBuilt(str(error)) from None
    folder = folder / f"{architecture}.{os.getpid()}"
    folder.mkdir()
    try:
        run(dump, "-xelf", f".{architecture}.", os.path.realpath(extension.origin), cwd=folder)
    except subprocess.CalledProcessError as error:
        raise NotBuilt(f"fastseg._C: {error.stderr.strip() or error}") from None
    found = {}
    for cubin in sorted(folder.iterdir()):
        # Kernels are local to their file, so their names have its name, with how long it is.
        if names := re.findall(
            r"__[0-9a-f]{8}_\d+_(\w+?)_cu_[0-9a-f]{8}", run(dump, "-res-usage", str(cubin))
        ):
            found[names[0]] = cubin
    if not found:
        raise NotBuilt(f"fastseg._C holds no machine code for {architecture}")
    return found
