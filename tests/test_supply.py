# SPDX-License-Identifier: BSD-3-Clause
"""The packages, licences, hashes and oldest versions that tools.supply tells of."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from tools import supply


def test_every_dependency_has_a_licence_that_lets_it_be_used() -> None:
    rows = {
        name: licence for name, _, licence in (row.strip("| ").split(" | ") for row in supply.table()[2:])
    }
    assert {"torch", "numpy", "h5py", "pydantic-core", "pillow"} <= set(rows)  # of ours, and of theirs
    assert "fastseg" not in rows
    assert "pytest" not in rows
    assert [name for name, licence in rows.items() if licence == "not stated"] == []


def test_a_wheel_is_billed_file_by_file(tmp_path: Path) -> None:
    wheel = tmp_path / "fastseg-1.2-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fastseg/__init__.py", "x = 1\n")
    found = supply.bill(wheel)
    assert found["metadata"]["component"]["version"] == "1.2"
    assert (
        found["metadata"]["component"]["hashes"][0]["content"]
        == hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    (file,) = (c for c in found["components"] if c["type"] == "file")
    assert file["hashes"][0]["content"] == hashlib.sha256(b"x = 1\n").hexdigest()
    assert any(c.get("purl", "").startswith("pkg:pypi/torch@") for c in found["components"])


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    found = supply.oldest((supply.ROOT / "pyproject.toml").read_text())
    assert "torch==2.11" in found
    assert "h5py==3.10" in found
    assert not any("pytest" in line or "numpy" in line for line in found)
