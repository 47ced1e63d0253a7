# SPDX-License-Identifier: BSD-3-Clause
"""Virtual environments that see nothing of the one this runs in, and commands in them, logged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

# What would let an environment see another one, or install elsewhere, or keep pip from keeping what it builds.
HIDDEN = ("PYTHON", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_NO_CACHE_DIR")


class Refused(Exception):
    """A check failed; the message says how."""


class Environment:
    """A virtual environment of ``python`` made from nothing in ``folder``, whose commands write to ``folder``.log."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.empty = folder.with_suffix(".empty")  # where commands run, so that no source tree is in reach
        self.empty.mkdir(parents=True)
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        self.run([python, "-m", "venv", str(folder)])

    def pip(self, *arguments: object, timeout: float | None = None) -> str:
        command = [self.bin("python"), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
        return self.run(command, timeout=timeout)

    def bin(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def run(
        self, command: list[str], code: int = 0, cwd: Path | None = None, timeout: float | None = None
    ) -> str:
        """What it prints. ``Refused`` if it ends with another code, or not within ``timeout`` seconds."""
        begin = time.monotonic()
        shown = " ".join(part if len(part) < 200 else "..." for part in command)
        try:
            done = subprocess.run(
                command,
                cwd=cwd or self.empty,
                env=self.variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"{shown} did not end within {timeout:.0f} s") from None
        with self.log.open("a") as log:
            log.write(f"$ {shown}\n{done.stdout}[{done.returncode}, {time.monotonic() - begin:.1f} s]\n\n")
        if done.returncode != code:
            tail = "\n    ".join(done.stdout.strip().splitlines()[-20:])
            raise Refused(f"{shown} ended with {done.returncode}, not {code}; see {self.log}:\n    {tail}")
        return done.stdout
