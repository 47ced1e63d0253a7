# SPDX-License-Identifier: BSD-3-Clause
"""Every benchmark, bench_*.py, in one run: `make bench`."""

import importlib
from pathlib import Path

from harness import main

OPS = [importlib.import_module(file.stem).OP for file in sorted(Path(__file__).parent.glob("bench_*.py"))]

if __name__ == "__main__":
    main(OPS)
