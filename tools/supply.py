# SPDX-License-Identifier: BSD-3-Clause
"""What fastseg brings along: the packages it depends on with their licences, the files of a wheel with their hashes.

    python -m tools.supply licences            # a table of this environment
    python -m tools.supply sbom WHEEL          # a CycloneDX document
    python -m tools.supply oldest              # the oldest versions that pyproject.toml admits, for pip install -c

Reads installed packages and asks nobody.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train",)  # beside what every installation has


def packages(extras: Iterable[str] = EXTRAS) -> Iterator[metadata.Distribution]:
    """fastseg's dependencies, and theirs, that are installed here; each once."""
    waiting = [Requirement(f"fastseg[{','.join(extras)}]")]
    seen: set[tuple[str, frozenset[str]]] = set()
    told: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # of another platform
        if key[0] not in told and key[0] != "fastseg":
            told.add(key[0])
            yield found
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")
            ):
                waiting.append(needed)


def licence(found: metadata.Distribution) -> str:
    stated = found.metadata
    classified = [
        c.rsplit(" :: ", 1)[1] for c in stated.get_all("Classifier") or () if c.startswith("License ::")
    ]
    text = stated.get("License-Expression") or "; ".join(classified) or stated.get("License") or ""
    return text.strip().split("\n")[0][:80] or "not stated"


def table() -> list[str]:
    rows = sorted((canonicalize_name(f.metadata["Name"]), f.version, licence(f)) for f in packages())
    return ["| package | version | licence |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def bill(wheel: Path) -> dict[str, Any]:
    """CycloneDX 1.5: packages as libraries, the wheel's files with their SHA-256."""
    libraries = [
        {
            "type": "library",
            "name": found.metadata["Name"],
            "version": found.version,
            "purl": f"pkg:pypi/{canonicalize_name(found.metadata['Name'])}@{found.version}",
            "licenses": [{"license": {"name": licence(found)}}],
        }
        for found in packages()
    ]
    with zipfile.ZipFile(wheel) as archive:
        files = [
            {"type": "file", "name": name, "hashes": [_sha256(archive.read(name))]}
            for name in sorted(archive.namelist())
            if not name.endswith("/")
        ]
    name, version = wheel.name.split("-")[:2]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "name": name,
                "version": version,
                "hashes": [_sha256(wheel.read_bytes())],
            }
        },
        "components": [*sorted(libraries, key=lambda c: c["purl"]), *files],
    }


def oldest(pyproject: str) -> list[str]:
    """name==version for each lower bound of the dependencies and of the extras that users install."""
    lines = []
    for line in re.findall(
        r'^\s*"([A-Za-z0-9_.-]+(?:\[[^]]*\])?\s*>=[^"]*)"', _requirements(pyproject), re.MULTILINE
    ):
        needed = Requirement(line)
        (bound,) = (s.version for s in needed.specifier if s.operator == ">=")
        lines.append(f"{needed.name}=={bound}" + (f"; {needed.marker}" if needed.marker else ""))
    return lines


def _requirements(pyproject: str) -> str:
    """A requirement a line: of `dependencies` and of the extra `train`."""
    (always,) = re.findall(r"^dependencies = \[(.*?)\]$", pyproject, re.MULTILINE | re.DOTALL)
    (train,) = re.findall(r"^train = \[(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
    return f"{always},{train}".replace(",", "\n")


def _sha256(content: bytes) -> dict[str, str]:
    return {"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.supply", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("licences", "sbom", "oldest"))
    parser.add_argument("wheel", nargs="?", type=Path)
    options = parser.parse_args()
    if (options.what == "sbom") != (options.wheel is not None):
        parser.error("sbom takes a wheel, the others none")
    if options.what == "sbom":
        json.dump(bill(options.wheel), sys.stdout, indent=1)
        print()
    else:
        print(
            "\n".join(
                table() if options.what == "licences" else oldest((ROOT / "pyproject.toml").read_text())
            )
        )


if __name__ == "__main__":
    main()
