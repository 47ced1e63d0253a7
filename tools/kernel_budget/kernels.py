# SPDX-License-Identifier: BSD-3-Clause
"""The kernels that have a budget, and where their machine code is. Another op adds its lines to ``KERNELS``.

How many elements one turn of a main loop handles cannot be seen in machine code. It stands here, together with the
loads of the turn, and the tool takes only a path that makes exactly those: a table that no longer fits the kernel is an
error, not a wrong figure. Kernels without a loop are counted from entry to exit, so what a thread does once
is included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .build import cubins


@dataclass(frozen=True)
class Budget:
    """One kernel. ``cubin`` is that for an architecture, put into a folder; ``name`` is how the demangled name of
    its one instance begins; ``does`` is what a turn of the main loop loads or computes (``sass.cheapest_turn``)."""

    label: str
    cubin: Callable[[str, Path], Path]
    name: str
    threads: int  # of a block
    elements: int  # of a turn of the main loop
    does: dict[str, int]
    read: float  # bytes per element from memory
    written: float
    instructions: float | None = None  # per element at most on sm_90; None: no budget
    target: float | None = None  # the share of copy bandwidth that the budget is made for
    shared: int = 0  # dynamic, bytes
    inner: tuple[int, dict[str, int]] | None = (
        None  # a loop within the turn: how often it runs, and what it does
    )


def loads(*widths: int) -> dict[str, int]:
    return {f"load {width}": widths.count(width) for width in widths}


def cuda(label: str, source: str, name: str, **facts) -> Budget:
    def cubin(architecture: str, folder: Path) -> Path:
        return cubins(architecture, folder)[Path(source).stem]

    return Budget(label, cubin, name, **facts)


_BCE, _ENTROPY, _SOFT = "masked_bce.cu", "patch_entropy.cu", "region_pool_soft.cu"
_GATHER, _COLUMNS, _SORTED = "region_pool_backward.cu", "region_pool_columns.cu", "region_pool_sorted.cu"

KERNELS = [
    cuda("masked_bce forward bf16", _BCE, "void fastseg::sum_kernel<__nv_bfloat16, unsigned char, false>",
         threads=256, elements=32, does=loads(*[16, 8, 8] * 4), read=4, written=0, instructions=36, target=0.75),
    cuda("masked_bce forward f32", _BCE, "void fastseg::sum_kernel<float, unsigned char, false>",
         threads=256, elements=16, does=loads(*[16, 4, 4] * 4), read=6, written=0, instructions=54, target=0.85),
    cuda("masked_bce backward bf16", _BCE, "void fastseg::gradient_kernel<__nv_bfloat16, unsigned char, false>",
         threads=256, elements=32, does=loads(*[16, 16, 8, 8] * 4, 8, 8, 4) | {"MUFU": 64},
         read=4, written=2, instructions=48, target=0.95),
    cuda("masked_bce backward f32", _BCE, "void fastseg::gradient_kernel<float, unsigned char, false>",
         threads=256, elements=16, does=loads(*[16, 16, 4, 4] * 4, 8, 8, 4) | {"MUFU": 32},
         read=6, written=4, instructions=80, target=0.95),
    cuda("patch_entropy forward f16", _ENTROPY, "void fastseg::cells_kernel<__half, false, false, 8>",
         threads=256, elements=32, does=loads(*[16] * 4), read=2, written=0, instructions=19, target=0.65),
    cuda("patch_entropy forward f32", _ENTROPY, "void fastseg::cells_kernel<float, false, false, 4>",
         threads=256, elements=16, does=loads(*[16] * 4), read=4, written=0, instructions=34, target=0.90),
    cuda("patch_entropy forward logits f16", _ENTROPY, "void fastseg::cells_kernel<__half, true, false, 8>",
         threads=256, elements=32, does=loads(*[16] * 4), read=2, written=0),
    cuda("patch_entropy backward f16", "patch_entropy_backward.cu", "void fastseg::gradient_kernel<__half, false, 8>",
         threads=256, elements=8, does=loads(16, *[4] * 16), read=2, written=2, instructions=80),
    cuda("patch_entropy backward f32", "patch_entropy_backward.cu", "void fastseg::gradient_kernel<float, false, 4>",
         threads=256, elements=4, does=loads(16, *[4] * 8), read=4, written=4, instructions=130),
    cuda("patch_entropy backward logits f32", "patch_entropy_backward.cu",
         "void fastseg::gradient_kernel<float, true, 4>", threads=256, elements=4, does=loads(16, *[4] * 8), read=4,
         written=4, instructions=100),
    # Four channels of a voxel, whose logarithms take 13 FMAs each.
    cuda("patch_entropy categorical f32", "patch_entropy_categorical.cu",
         "void fastseg::categorical_cells_kernel<float, false>", threads=128, elements=4,
         does=loads(*[4] * 4) | {"I2FP": 4, "LDS": 4}, read=4, written=0, instructions=37),
    # A line of two cells of a window; every cell is read by 8 windows, from a cache by 7 of them.
    cuda("patch_entropy windows f32", "patch_entropy_few_cells.cu", "void fastseg::windows_kernel<float>", threads=256,
         elements=2, does=loads(4, 4), read=0.5, written=0.5, instructions=43),
    # 16 parts from logits and 32 channels; an element is a value of either, a lane has 8 voxels of 6 rows.
    cuda("soft_region_pool forward f32", _SOFT, "void fastseg::product_kernel<4, false>", threads=128, elements=48,
         does=loads(*[16] * 12) | {"HMMA": 48, "MUFU": 24}, read=4, written=0, instructions=36, target=0.70,
         shared=4 * 18 * 128),
    cuda("soft_region_pool forward bf16", _SOFT, "void fastseg::product_kernel<4, false>", threads=128, elements=48,
         does=loads(*[16] * 6) | {"HMMA": 32, "MUFU": 24}, read=2, written=0, instructions=19, target=0.50,
         shared=4 * 18 * 128),
    # A tile of 64 voxels and 32 channels, int64 labels; within, 8 voxels at a time of one region or of different ones.
    cuda("region_pool 64 regions f32", _COLUMNS, "void fastseg::column_kernel<float, 1>", threads=32, elements=64,
         does=loads(*[16] * 16, 8, 8) | {"STS": 22, "LDS": 8, "ATOMS": 1}, inner=(8, {"LDS": 6, "STS": 2}),
         read=4.25, written=0, instructions=15, target=0.70, shared=17556),
    cuda("region_pool 64 regions f32, random labels", _COLUMNS, "void fastseg::column_kernel<float, 1>", threads=32,
         elements=64, does=loads(*[16] * 16, 8, 8) | {"STS": 30, "LDS": 16, "ATOMS": 1},
         inner=(8, {"LDS": 14, "STS": 10}), read=4.25, written=0, instructions=20, target=0.55, shared=17556),
    # Two tiles, of each 8 voxels a thread, and 4 bytes of links from a cache; where a region goes on from thread to
    # thread, sums go through shuffles besides.
    cuda("region_pool 16384 regions f32, random labels", _SORTED, "void fastseg::pool_kernel<float>", threads=512,
         elements=16, does=loads(*[16] * 8) | {"SHFL": 4, "BAR": 4}, read=4.25, written=0, instructions=33,
         target=0.40, shared=4 * (4096 + 16384)),
    cuda("region_pool 16384 regions f32, large regions", _SORTED, "void fastseg::pool_kernel<float>", threads=512,
         elements=16, does=loads(*[16] * 8) | {"SHFL": 14, "BAR": 4}, read=4.25, written=0, instructions=36,
         target=0.40, shared=4 * (4096 + 16384)),
    # 8 voxels a thread, int64 labels, two digits.
    cuda("region_pool order, 2^16 regions", _SORTED, "fastseg::order_kernel", threads=512, elements=8,
         does=loads(*[8] * 8) | {"MATCH": 8, "STG": 9}, inner=(2, {"MATCH": 8}), read=8, written=4, instructions=120),
    # 16 bytes of voxels of 4 channels; tables come from caches, an int64 label is of 16 channels.
    cuda("region_pool backward f32", _GATHER, "void fastseg::gather_kernel<float, false, true>", threads=256,
         elements=16, does=loads(*[16] * 4) | {"STG": 4}, read=0.5, written=4, instructions=10),
    cuda("region_pool backward var f32", _GATHER, "void fastseg::gather_kernel<float, true, true>", threads=256,
         elements=16, does=loads(*[16] * 16) | {"STG": 4}, read=4.5, written=4, instructions=20),
    cuda("region_pool backward bf16", _GATHER, "void fastseg::gather_kernel<__nv_bfloat16, false, true>", threads=256,
         elements=32, does=loads(*[16] * 8) | {"STG": 4}, read=0.5, written=2, instructions=6),
]  # fmt: skip
