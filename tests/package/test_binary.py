# SPDX-License-Identifier: BSD-3-Clause
"""What readelf prints is read, and each thing that an extension module must not ask for is refused."""

import pytest

from fastseg import _C

from .binary import binary_trouble, newest_versions, parse, read_binary

READELF = """\
Dynamic section at offset 0x314c30 contains 30 entries:
  Tag        Type                         Name/Value
 0x0000000000000001 (NEEDED)             Shared library: [libtorch_cpu.so]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]

Symbol table '.dynsym' contains 435 entries:
   Num:    Value          Size Type    Bind   Vis      Ndx Name
     0: 0000000000000000     0 NOTYPE  LOCAL  DEFAULT  UND
     1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND PyErr_SetString
     2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.14 (3)
     3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND log@GLIBC_2.29 (4)
     4: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND _ZNSolsEi@GLIBCXX_3.4 (5)
     5: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND aoti_torch_get_sizes
     6: 0000000000000000     0 NOTYPE  WEAK   DEFAULT  UND __gmon_start__
     7: 000000000012f0a0    12 FUNC    GLOBAL DEFAULT   12 PyInit__C
"""


def test_what_readelf_prints() -> None:
    binary = parse(READELF)
    assert binary.needed == ("libtorch_cpu.so", "libc.so.6")
    assert binary.search_path == ()
    assert ("memcpy", "GLIBC_2.14") in binary.undefined
    assert {"", "PyInit__C"}.isdisjoint(name for name, _ in binary.undefined)
    assert len(binary.undefined) == 6
    assert binary_trouble(binary) == []
    assert newest_versions(binary) == ["GLIBC_2.29", "GLIBCXX_3.4"]


@pytest.mark.parametrize(
    ("line", "trouble"),
    [
        (" 0x01 (NEEDED)             Shared library: [libc10.so]", "needs the library libc10.so"),
        (" 0x01 (NEEDED)             Shared library: [libcudart.so.13]", "needs the library libcudart.so.13"),
        (
            " 0x01 (NEEDED)             Shared library: [libtorch_python.so]",
            "needs the library libtorch_python.so",
        ),
        (
            " 0x1d (RUNPATH)            Library runpath: [/opt/torch/lib]",
            "searches for libraries in /opt/torch/lib",
        ),
        (" 0x0f (RPATH)              Library rpath: [$ORIGIN]", "searches for libraries in $ORIGIN"),
    ],
)
def test_a_library_is_refused(line: str, trouble: str) -> None:
    assert binary_trouble(parse(f"{line}\n{READELF}")) == [trouble]


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN3c106detail14torchCheckFailEPKcS2_jRKSs",  # c10::detail::torchCheckFail
        "_ZN2at4_ops5empty4callEv",  # at::_ops::empty::call
        "_ZNK5torch8autograd4NodeE",  # torch::autograd::Node
        "THPVariable_Wrap",
        "omp_get_num_threads",
        "cudaMalloc",
    ],
)
def test_a_symbol_is_refused(symbol: str) -> None:
    line = f"     9: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND {symbol}\n"
    assert binary_trouble(parse(READELF + line)) == [f"needs the symbol {symbol}"]


def test_another_library_s_version_is_refused() -> None:
    line = "     9: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND GOMP_parallel@GOMP_4.0 (6)\n"
    assert binary_trouble(parse(READELF + line)) == ["needs the symbol GOMP_parallel@GOMP_4.0"]


def test_a_file_without_symbols_is_refused() -> None:
    assert binary_trouble(parse("")) == ["has no undefined symbol: this is not an extension module"]


def test_the_extension_that_the_tests_use_is_clean() -> None:
    binary = read_binary(_C.__file__)
    assert binary_trouble(binary) == []
    assert ("aoti_torch_get_dim", "") in binary.undefined
    assert any(version.startswith("GLIBC_2.") for version in newest_versions(binary))
