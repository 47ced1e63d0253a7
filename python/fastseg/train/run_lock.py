# SPDX-License-Identifier: BSD-3-Clause
"""One training at a time writes into the folder of a run."""

from __future__ import annotations

import contextlib
import glob
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from fastseg.data.outputs_journal import try_lock
from fastseg.errors import InputError
from fastseg.train.ranks import Ranks

LOCK_FILE = "training.lock"


@contextlib.contextmanager
def writing_alone(path: str, ranks: Ranks) -> Iterator[None]:
    """Hold the folder of a run; InputError that names who holds it already. The first process holds it for all.

    The lock is the operating system's, on ``training.lock``: it ends with the process, however that ends. NFS, Lustre
    and GPFS keep it between machines where they are mounted with locks. The file says who wrote it, and goes with the
    block.
    """
    if not ranks.first:
        yield
        return
    lock = os.path.join(path, LOCK_FILE)
    is_new = not os.path.exists(path)
    try:
        os.makedirs(path, exist_ok=True)
        file = _take(lock)
    except OSError as error:
        raise InputError(f"{lock} cannot be written: {error.strerror or error}") from error
    try:
        for left_by_a_kill in glob.glob(os.path.join(glob.escape(path), "**", "*.partial"), recursive=True):
            if os.path.isfile(left_by_a_kill):  # folders are predictions to go on with
                os.remove(left_by_a_kill)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(lock)  # while it is held: whoever opened it sees that it is gone, and makes a new one
        file.close()
        if is_new:
            with contextlib.suppress(OSError):  # what was refused leaves nothing
                os.rmdir(path)


def _take(lock: str) -> Any:
    while True:
        file = open(lock, "a+", encoding="utf-8")  # noqa: SIM115 - closed by writing_alone
        if not try_lock(file):
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise InputError(
                f"{os.path.dirname(lock)} is being written by {holder}: wait for it, or give another output"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                break
        file.close()  # its holder removed it in between
    file.truncate(0)
    file.write(
        f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    )
    file.flush()
    return file
