# SPDX-License-Identifier: BSD-3-Clause
"""What `import fastseg` does where something is missing."""

from __future__ import annotations

import subprocess
import sys


def _import_without(module: str) -> str:
    code = f"import sys; sys.modules[{module!r}] = None; import fastseg"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def test_without_torch_says_what_to_install() -> None:
    told = _import_without("torch")
    assert "fastseg needs torch >= 2.11" in told
    assert "pip install torch" in told
    assert told.count("Traceback") == 1


def test_a_torch_that_lacks_something_says_so_itself() -> None:
    assert "fastseg needs torch" not in _import_without("typing_extensions")
