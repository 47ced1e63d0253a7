# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tools.kernel_budget [--arch sm_90] [words of a label]``: the table of
docs/kernel_budget.md, of the extension as it is built here."""

import argparse
import tempfile
from pathlib import Path

from .gpu import GPUS
from .kernels import KERNELS
from .report import HEADER, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", action="append", choices=list(GPUS), help="default: all")
    parser.add_argument("words", nargs="*", help="only kernels whose label has all of them")
    options = parser.parse_args()
    print("\n".join(HEADER))
    with tempfile.TemporaryDirectory() as folder:
        for architecture in options.arch or GPUS:
            for budget in KERNELS:
                if all(word in budget.label for word in options.words):
                    print(measure(budget, architecture, Path(folder)).row(), flush=True)


if __name__ == "__main__":
    main()
