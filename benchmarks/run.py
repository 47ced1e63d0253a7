# SPDX-License-Identifier: BSD-3-Clause
"""Every benchmark, bench_*.py, in one run: `make bench`."""

import importlib
from pathlib import Path

from harness import main

MODULES = [importlib.import_module(file.stem) for file in sorted(Path(__file__).parent.glob("bench_*.py"))]
OPS = [
    module.OP for module in MODULES if hasattr(module, "OP")
]  # those of loading and the like run by themselves

if __name__ == "__main__":
    main(OPS)
