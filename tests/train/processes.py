# SPDX-License-Identifier: BSD-3-Clause
"""Several processes of a run on this machine, with the environment that torchrun would give them."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.project import ENVIRONMENT, Finished

ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, "-m", "tests.train.worker"]


def start(count: int, command: list[str]) -> list[subprocess.Popen[str]]:
    port = str(_free_port())
    shared = {**ENVIRONMENT, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]], timeout: float = 120) -> list[Finished]:
    results = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            results.append(Finished(process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return results


def launch(count: int, *arguments: object) -> list[Finished]:
    """Run ``tests.train.worker`` with these arguments in so many processes."""
    return finish(start(count, [*WORKER, *map(str, arguments)]))


def _free_port() -> int:
    # Below those that the system gives to outgoing connections, one of which may take a port as soon as it is free.
    while True:
        port = random.SystemRandom().randrange(
            20_000, 32_000
        )  # random itself is seeded alike in every worker of pytest
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
