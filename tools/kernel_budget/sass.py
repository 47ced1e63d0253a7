# SPDX-License-Identifier: BSD-3-Clause
"""Reads cubins: resources and instructions of each kernel, and the cheapest path through their main loops."""

import heapq
import itertools
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_GLOBAL_LOADS = ("LDG", "LDGSTS", "LD")


@dataclass
class Instruction:
    address: int
    predicate: str
    opcode: str  # with its suffixes
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def load_bytes(self) -> int:
        """Of a load from global memory, else 0."""
        if self.name not in _GLOBAL_LOADS:
            return 0
        suffixes = self.opcode.split(".")
        for suffix, width in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
            if suffix in suffixes:
                return width
        return 4

    @property
    def target(self) -> int | None:
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found.group(1), 16) if self.name in ("BRA", "JMP") and found else None

    def registers(self) -> tuple[set[int], set[int]]:
        """Those it reads, and those a load writes."""
        operands = re.split(r",\s*", self.operands)
        written = set()
        if self.load_bytes and self.name != "LDGSTS":
            first = re.match(r"R(\d+)", operands[0])
            written = (
                {int(first.group(1)) + i for i in range(max(1, self.load_bytes // 4))} if first else set()
            )
        stores = self.name in ("STG", "STS", "STL", "ST", "RED", "LDGSTS")
        read = set()
        for text in operands if stores else operands[1:]:
            for number, wide in re.findall(r"\bR(\d+)((?:\.64)?)", text):
                read |= {int(number), int(number) + 1} if wide else {int(number)}
        return read, written


@dataclass
class Kernel:
    """One entry function of a cubin. ``shared`` is static; bytes."""

    cubin: Path
    symbol: str
    name: str  # demangled
    registers: int
    stack: int
    shared: int
    local: int

    @cached_property
    def code(self) -> list[Instruction]:
        listing = run(cuobjdump(), "-sass", "-fun", self.symbol, str(self.cubin))
        return [
            Instruction(int(address, 16), predicate or "", opcode, operands.strip())
            for address, predicate, opcode, operands in _INSTRUCTION.findall(listing)
        ]

    @property
    def spills(self) -> int:
        """Instructions that touch local memory."""
        return sum(i.name in ("LDL", "STL") for i in self.code)


@dataclass
class Turn:
    """The instructions of one turn of a loop, or from entry to exit."""

    instructions: list[Instruction]
    is_loop: bool

    def in_flight(self) -> tuple[int, int]:
        """The most bytes, and the most loads, that one thread has asked for and not used yet."""
        pending: list[tuple[set[int], int]] = []
        best = (0, 0)
        for instruction in self.instructions * (2 if self.is_loop else 1):
            read, written = instruction.registers()
            pending = [load for load in pending if not load[0] & read]
            if instruction.load_bytes:
                pending.append((written, instruction.load_bytes))
                best = max(best, (sum(size for _, size in pending), len(pending)))
        return best

    def with_inner(self, inner: "Turn", times: int) -> "Turn":
        """With a loop that the turn goes through once run so often, in place of what the two have in common."""
        addresses = {instruction.address for instruction in inner.instructions}
        common = [i for i, instruction in enumerate(self.instructions) if instruction.address in addresses]
        if not inner.is_loop or not common:
            raise LookupError("the inner loop is no loop, or not within the turn")
        before = self.instructions[: common[0]]
        after = [i for i in self.instructions[common[0] :] if i.address not in addresses]
        return Turn(before + inner.instructions * times + after, self.is_loop)

    def widths(self) -> dict[int, int]:
        """How many loads there are of each width in bytes."""
        sizes = [i.load_bytes for i in self.instructions if i.load_bytes]
        return {size: sizes.count(size) for size in sorted(set(sizes), reverse=True)}


@cache
def tool(name: str) -> str | None:
    """cuobjdump: on the PATH, beside nvcc, or the one in Triton's package."""
    beside = [Path(p).resolve().parent for p in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc") if p]
    try:
        import triton.backends.nvidia as nvidia

        beside += [Path(folder) / "bin" for folder in nvidia.__path__]
    except ImportError:
        pass
    found = shutil.which(name)
    return found or next((str(folder / name) for folder in beside if (folder / name).is_file()), None)


def run(*command: str, text: str | None = None, cwd: Path | None = None) -> str:
    return subprocess.run(command, input=text, cwd=cwd, capture_output=True, text=True, check=True).stdout


def cuobjdump() -> str:
    if (found := tool("cuobjdump")) is None:
        raise FileNotFoundError("cuobjdump is neither on the PATH, nor beside nvcc, nor in Triton's package")
    return found


def read_cubin(path: Path) -> list[Kernel]:
    listed = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", run(cuobjdump(), "-res-usage", str(path)))
    symbols = [symbol for symbol, _ in listed]
    names = run("c++filt", text="\n".join(symbols)).splitlines() if shutil.which("c++filt") else symbols
    kernels = []
    for (symbol, numbers), name in zip(listed, names, strict=True):
        of = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", numbers)}
        name = name.replace("(anonymous namespace)::", "")
        kernels.append(Kernel(path, symbol, name, of["REG"], of["STACK"], of["SHARED"], of.get("LOCAL", 0)))
    return kernels


def blocks_of(code: list[Instruction]) -> dict[int, tuple[list[Instruction], list[int]]]:
    """Basic blocks by address, with the addresses of those that may follow; -1 is the end of the kernel."""
    starts = {code[0].address} | {i.target for i in code if i.target is not None}
    for instruction, after in itertools.pairwise(code):
        if instruction.name in ("BRA", "JMP", "EXIT", "BRX", "BRXU", "RET"):
            starts.add(after.address)
    blocks: dict[int, tuple[list[Instruction], list[int]]] = {}
    for instruction in code:
        if instruction.address in starts:
            current = blocks.setdefault(instruction.address, ([], []))
        current[0].append(instruction)
    ordered = sorted(blocks)
    for start, after in zip(ordered, [*ordered[1:], -1], strict=True):
        instructions, successors = blocks[start]
        last = instructions[-1]
        conditional = bool(last.predicate) or bool(re.match(r"!?U?P\d", last.operands))
        if last.opcode == "BRA.DIV":  # the way of a warp whose lanes are apart, to slow shuffles: not taken
            successors.append(after)
        elif last.target is not None:
            successors += [last.target, *([after] if conditional else [])]
        elif last.name in ("EXIT", "RET"):
            successors += [-1, *([after] if conditional else [])]
        elif not last.name.startswith("BRX"):
            successors.append(after)
    # A jump through a table (a switch) may go to any later block that nothing else leads to.
    led_to = {after for _, successors in blocks.values() for after in successors}
    for start, (instructions, successors) in blocks.items():
        if instructions[-1].name.startswith("BRX"):
            successors += [block for block in ordered if block > start and block not in led_to]
    return blocks


def cheapest_turn(code: list[Instruction], does: dict[str, int]) -> Turn | None:
    """The turn of a loop with the fewest instructions that does exactly this: numbers of global loads by their width
    ("load 16"), all widths that there are, or of instructions by their name ("HMMA"). If no loop does, the cheapest way
    from entry to exit that does; else None."""
    blocks = blocks_of(code)
    goal = tuple(sorted(does.items()))
    looks_at_loads = any(key.startswith("load ") for key in does)

    def work_of(block: list[Instruction]) -> Counter[str]:
        loads = [f"load {i.load_bytes}" for i in block if i.load_bytes and looks_at_loads]
        return Counter(loads + [i.name for i in block if i.name in does])

    work = {start: work_of(instructions) for start, (instructions, _) in blocks.items()}

    def search(begin: int, end: int) -> list[int] | None:
        queue: list[tuple[int, int, tuple, tuple]] = [(0, begin, (), (begin,))]
        seen = set()
        while queue:
            cost, at, done, path = heapq.heappop(queue)
            arrived = at == end and len(path) > 1
            if arrived and done == goal:
                return list(path[:-1])
            if arrived or at == -1 or (at, done) in seen:
                continue
            if len(path) > 1:  # the first block of a loop is met again at its end
                seen.add((at, done))
            instructions, successors = blocks[at]
            now = Counter(dict(done)) + work[at]
            if any(count > does.get(key, 0) for key, count in now.items()):
                continue
            for after in successors:
                heapq.heappush(
                    queue, (cost + len(instructions), after, tuple(sorted(now.items())), (*path, after))
                )
        return None

    heads = sorted(
        {after for start, (_, afters) in blocks.items() for after in afters if -1 < after <= start}
    )
    loops = [path for head in heads if (path := search(head, head))]
    paths = loops or [p for p in [search(code[0].address, -1)] if p]
    turns = [Turn([i for start in path for i in blocks[start][0]], bool(loops)) for path in paths]
    return min(turns, key=lambda turn: len(turn.instructions), default=None)
