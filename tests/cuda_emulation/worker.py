# SPDX-License-Identifier: BSD-3-Clause
"""Call functions of one emulated library: requests come pickled on stdin, answers go to stdout.

A process of its own, started with libasan preloaded: a fault ends it and not the tests. Standard library only.
"""

import ctypes
import os
import pickle
import sys
from pathlib import Path

KINDS = {"input": 0, "output": 1, "inout": 2}


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.cuda_emulation_array.restype = ctypes.c_void_p
    anchor, *variables = (
        line.split() for line in path.with_name("shared_variables.txt").read_text().splitlines()
    )
    for name, offset, size, dynamic in variables:
        library.cuda_emulation_shared(
            name.encode(),
            *map(ctypes.c_size_t, (int(offset), int(size), int(anchor[1]))),
            ctypes.c_int(int(dynamic)),
        )
    return library


def call(library: ctypes.CDLL, symbol: str, seed: int, arguments: list) -> tuple[int, list[bytes]]:
    """Arguments: None (null), int (int64), float (double), or (name, kind, itemsize, misalignment, bytes)."""
    library.cuda_emulation_begin(ctypes.c_uint64(seed))
    values, results = [], []
    for argument in arguments:
        if argument is None:
            values.append(ctypes.c_void_p(None))
        elif isinstance(argument, int):
            values.append(ctypes.c_int64(argument))
        elif isinstance(argument, float):
            values.append(ctypes.c_double(argument))
        else:
            name, kind, itemsize, misalignment, data = argument
            address = library.cuda_emulation_array(
                name.encode(),
                *map(ctypes.c_size_t, (len(data), misalignment)),
                ctypes.c_int(itemsize),
                ctypes.c_int(KINDS[kind]),
            )
            ctypes.memmove(address, data, len(data))
            values.append(ctypes.c_void_p(address))
            if kind != "input":
                results.append((address, len(data)))
    status = getattr(library, symbol)(*values)
    contents = [ctypes.string_at(address, size) for address, size in results]
    library.cuda_emulation_free_arrays()
    return status, contents


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a kernel's printf must not get between the answers
    library = load(Path(sys.argv[1]))
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(call(library, *request), answers)
        answers.flush()


main()
