# SPDX-License-Identifier: BSD-3-Clause
"""Everything a machine with a GPU can tell about fastseg: `make gpu-check`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # as scripts there see each other
