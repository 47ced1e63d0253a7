# SPDX-License-Identifier: BSD-3-Clause
"""A small project on disk, and the command line run on it as a user would."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import h5py
import torch

from fastseg import cli
from fastseg.data.phantoms import make_phantom

CONFIG = """\
output: {folder}/run
data:
  train:
    - raw: phantoms.h5:/raw
      labels: phantoms.h5:/somata
      region: {{z: [0, 16]}}
      annotated: {{every: 4}}
  test:
    - raw: phantoms.h5:/raw
      labels: phantoms.h5:/somata
      region: {{z: [12, 24]}}
  patch: [8, 32, 32]
network: {{width: 2, pooling: [[1, 2, 2], 2], norm: batch}}
train: {{steps: 30, batch: 2, checkpoint_every: 10, device: cpu}}
"""


# Networks this small only lose time by sharing their work among threads.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def make_project(folder: Path) -> Path:
    """phantoms.h5 and run.yaml in ``folder``; returns the path of the configuration."""
    phantom = make_phantom((24, 64, 64), seed=1)
    with h5py.File(folder / "phantoms.h5", "w") as file:
        file.create_dataset("raw", data=phantom.raw, chunks=(8, 32, 32), compression="gzip")
        file.create_dataset("somata", data=phantom.instances, chunks=(8, 32, 32), compression="gzip")
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder / "run.yaml"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fastseg.cli", *map(str, arguments)]


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


def _raise(error: Exception) -> None:
    raise error


def fastseg(*arguments: object) -> Finished:
    """Run a command in this process, on one thread like the ones in processes of their own. What the command did not
    foresee is raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", ["fastseg", *map(str, arguments)]),
        patch.object(cli, "log_unexpected", _raise),
        patch.object(threading, "excepthook", threading.excepthook),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            torch.set_num_threads(threads)
    return Finished(code, out.getvalue(), err.getvalue())


def fastseg_on_small_disk(size: int, *arguments: object) -> Finished:
    """Run a command in a process of its own that can write no file beyond ``size`` bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, preexec_fn=limit, env=ENVIRONMENT, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)
