# SPDX-License-Identifier: BSD-3-Clause
"""What a multiprocessor of each generation holds and issues, and the bounds on a kernel that follow."""

from collections import Counter
from dataclasses import dataclass

from .sass import Turn

THREADS, BLOCKS, REGISTERS = 2048, 32, 65536  # of a multiprocessor, the same in all three generations
# Instructions a clock on a multiprocessor, from the throughput table of the CUDA programming guide: 128 are issued.
ISSUE = 128
PIPES = {
    name: (pipe, rate)
    for pipe, rate, names in (
        # F2FP and I2FP are quick conversions, unlike F2F and I2F.
        (
            "ALU",
            64,
            "LOP3 SHF PRMT SEL FSEL FSETP FMNMX ISETP IADD3 IADD IMNMX VIMNMX PLOP3 LEA IABS HMNMX2 F2FP I2FP",
        ),
        ("FMA heavy", 64, "IMAD HADD2 HMUL2 HFMA2"),
        ("special", 16, "MUFU POPC F2F F2I I2F FLO BREV FCHK"),
        ("float64", 64, "DADD DMUL DFMA DSETP"),
        ("load store", 32, "LDG STG LDS STS SHFL LDGSTS ATOMS RED"),
    )
    for name in names.split()
}


@dataclass(frozen=True)
class Gpu:
    """Rates of a representative device. ``copy`` is in bytes a second; ``clock`` is what it keeps up under load."""

    name: str
    processors: int
    clock: float
    copy: float
    shared: int  # bytes of a multiprocessor; a block takes 1 KiB more than it asks for

    @property
    def needed_in_flight(self) -> float:
        """Bytes a multiprocessor must have asked for to keep memory busy (Little's law), at a latency of 0.94 us: what
        makes 30 KB of an H200."""
        return self.copy / self.processors * 0.94e-6


# The H200 is measured (GPU.md: copy 4.2 TB/s; 36 instructions a voxel of 4 bytes make 85 % of it). The others are data
# sheets: memory at 0.875 of the nominal bandwidth, which is the H200's ratio.
GPUS = {
    "sm_80": Gpu("A100 80 GB", 108, 1.41e9, 0.875 * 2.04e12, 164 * 1024),
    "sm_90": Gpu("H200", 132, 1.90e9, 4.2e12, 228 * 1024),
    "sm_100": Gpu("B200", 148, 1.85e9, 0.875 * 8.0e12, 228 * 1024),
}


def resident_blocks(gpu: Gpu, threads: int, registers: int, shared: int) -> int:
    """Blocks of a kernel that a multiprocessor holds at once."""
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // 4 // of_warp * 4 // warps  # a quarter of them belongs to each scheduler
    return min(BLOCKS, THREADS // (warps * 32), by_registers, gpu.shared // (shared + 1024))


def busiest_pipe(turn: Turn) -> tuple[str, float]:
    """The pipe that takes longest, and its clocks a thread and turn; issuing instructions is one."""
    clocks: Counter[str] = Counter(issue=len(turn.instructions) / ISSUE)
    for instruction in turn.instructions:
        pipe, rate = PIPES.get(instruction.name, ("", 0))
        if pipe:
            clocks[pipe] += 1 / rate
    return max(clocks.items(), key=lambda item: item[1])


def shares(
    gpu: Gpu, turn: Turn, elements: int, read: float, written: float, threads: int
) -> tuple[float, str, float]:
    """Upper bounds on the share of copy bandwidth: by the busiest pipe (and its name), and by the bytes in flight of
    ``threads`` resident threads. ``read`` and ``written`` are bytes per element."""
    pipe, clocks = busiest_pipe(turn)
    elements_per_second = gpu.processors * gpu.clock * elements / clocks
    by_pipe = elements_per_second * (read + written) / gpu.copy
    in_flight = turn.in_flight()[0] * threads
    return by_pipe, pipe, in_flight / (gpu.needed_in_flight * read / (read + written))
