# SPDX-License-Identifier: BSD-3-Clause
"""The choices of the CUDA kernels, and the header tuning.h that the build makes of them: python cuda.py tuning.h

    #include "tuning.h"

    return tuning::crop([&](auto choice) {
      using Choice = decltype(choice);
      return launch(crop_kernel<Choice::kVectors>, blocks, Choice::kThreads, 0, stream, ...);
    });

The body is compiled once for each different choice of the architectures tuned, and once for the default; with --all,
for `make gpu-tune`, once for each candidate, of which fastseg_tuning_<kernel> says the one to run.
"""

import argparse
import itertools
import json
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
MOST_CANDIDATES = 16  # of a kernel: all of them are compiled for gpu-tune

# kernel: {choice: values}, the default first.
CHOICES = {
    "crop": {"threads": (256, 128, 512), "blocks_per_processor": (8, 4, 16)},
    "crop_gradient": {"threads": (256, 128), "blocks_per_processor": (8, 4, 16)},
}


def tables(folder: Path = HERE) -> dict[int, dict]:
    """{architecture: {kernel: {case: values}}} of the files sm_<architecture>.json."""
    return {
        int(file.stem.removeprefix("sm_")): json.loads(file.read_text())
        for file in sorted(folder.glob("sm_*.json"))
    }


def candidates(kernel: str) -> list[dict]:
    """All combinations, the default first."""
    return [
        dict(zip(CHOICES[kernel], values, strict=True))
        for values in itertools.product(*CHOICES[kernel].values())
    ]


SELECTOR = """
struct FastsegTuning {
  int candidate;
  long long asked;  // how often it was launched
};
"""
VARIABLE = """
__attribute__((visibility("default"))) inline FastsegTuning fastseg_tuning_KERNEL = {0, 0};
"""


def header(tuned: dict[int, dict], every_candidate: bool) -> str:
    text = "// Made by kernels/tuning/cuda.py: how each kernel is launched.\n#pragma once\n"
    text += '\n#include "cuda_utils.cuh"\n' + (SELECTOR if every_candidate else "")
    for kernel in CHOICES:
        if every_candidate:
            text += VARIABLE.replace("KERNEL", kernel)
            variable, kept = f"fastseg_tuning_{kernel}", candidates(kernel)
            select, arms, before = f"{variable}.candidate", dict(enumerate(kept)), f"  ++{variable}.asked;\n"
        else:
            default = candidates(kernel)[0]
            arms = {sm: _chosen(kernel, table, sm) for sm, table in tuned.items()}
            arms = {sm: values for sm, values in arms.items() if values != default}
            kept = [default, *({tuple(v.items()): v for v in arms.values()}.values())]
            select, before = "architecture()", ""
        name = _title(kernel)
        text += "\nnamespace fastseg::tuning {\n"
        for number, values in enumerate(kept):
            members = ", ".join(f"k{_title(choice)} = {int(value)}" for choice, value in values.items())
            text += f"struct {name}{number} {{ static constexpr int {members}; }};\n"
        text += f"template <class Body>\ncudaError_t {kernel}(Body body) {{\n{before}"
        if arms:
            text += f"  switch ({select}) {{\n"
            text += (
                "".join(f"    case {a}: return body({name}{kept.index(v)}());\n" for a, v in arms.items())
                + "  }\n"
            )
        text += f"  return body({name}0());\n}}\n}}  // namespace fastseg::tuning\n"
    return text


def _chosen(kernel: str, table: dict, architecture: int) -> dict:
    """The default and what the table has of it. A CUDA kernel has one case, which needs no name."""
    possible = candidates(kernel)
    values = possible[0] | table.get(kernel, {}).get("", {})
    if values not in possible:
        raise SystemExit(
            f"kernels/tuning/sm_{architecture}.json has {values} for {kernel}, which is none of its candidates in "
            f"kernels/tuning/cuda.py: run make gpu-tune"
        )
    return values


def _title(name: str) -> str:
    return "".join(part.title() for part in name.split("_"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("header", type=Path)
    parser.add_argument("--all", action="store_true", help="every candidate, to be chosen at run time")
    options = parser.parse_args()
    text = header(tables(), options.all)
    if not options.header.exists() or options.header.read_text() != text:  # else all would be compiled again
        options.header.parent.mkdir(parents=True, exist_ok=True)
        scratch = options.header.with_name(f"{options.header.name}.{os.getpid()}")
        scratch.write_text(text)
        scratch.replace(options.header)


if __name__ == "__main__":
    main()
