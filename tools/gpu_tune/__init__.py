# SPDX-License-Identifier: BSD-3-Clause
"""How the GPU kernels are best launched on the GPU that is here: `make gpu-tune`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # as scripts there see each other
