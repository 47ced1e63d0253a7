# SPDX-License-Identifier: BSD-3-Clause
"""How large the tiles of region_contrast are on a GPU, and how many warps share one."""

import functools
from dataclasses import dataclass

import torch

import triton


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


def tiles(
    M: int,
    D: int,
    dtype: torch.dtype,
    tf32: bool,
    gpu: tuple[int, int],
    is_sorted: bool,
    backward: bool,
) -> Tiles:
    """Fixed choices by shape and GPU, as few registers spilled as the compiler allows; timing candidates at run time
    would break the capture of a graph. D fits into one chunk where the rows of a block can stay in shared memory."""
    processors, shared_memory = gpu
    wide = dtype == torch.float32
    precision = "tf32x3" if tf32 else "ieee" if wide else "tf32"
    plenty = 128 * processors <= M  # a block of 128 anchors for every processor
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
    block_d = max(16, triton.next_power_of_2(D)) if one_chunk else (32 if wide else 64)
    block_out = block_d if one_chunk else block_out
    resident = block_m * block_d * dtype.itemsize if one_chunk else 0
    streamed = (block_n + (0 if one_chunk else block_m)) * block_d * dtype.itemsize
    stages = 2 if narrow and (backward or D <= 128) else 3
    while stages > 1 and resident + stages * streamed > shared_memory - 65536:
        stages -= 1
    return Tiles(block_m, block_n, block_d, one_chunk, precision, warps, stages, block_out)


@functools.lru_cache
def describe_gpu(index: int) -> tuple[int, int]:
    """Multiprocessors and bytes of shared memory a block may have."""
    properties = torch.cuda.get_device_properties(index)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin
