# SPDX-License-Identifier: BSD-3-Clause
"""What an extension module asks of the machine that loads it, read by readelf, and what it must not ask."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Present on every Linux, or loaded by `import torch`. No libpython, which static builds of Python lack, no libc10 or
# libtorch_python, which have no stable ABI, no libcudart or libgomp, which torch may bring in another version.
LIBRARIES = re.compile(
    r"(libtorch|libtorch_cpu|libstdc\+\+|libm|libgcc_s|libc|libdl|libpthread|librt|ld-linux-\S+)\.so(\.\d+)?"
)
SYSTEM_VERSIONS = ("GLIBC", "GLIBCXX", "CXXABI", "GCC")
# torch's stable ABI is plain C. So a mangled name, of c10::, at:: or torch::, is never one of these.
TORCH = re.compile(r"(aoti_torch|torch)_[a-z0-9_]+")
PYTHON = re.compile(r"_?Py\w+")  # by pybind11, of the one Python that a wheel is for
# Of libstdc++, which pybind11 calls inline; without a version, as libtorch exports them too.
STANDARD = re.compile(r"_ZNSt15__exception_ptr13exception_ptr\w+")
LINKER = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}


@dataclass(frozen=True)
class Binary:
    needed: tuple[str, ...]  # libraries
    search_path: tuple[str, ...]  # RPATH and RUNPATH
    undefined: tuple[tuple[str, str], ...]  # symbol and version, "" where it has none


def read_binary(path: Path) -> Binary:
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", str(path)]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse(text: str) -> Binary:
    """From readelf's output."""
    symbols = re.findall(r" UND ([^\s@]+)(?:@@?(\S+))?(?: \(\d+\))?$", text, re.MULTILINE)
    return Binary(
        tuple(re.findall(r"\(NEEDED\).*\[(.+)\]", text)),
        tuple(re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", text)),
        tuple(sorted(set(symbols))),
    )


def binary_trouble(binary: Binary) -> list[str]:
    """Why it would not load everywhere, a line for each reason."""
    told = [f"needs the library {name}" for name in binary.needed if not LIBRARIES.fullmatch(name)]
    told += [f"searches for libraries in {path}" for path in binary.search_path]
    if not binary.undefined:
        told.append("has no undefined symbol: this is not an extension module")
    for name, version in binary.undefined:
        if version:
            allowed = version.split("_")[0] in SYSTEM_VERSIONS
        else:
            allowed = name in LINKER or any(p.fullmatch(name) for p in (TORCH, PYTHON, STANDARD))
        if not allowed:
            told.append(f"needs the symbol {name}{version and '@' + version}")
    return told


def newest_versions(binary: Binary) -> list[str]:
    """What the system's libraries must be at least, as in GLIBC_2.34."""
    newest: dict[str, tuple[int, ...]] = {}
    for _, version in binary.undefined:
        family, _, number = version.partition("_")
        if re.fullmatch(r"[\d.]+", number):
            newest[family] = max(newest.get(family, (0,)), tuple(map(int, number.split("."))))
    return [f"{family}_{'.'.join(map(str, number))}" for family, number in sorted(newest.items())]
