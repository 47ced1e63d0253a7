# SPDX-License-Identifier: BSD-3-Clause
"""Compile .cu files for the CPU into a shared library, cached by content under build/cuda_emulation/."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "cuda_emulation"
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-g1", "-fPIC", "-DFASTSEG_CUDA_EMULATION"]
# Call a function for every load and store (memory.cpp has them), which sees null pointers too; stop at the first
# complaint. An `extern __shared__` array needs no C++ wrapper for its dynamic initialisation.
INSTRUMENT = [
    "-Og",  # -O1 takes twice as long to compile
    "-fsanitize=address,undefined",
    "-fno-sanitize=null",
    "-fno-sanitize-recover=all",
    "--param=asan-instrumentation-with-call-threshold=0",
    "-fno-extern-tls-init",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
]
OTHER_TYPES = """\
    case ScalarKind::kFloat64:
      return run(double());
    case ScalarKind::kBFloat16:
      return run(__nv_bfloat16());
    case ScalarKind::kFloat16:
      return run(__half());
"""
SHARED_GAP = 128  # bytes of no man's land behind every __shared__ variable
MAX_SHARED = 227 * 1024


def missing() -> str | None:
    """Why kernels cannot be emulated on this machine, or None."""
    if sys.platform != "linux":
        return "the emulation needs Linux"
    for tool in (CXX, "readelf"):
        if shutil.which(tool) is None:
            return f"the emulation needs {tool}"
    if "Free Software Foundation" not in _run([CXX, "--version"]).stdout:
        return f"the emulation needs g++, {CXX} is another compiler"
    if not runtime_library().exists():
        return f"the emulation needs libasan, which {CXX} does not find"
    return None


@cache
def runtime_library() -> Path:
    return Path(_run([CXX, "-print-file-name=libasan.so"]).stdout.strip()).resolve()


@cache
def toolkit_include() -> Path | None:
    """The CUDA toolkit's headers: real half-precision types. Without them plain/ serves."""
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        found = re.search(
            r"^#\$ TOP=(.*)$", _run([nvcc, "--dryrun", "none.cu"], check=False).stderr, re.MULTILINE
        )
        roots.append(found.group(1) if found else None)
    for root in (*roots, "/usr/local/cuda"):
        if root and (include := Path(root) / "include").joinpath("cuda_bf16.h").exists():
            return include.resolve()
    return None


def build(*sources: Path, include: Path = ROOT / "kernels", plain_types: bool = False) -> Path:
    """The library made of the sources, all of them instrumented; compiled only if anything changed, by one process."""
    headers = None if plain_types else toolkit_include()
    types = [f"-I{HERE / 'plain'}"] if headers is None else ["-isystem", str(headers)]
    tuning = CACHE / "generated/tuning.h"
    _run([sys.executable, ROOT / "kernels/tuning/cuda.py", tuning])
    includes = [
        f"-I{HERE / 'include'}",
        *types,
        f"-I{include}",
        f"-I{ROOT / 'kernels'}",
        f"-I{tuning.parent}",
    ]
    used = [Path(__file__), tuning, *sources]
    for folder in (HERE, ROOT / "kernels", include):
        used += [p for p in folder.rglob("*") if p.suffix in {".h", ".cuh", ".cpp"}]
    digest = hashlib.sha256(repr((_run([CXX, "--version"]).stdout, str(headers), sources, includes)).encode())
    for path in sorted(set(used)):
        digest.update(path.read_bytes())
    library = CACHE / digest.hexdigest()[:24] / "kernels.so"
    with _one_process(library.parent), tempfile.TemporaryDirectory(dir=CACHE) as name:
        if library.exists():
            return library
        folder = Path(name)
        objects = [_compile_instrumented(s, folder / f"{i}.o", includes) for i, s in enumerate(sources)]
        objects += [_runtime_object(s) for s in ("scheduler.cpp", "memory.cpp", "report.cpp")]
        if dynamic := _undefined_shared(objects):
            objects.append(_define_shared(dynamic, folder))
        _run([CXX, "-shared", "-fsanitize=address,undefined", *objects, "-ldl", "-o", folder / "kernels.so"])
        (folder / "shared_variables.txt").write_text(_shared_layout(folder / "kernels.so", dynamic))
        (folder / "shared_variables.txt").replace(library.with_name("shared_variables.txt"))
        (folder / "kernels.so").replace(library)
    return library


