# SPDX-License-Identifier: BSD-3-Clause
"""How large the tiles of region_contrast are on a GPU, and how many warps share one."""

import functools
from dataclasses import dataclass

import torch
from fastseg.tuning import Values, choice, remembered

import triton

# What gpu-tune tries; blocks of rows and candidates divide the stretches that sorted rows are classified by.
CANDIDATES = {"block_m": (64, 128), "block_n": (32, 64, 128), "warps": (4, 8), "stages": (2, 3)}


@dataclass(frozen=True)
class Tiles:
    """How one kernel is launched for one kind of input."""

    block_m: int
    block_n: int
    block_d: int
    one_chunk: bool
    precision: str
    warps: int
    stages: int
    block_out: int = 0


@remembered
def tiles(
    plenty: bool,
    D: int,
    dtype: torch.dtype,
    tf32: bool,
    gpu: tuple[int, int, int],
    is_sorted: bool,
    backward: bool,
) -> Tiles:
    """By shape and GPU, as the table of kernels/tuning says, or else with as few registers spilled as the compiler
    allows; timing candidates at run time would break the capture of a graph. D fits into one chunk where the rows of a
    block can stay in shared memory. plenty: 128 anchors for every processor."""
    _, shared_memory, architecture = gpu
    wide = dtype == torch.float32
    precision = "tf32x3" if tf32 else "ieee" if wide else "tf32"
    if wide:
        one_chunk = D <= 128 and (tf32 or (backward and not is_sorted))
        block_m, block_n, warps = 64, 32 if backward else 64, 8 if precision == "ieee" else 4
        block_out = 64
    else:
        one_chunk = D <= 256
        block_m, block_n, warps = 128 if plenty else 64, 64, 8
        if backward and (dtype == torch.float16 or D > 128):
            block_m = 64
        if backward and (dtype == torch.float16 or block_m == 128 or 128 < D <= 256):
            block_n = 32
        block_out = 128
    # Nearly all tiles of sorted rows are lean: few registers a pair, so wide tiles pay.
    narrow = is_sorted and not wide and not (backward and dtype == torch.float16)
    if narrow and D <= 128:
        block_m, block_n, warps = 64, 128, 4
    elif narrow and backward and D <= 256:
        block_m, block_n, warps = 64, 64, 4
    columns = max(16, triton.next_power_of_2(D))
    block_d = columns if one_chunk else (32 if wide else 64)

    def fits(values: Values) -> bool:
        resident = values["block_m"] * block_d * dtype.itemsize if one_chunk else 0
        streamed = (values["block_n"] + (0 if one_chunk else values["block_m"])) * block_d * dtype.itemsize
        return resident + values["stages"] * streamed <= shared_memory - 65536

    default: Values = {"block_m": block_m, "block_n": block_n, "warps": warps, "stages": 3}
    if narrow and (backward or D <= 128):
        default["stages"] = 2
    while default["stages"] > 1 and not fits(default):
        default["stages"] -= 1
    rows = "sorted" if is_sorted else "plenty" if plenty else "few"
    chosen = choice(
        "contrast_gradient" if backward else "contrast_rows",
        f"{'tf32' if tf32 else str(dtype).removeprefix('torch.')} {columns if D <= 256 else 'wide'} {rows}",
        architecture,
        default,
        CANDIDATES,
        fits,
    )
    return Tiles(
        chosen["block_m"],
        chosen["block_n"],
        block_d,
        one_chunk,
        precision,
        chosen["warps"],
        chosen["stages"],
        block_d if one_chunk else block_out,
    )


@functools.lru_cache
def describe_gpu(index: int) -> tuple[int, int, int]:
    """Multiprocessors, bytes of shared memory a block may have, and the compute capability times 10."""
    properties = torch.cuda.get_device_properties(index)
    architecture = 10 * properties.major + properties.minor
    return properties.multi_processor_count, properties.shared_memory_per_block_optin, architecture
