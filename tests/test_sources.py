# SPDX-License-Identifier: BSD-3-Clause
"""What must not come into csrc and kernels, in source or in the built module."""

import re
import subprocess
from pathlib import Path

import pytest

from fastseg import _C

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("csrc", "kernels") for path in (ROOT / folder).rglob("*.*") if path.suffix != ".py"
)
STREAM_HEADER = r"#include <(iostream|sstream|fstream|iomanip|ostream|istream)>"
# Torch's macro of this name is not in the headers of every torch that fastseg builds with.
NEWER_MACRO = r"\bSTABLE_TORCH_ERROR_CODE_CHECK\("
PRINTING = r"ostream.*(operator<<|_M_insert|__ostream_insert)"


def lines_with(pattern: str, text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize(
    "pattern", [STREAM_HEADER, r"\bstd::\w*stringstream\b|\bstd::(cout|cerr)\b", NEWER_MACRO]
)
def test_sources_hold_none_of(pattern):
    found = {str(path.relative_to(ROOT)): lines_with(pattern, path.read_text()) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_patterns_bite():
    assert lines_with(STREAM_HEADER, "#include <sstream>")
    assert lines_with(NEWER_MACRO, "  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(a, b, c));")
    assert lines_with(PRINTING, "U std::ostream& std::ostream::_M_insert<long>(long)@GLIBCXX_3.4.9")


def test_module_prints_no_number_through_a_stream():
    """Neither our code nor what torch's headers bring: see csrc/stable.h."""
    symbols = subprocess.run(
        ["nm", "-C", "-D", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert lines_with(PRINTING, symbols) == []
