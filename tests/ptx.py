# SPDX-License-Identifier: BSD-3-Clause
"""Reads PTX: which exponentials are of a difference that a product was contracted into."""

from __future__ import annotations

import re

DEFINITION = re.compile(r"\s*(?:@!?%p\d+ )?([\w.]+)\s+(%[rf]\d+), ([^;]*);")
PASSED_ON = ("mov", "selp", "neg", "min", "max", "abs")  # what hands a number on as it is, or one of several


def contracted_exponents(ptx: str) -> list[str]:
    """The exponentials of z - shift in which z is a product that was not rounded before, or need not be by ptxas:
    `fma.rn.f32 %z, a, b, -shift`, or `sub.f32` of a `mul.f32` without `.rn`."""
    definitions: dict[str, list[tuple[str, str]]] = {}
    for line in ptx.splitlines():
        if found := DEFINITION.match(line):
            definitions.setdefault(found[2], []).append((found[1], found[3]))

    def sources(operands: str, seen: frozenset[str]):
        for register in re.findall(r"%[rf]\d+", operands):
            if register in seen:
                continue
            for opcode, inputs in definitions.get(register, []):
                if opcode.startswith(PASSED_ON):
                    yield from sources(inputs, seen | {register})
                else:
                    yield opcode, inputs

    def contracted(operands: str) -> bool:
        for opcode, inputs in sources(operands, frozenset()):
            if opcode.startswith("fma") and not inputs.endswith("0f00000000"):
                return True
            if opcode in ("sub.f32", "add.f32", "sub.ftz.f32", "add.ftz.f32"):
                products = [
                    found for found, _ in sources(inputs, frozenset()) if found in ("mul.f32", "mul.ftz.f32")
                ]
                if products:
                    return True
        return False

    found = [line.strip() for line in ptx.splitlines() if "ex2." in line]
    assert found, "there is no exponential in this PTX"
    return [line for line in found if contracted(line.split(",", 1)[1])]
