# SPDX-License-Identifier: BSD-3-Clause
"""What the sdist and the wheel hold: all that belongs there, and nothing else."""

from __future__ import annotations

import re
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable
from email import message_from_string
from pathlib import Path

LEFT_OUT = (".ci/",)  # tracked, and not in the sdist
FOLDERS = {  # of the wheel.packages
    "python/fastseg/": "fastseg/",
    "kernels/triton/": "fastseg/triton/",
    "kernels/tuning/": "fastseg/tuning/",
}
EXTENSION = f"fastseg/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
PYTHON_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
METADATA = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
REQUIRED = ["torch>=2.11", "numpy"]  # without an extra: people who want the ops alone get nothing more
# Twice what they are. The CUDA kernels are there three times over, once for each architecture.
MOST_BYTES = {"sdist": 2 << 20, "wheel": 3 << 20, "wheel with CUDA": 24 << 20}
# A source's place on the machine that built it, as assertions of C++ headers leave it in a binary.
FOREIGN_PATH = re.compile(rb"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]+\.(?:h|hpp|cpp|cu|cuh)\b")


def sdist_names(sdist: Path) -> set[str]:
    """The files of a sdist, as paths from the root of the repository."""
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()}


def sdist_trouble(sdist: Path, tracked: Iterable[str] | None) -> list[str]:
    """What is wrong with a sdist, given the files that git tracks, or None where there is no git."""
    told = _too_large(sdist, "sdist")
    if tracked is not None:
        expected = {name for name in tracked if not name.startswith(LEFT_OUT)} | {"PKG-INFO"}
        told += _differences(sdist_names(sdist), expected)
    return told


def wheel_trouble(wheel: Path, sources: set[str], cuda: bool = False) -> list[str]:
    """What is wrong with a wheel, given the files of the sdist that it was built from."""
    told = _too_large(wheel, "wheel with CUDA" if cuda else "wheel")
    if not re.fullmatch(rf"fastseg-[\w.]+-{PYTHON_TAG}-{PYTHON_TAG}-\w+\.whl", wheel.name):
        told.append(f"is for another Python than {PYTHON_TAG}: {wheel.name}")
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/"
    expected = {EXTENSION, *(info + name for name in METADATA)}
    for folder, target in FOLDERS.items():
        expected |= {target + name[len(folder) :] for name in sources if name.startswith(folder)}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        told += _differences(names, expected)
        for name in sorted(names):
            if path := FOREIGN_PATH.search(archive.read(name)):
                told.append(f"{name} names a file of the machine that built it: {path[0].decode()}")
        if info + "METADATA" in names:
            told += _metadata_trouble(archive.read(info + "METADATA").decode())
    return told


def _metadata_trouble(text: str) -> list[str]:
    metadata = message_from_string(text)
    required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    told = [] if required == REQUIRED else [f"requires {required}, expected {REQUIRED}"]
    return told if metadata["License-Expression"] else [*told, "names no license"]


def _too_large(path: Path, kind: str) -> list[str]:
    size, most = path.stat().st_size, MOST_BYTES[kind]
    return [f"has {size:,} bytes, at most {most:,} are expected of a {kind}"] if size > most else []


def _differences(found: set[str], expected: set[str]) -> list[str]:
    told = [f"lacks {name}" for name in sorted(expected - found)]
    return told + [f"holds {name}, which does not belong there" for name in sorted(found - expected)]
