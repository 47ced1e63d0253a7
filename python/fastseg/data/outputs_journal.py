# SPDX-License-Identifier: BSD-3-Clause
"""The folder ``<path>.partial`` of an output that is not whole yet: its plan, and what is finished of it.

plan.json says what is being written; it is written last when the folder is made, so a folder without one holds
nothing. Each rank appends a line to a manifest of its own after the data of a block have reached the disk.
A line carries its checksum: what a crash tore is dropped together with whatever follows it.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fastseg.errors import InputError

_PLAN = "plan.json"


class Journal:
    """Plan and manifests under ``<path>.partial``. OSErrors are the caller's to translate."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folder = path + ".partial"
        self._manifest: Any = None

    def file(self, *names: str) -> str:
        return os.path.join(self.folder, *names)

    def prepare(self, plan: Mapping[str, Any], resume: bool, stored_whole: Callable[..., bool]) -> None:
        """Make the folder, or take over the one that stands there if it was made for this plan.

        stored_whole(rank, record) says whether the data of a record are all there.
        """
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        remove_tree(self._debris)
        if os.path.isfile(self.folder):
            os.remove(self.folder)
        self._refuse_company()
        stored = self.plan()
        if resume and stored is not None:
            if stored != plan:
                raise InputError(
                    f"{self.folder} was begun with other settings ({_difference(stored, plan)}): "
                    "begin anew (--restart) or remove it"
                )
            for rank, path in self._manifests():
                _cut(path, lambda record, rank=rank: stored_whole(rank, record))
            return
        self.discard()
        os.mkdir(self.folder)
        try:
            write_durably(self.file(_PLAN), json.dumps(plan, indent=1).encode())
        except OSError:
            remove_tree(self.folder)
            raise
        sync_folder(os.path.dirname(self.folder) or ".")

    def plan(self) -> dict[str, Any] | None:
        """The plan that the folder was made for; None without a folder or where a crash left no plan."""
        try:
            with open(self.file(_PLAN), "rb") as file:
                return json.load(file)
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None

    def records(self) -> dict[int, list[dict[str, Any]]]:
        """The records of every rank, of earlier runs on other numbers of ranks too."""
        return {rank: [record for record, _ in _read(path)] for rank, path in self._manifests()}

    def open_manifest(self, rank: int) -> None:
        """Open this rank's manifest for itself alone."""
        self._manifest = open_appending(self.file(f"manifest.{rank}.jsonl"))
        if not try_lock(self._manifest):
            raise InputError(f"{self.folder} is being written by another process")

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on the disk when this returns."""
        body = json.dumps(record, separators=(",", ":")).encode()
        append_durably(self._manifest, [b"%08x %s\n" % (zlib.crc32(body), body)])

    @property
    def is_open(self) -> bool:
        return self._manifest is not None

    def close(self) -> None:
        if self._manifest is not None:
            self._manifest.close()
            self._manifest = None

    def discard(self) -> None:
        """Remove the folder. Renamed first, so that no crash leaves a manifest without its data."""
        if os.path.isdir(self.folder):
            os.rename(self.folder, self._debris)
            sync_folder(os.path.dirname(self.folder) or ".")
        remove_tree(self._debris)

    @property
    def _debris(self) -> str:
        return self.folder + ".removing"

    def _manifests(self) -> Iterator[tuple[int, str]]:
        for path in sorted(glob.glob(glob.escape(self.folder) + "/manifest.*.jsonl")):
            match = re.fullmatch(r"manifest\.(\d+)\.jsonl", os.path.basename(path))
            if match:
                yield int(match[1]), path

    def _refuse_company(self) -> None:
        for _, path in self._manifests():
            with open(path, "rb") as file:
                if not try_lock(file):
                    raise InputError(f"{self.folder} is being written by another process")


def write_durably(path: str, content: bytes | memoryview) -> None:
    """Write a file under another name, flush it to the disk, rename it."""
    with open(path + ".new", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
    sync_folder(os.path.dirname(path))


def open_appending(path: str) -> Any:
    """A file to append to, without a buffer: what a failed write left in one would come out at closing."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115
    sync_folder(os.path.dirname(path))
    return file


def append_durably(file: Any, pieces: Iterable[bytes]) -> None:
    """Write all of the pieces and flush them to the disk."""
    for piece in pieces:
        left = memoryview(piece)
        while left:
            left = left[file.write(left) :]
    os.fsync(file.fileno())


def sync_folder(path: str) -> None:
    """Flush the names in a folder to the disk; some network file systems cannot and need not."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def remove_tree(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)


def _read(path: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The records up to the first torn line, each with the place where its line ends."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            checksum, _, body = line.partition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body[:-1]):
                break
            end += len(line)
            yield json.loads(body), end


def _cut(path: str, accept: Callable[[dict[str, Any]], bool]) -> None:
    """Shorten a manifest to its records before the first that is torn or not accepted."""
    whole = 0
    for record, end in _read(path):
        if not accept(record):
            break
        whole = end
    with open(path, "r+b") as file:
        file.truncate(whole)
        os.fsync(file.fileno())


def try_lock(file: Any) -> bool:
    """False if another process holds the file; file systems without locks let everyone pass."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _difference(stored: Any, wanted: Any) -> str:
    before, after = dict(_flat(stored)), dict(_flat(wanted))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    shown = [f"{key} was {_brief(before.get(key))}, is {_brief(after.get(key))}" for key in keys[:3]]
    return "; ".join(shown) + ("; ..." if len(keys) > 3 else "")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _brief(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
