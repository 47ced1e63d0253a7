# SPDX-License-Identifier: BSD-3-Clause
"""A sdist or wheel with a file too many or too few, or with a word of the machine that built it, is refused."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from .contents import EXTENSION, PYTHON_TAG, sdist_names, sdist_trouble, wheel_trouble

TRACKED = [
    ".ci/run",
    "LICENSE",
    "python/fastseg/__init__.py",
    "python/fastseg/py.typed",
    "kernels/triton/a.py",
    "kernels/tuning/sm_90.json",
]
INFO = "fastseg-0.1.0.dist-info/"
METADATA = """\
Metadata-Version: 2.4
Name: fastseg
License-Expression: BSD-3-Clause
Requires-Dist: torch>=2.11
Requires-Dist: numpy
Requires-Dist: h5py>=3.8; extra == "train"

# fastseg
"""
FILES = {
    "fastseg/__init__.py": b"",
    "fastseg/py.typed": b"",
    "fastseg/triton/a.py": b"",
    "fastseg/tuning/sm_90.json": b"",
    EXTENSION: b"\0csrc/masked_bce.cpp\0",
    INFO + "METADATA": METADATA.encode(),
    **{INFO + name: b"" for name in ("WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")},
}


def make_sdist(folder: Path, names: list[str]) -> Path:
    path = folder / "fastseg-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"fastseg-0.1.0/{name}"), io.BytesIO())
    return path


def make_wheel(
    folder: Path, files: dict[str, bytes], tag: str = f"{PYTHON_TAG}-{PYTHON_TAG}-linux_x86_64"
) -> Path:
    path = folder / f"fastseg-0.1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_sdist_is_what_git_tracks(tmp_path: Path) -> None:
    names = [*TRACKED[1:], "PKG-INFO"]
    assert sdist_trouble(make_sdist(tmp_path, names), TRACKED) == []
    assert sdist_names(make_sdist(tmp_path, names)) == set(names)
    assert sdist_trouble(make_sdist(tmp_path, [*names, "notes.txt"]), TRACKED) == [
        "holds notes.txt, which does not belong there"
    ]
    assert sdist_trouble(make_sdist(tmp_path, [*names, "notes.txt"]), None) == []
    assert sdist_trouble(make_sdist(tmp_path, [".ci/run", *names[1:]]), TRACKED) == [
        "lacks LICENSE",
        "holds .ci/run, which does not belong there",
    ]


def test_wheel_holds_what_the_sdist_has(tmp_path: Path) -> None:
    assert wheel_trouble(make_wheel(tmp_path, FILES), set(TRACKED)) == []


@pytest.mark.parametrize(
    "absent",
    [
        "fastseg/py.typed",
        "fastseg/triton/a.py",
        "fastseg/tuning/sm_90.json",
        EXTENSION,
        INFO + "licenses/LICENSE",
    ],
)
def test_wheel_that_lacks_a_file(tmp_path: Path, absent: str) -> None:
    files = {name: content for name, content in FILES.items() if name != absent}
    assert wheel_trouble(make_wheel(tmp_path, files), set(TRACKED)) == [f"lacks {absent}"]


@pytest.mark.parametrize(
    "extra",
    ["tests/conftest.py", ".ci/run", "fastseg/cells.h5", "fastseg/_C.abi3.so"],
)
def test_wheel_that_holds_too_much(tmp_path: Path, extra: str) -> None:
    told = wheel_trouble(make_wheel(tmp_path, {**FILES, extra: b""}), set(TRACKED))
    assert told == [f"holds {extra}, which does not belong there"]


def test_wheel_that_knows_where_it_was_built(tmp_path: Path) -> None:
    files = {**FILES, EXTENSION: b"\0/home/ann/fastseg/csrc/masked_bce.cpp\0"}
    (told,) = wheel_trouble(make_wheel(tmp_path, files), set(TRACKED))
    assert f"{EXTENSION} names a file of the machine that built it: /home/ann/fastseg/csrc" in told


def test_wheel_for_one_python(tmp_path: Path) -> None:
    (told,) = wheel_trouble(make_wheel(tmp_path, FILES, "cp310-abi3-linux_x86_64"), set(TRACKED))
    assert "is for another Python" in told


def test_wheel_that_brings_more_than_the_ops_need(tmp_path: Path) -> None:
    metadata = METADATA.replace("Requires-Dist: numpy", "Requires-Dist: numpy\nRequires-Dist: h5py")
    metadata = metadata.replace("License-Expression: BSD-3-Clause\n", "")
    told = wheel_trouble(make_wheel(tmp_path, {**FILES, INFO + "METADATA": metadata.encode()}), set(TRACKED))
    assert told == [
        "requires ['torch>=2.11', 'numpy', 'h5py'], expected ['torch>=2.11', 'numpy']",
        "names no license",
    ]


def test_wheel_that_is_too_large(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {**FILES, EXTENSION: os.urandom(4 << 20)})
    (told,) = wheel_trouble(wheel, set(TRACKED))
    assert "at most 3,145,728 are expected of a wheel" in told
    assert wheel_trouble(wheel, set(TRACKED), cuda=True) == []
