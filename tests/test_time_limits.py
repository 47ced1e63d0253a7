# SPDX-License-Identifier: BSD-3-Clause
"""A test that hangs is stopped, is named, and shows where it hung; planted hangs, each run in a process of its own."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1.0
WHOLE = re.MULTILINE | re.DOTALL

LOOP = """
    while True: pass
"""
CHILD = """
    import subprocess
    subprocess.run(["sleep", "1000"])
"""
# On the way out of the pool the main thread waits once more, and still holds what the thread waits for.
LOCK_HELD_ON_THE_WAY_OUT = """
    import threading
    from concurrent.futures import ThreadPoolExecutor
    lock = threading.Lock()
    with lock, ThreadPoolExecutor(1) as pool:
        pool.submit(lock.acquire).result()
"""
# No signal interrupts this wait, and no other thread of Python runs meanwhile.
WAIT_IN_C = """
    import ctypes
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
"""
LEFT_BEHIND = """
    import threading
    threading.Thread(target=threading.Event().wait).start()
"""


def run(folder: Path, hang: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a run of two tests, test_hang and one that passes."""
    for plugin, module in (("timeout", "pytest_timeout"), ("xdist", "xdist")):
        if plugin in arguments:
            importlib.import_module(module)  # where it is absent, --skip-missing skips the test
    path = folder / "test_planted.py"
    path.write_text(f"def test_hang():{hang}\n\ndef test_next():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}"]
    command += ["-p", "tests.time_limits", "-o", f"timeout={LIMIT}", *arguments, str(path)]
    # Other plugins, which come with packages, import for seconds.
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "COLUMNS": "200",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("hang", [LOOP, CHILD], ids=["loop", "child"])
def test_what_a_signal_can_end_fails_and_the_run_goes_on(tmp_path: Path, hang: str) -> None:
    code, output = run(tmp_path, hang, "-p", "timeout")
    assert code == 1
    assert "FAILED test_planted.py::test_hang - Failed: Timeout (>1.0s)" in output
    assert f">   {hang.splitlines()[-1]}" in output
    assert "1 failed, 1 passed" in output


@pytest.mark.parametrize("hang", [LOCK_HELD_ON_THE_WAY_OUT, WAIT_IN_C], ids=["lock", "c"])
@pytest.mark.parametrize("plugins", [("-p", "timeout"), ()], ids=["pytest-timeout", "alone"])
def test_what_no_signal_can_end_ends_the_process(tmp_path: Path, hang: str, plugins: tuple[str]) -> None:
    code, output = run(tmp_path, hang, *plugins)
    assert code == 1
    assert re.search(
        r"Timeout \(0:00:01\.5.*^  File .*test_planted\.py\", line \d+ in test_hang$", output, WHOLE
    )


@pytest.mark.long
def test_a_worker_that_is_ended_is_replaced(tmp_path: Path) -> None:
    code, output = run(tmp_path, WAIT_IN_C, "-p", "timeout", "-p", "xdist", "-n1")
    assert code == 1
    assert "crashed while running 'test_planted.py::test_hang'" in output
    assert re.search(r"^  File .*test_planted\.py\", line \d+ in test_hang$", output, WHOLE)
    assert "1 failed, 1 passed" in output


def test_a_thread_left_behind_does_not_keep_the_process(tmp_path: Path) -> None:
    """The limit on the way out is a minute, for libraries that take their time; here it is a second."""
    (tmp_path / "conftest.py").write_text("import tests.time_limits\ntests.time_limits.EXIT_LIMIT = 1.0\n")
    code, output = run(tmp_path, LEFT_BEHIND)
    assert code == 1
    assert "2 passed" in output
    assert "Timeout (0:00:01)!" in output
    assert "_shutdown" in output
