# SPDX-License-Identifier: BSD-3-Clause
"""One line of the table: what a kernel's machine code holds, and the bounds that follow."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .gpu import GPUS, resident_blocks, shares
from .kernels import Budget
from .sass import Kernel, Turn, cheapest_turn, read_cubin

HEADER = (
    "| kernel | GPU | instructions an element (budget) | registers | spills | loads of a turn, bytes | warps"
    " | in flight, KB (needed) | bound by pipe | by loads | target |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


@dataclass
class Measured:
    budget: Budget
    architecture: str
    kernel: Kernel
    turn: Turn

    @property
    def instructions(self) -> float:
        """Per element."""
        return len(self.turn.instructions) / self.budget.elements

    def row(self) -> str:
        budget, gpu = self.budget, GPUS[self.architecture]
        blocks = resident_blocks(
            gpu, budget.threads, self.kernel.registers, self.kernel.shared + budget.shared
        )
        resident = blocks * budget.threads
        by_pipe, pipe, by_loads = shares(
            gpu, self.turn, budget.elements, budget.read, budget.written, resident
        )
        needed = gpu.needed_in_flight * budget.read / (budget.read + budget.written)
        allowed = f" ({budget.instructions:g})" if budget.instructions else ""
        loads = " + ".join(f"{count} x {width}" for width, count in self.turn.widths().items())
        in_flight = self.turn.in_flight()[0] * resident
        target = f"{budget.target:.0%}" if budget.target else ""
        return (
            f"| {budget.label} | {gpu.name} | {self.instructions:.1f}{allowed} | {self.kernel.registers}"
            f" | {self.kernel.spills} | {loads} | {resident // 32}"
            f" | {in_flight / 1e3:.0f} ({needed / 1e3:.0f}) | {by_pipe:.0%} {pipe} | {by_loads:.0%} | {target} |"
        )


@cache
def _kernels(cubin: Path) -> list[Kernel]:
    return read_cubin(cubin)


def measure(budget: Budget, architecture: str, folder: Path) -> Measured:
    kernels = _kernels(budget.cubin(architecture, folder))
    found = [kernel for kernel in kernels if kernel.name.startswith(budget.name)]
    if len(found) != 1:
        names = "\n  ".join(kernel.name for kernel in kernels)
        raise LookupError(f"{budget.label}: {len(found)} kernels begin with {budget.name!r} among\n  {names}")
    turn = cheapest_turn(found[0].code, budget.does)
    if turn is None:
        raise LookupError(f"{budget.label}: no path of {found[0].name} does {budget.does}")
    if budget.inner:
        times, does = budget.inner
        inner = cheapest_turn(found[0].code, does)
        if inner is None:
            raise LookupError(f"{budget.label}: no loop within the turn of {found[0].name} does {does}")
        turn = turn.with_inner(inner, times)
    return Measured(budget, architecture, found[0], turn)