def kernels_without_barrier(folder: Path, file: str, why: str) -> Path:
    """A copy of kernels/ without the barrier whose comment says why, and for float32 alone, which is soon compiled."""
    kernels = shutil.copytree(ROOT / "kernels", folder / "kernels")
    lines = (kernels / file).read_text().splitlines(keepends=True)
    lines.remove(next(line for line in lines if "__syncthreads();" in line and why in line))
    (kernels / file).write_text("".join(lines))
    types = (kernels / "cuda_utils.cuh").read_text()
    assert OTHER_TYPES in types
    (kernels / "cuda_utils.cuh").write_text(types.replace(OTHER_TYPES, ""))
    return kernels


@contextmanager
def _one_process(folder: Path) -> Iterator[None]:
    """Only one process, and one thread of it, is in here for a folder; the lock goes with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile_instrumented(source: Path, target: Path, includes: list[str]) -> Path:
    """By way of assembly, where every thread-local (that is, __shared__) variable gets a gap behind it."""
    assembly = target.with_suffix(".s")
    _run([CXX, *FLAGS, *INSTRUMENT, *includes, "-x", "c++", "-S", source, "-o", assembly])
    lines, thread_local = [], False
    for line in assembly.read_text().splitlines(keepends=True):
        if line.startswith(("\t.section", "\t.text", "\t.data", "\t.bss")):
            thread_local = ".tbss" in line
        lines.append(line)
        if thread_local and line.startswith("\t.zero"):
            lines.append(f"\t.zero\t{SHARED_GAP}\n")
    assembly.write_text("".join(lines))
    _run([CXX, "-c", assembly, "-o", target])
    return target


def _runtime_object(name: str) -> Path:
    """scheduler.cpp and memory.cpp are the same for all libraries and are not instrumented."""
    digest = hashlib.sha256(repr((_run([CXX, "--version"]).stdout, FLAGS)).encode())
    for path in sorted(
        [HERE / name, HERE / "machine.h", *HERE.glob("include/**/*.h"), *HERE.glob("plain/*.h")]
    ):
        digest.update(path.read_bytes())
    target = CACHE / f"{Path(name).stem}-{digest.hexdigest()[:24]}.o"
    if not target.exists():
        headers = toolkit_include()
        types = f"-I{HERE / 'plain'}" if headers is None else f"-isystem{headers}"
        scratch = target.with_name(f"{target.stem}.{os.getpid()}.{threading.get_ident()}.o")
        _run([CXX, *FLAGS, "-O2", "-Wall", f"-I{HERE / 'include'}", types, "-c", HERE / name, "-o", scratch])
        scratch.replace(target)
    return target


def _thread_local_symbols(path: Path) -> list[list[str]]:
    rows = (line.split() for line in _run(["readelf", "-sW", path]).stdout.splitlines())
    return [row for row in rows if len(row) == 8 and row[3] == "TLS"]


def _undefined_shared(objects: list[Path]) -> list[str]:
    return sorted({row[7] for path in objects for row in _thread_local_symbols(path) if row[6] == "UND"})


def _define_shared(names: list[str], folder: Path) -> Path:
    """All `extern __shared__` arrays are the same memory, as in CUDA."""
    labels = "".join(f"\t.globl {n}\n\t.type {n}, @object\n\t.size {n}, {MAX_SHARED}\n{n}:\n" for n in names)
    source = folder / "dynamic_shared.s"
    source.write_text(
        f'\t.section .tbss,"awT",@nobits\n\t.align 128\n{labels}\t.zero {MAX_SHARED + SHARED_GAP}\n'
        '\t.section .note.GNU-stack,"",@progbits\n'
    )
    _run([CXX, "-c", source, "-o", folder / "dynamic_shared.o"])
    return folder / "dynamic_shared.o"


def _shared_layout(library: Path, dynamic: list[str]) -> str:
    """One line per __shared__ variable: name, offset in the TLS segment, bytes, whether dynamic; first the anchor."""
    rows = {r[7]: (int(r[1], 16), int(r[2], 0), int(r[7] in dynamic)) for r in _thread_local_symbols(library)}
    anchor = next(name for name in rows if "tls_anchor" in name)
    lines = [(anchor, *rows.pop(anchor)), *((n, *r) for n, r in rows.items() if n not in dynamic[1:])]
    return "".join(" ".join(map(str, line)) + "\n" for line in lines)


def _run(command: list, check: bool = True) -> subprocess.CompletedProcess:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if check and result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result
