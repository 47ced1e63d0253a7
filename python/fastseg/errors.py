# SPDX-License-Identifier: BSD-3-Clause
"""The one error that means: what was given cannot be used, and the message says what to mend. And what is said of all
others."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import traceback
from datetime import datetime
from importlib import metadata


class InputError(ValueError):
    """A file, a config key or an option is unusable. The command line prints one line and exits with 2."""


class Interrupted(Exception):
    """Training was asked to stop, and has written its checkpoint. The command line exits with EXIT_INTERRUPTED."""


# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on later.
EXIT_INTERRUPTED = 75


def log_unexpected(error: BaseException) -> str:
    """Write what is known of an error that is no InputError to a file, for a report; returns the line to say instead.

    The file is ``fastseg-error-<time>-<process>.log`` in the working folder, or where temporary files go.
    """
    when, what = datetime.now().astimezone(), "".join(traceback.format_exception_only(error)).strip()
    versions = f"fastseg {_version('fastseg')}, torch {_version('torch')}, Python {platform.python_version()}"
    lines = [
        f"{when.isoformat(timespec='seconds')} {platform.platform()}",
        versions,
        shlex.join(sys.argv),
        "",
    ]
    content = "\n".join([*lines, "".join(traceback.format_exception(error))])
    name = f"fastseg-error-{when:%Y%m%d-%H%M%S}-{os.getpid()}.log"
    for folder in (os.curdir, tempfile.gettempdir()):
        path = os.path.join(folder, name)
        try:
            with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(content)
        except OSError:
            continue
        break
    else:
        path = ""
        print(content, file=sys.stderr, flush=True)
    where = (
        f"The details are in {os.path.normpath(path)}: please" if path else "The details are above: please"
    )
    said = " ".join(what.split())
    return f"this should not happen: {said[:300]}. {where} report them with the files that it takes"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
