# SPDX-License-Identifier: BSD-3-Clause
"""How the check ends: a case that fails ends it, one that cannot run here is named with its reason."""

import argparse
import sys
from pathlib import Path

import pytest

from . import check
from .environments import Environment, Refused


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Whose Python is this one."""
    monkeypatch.setattr(Environment, "bin", lambda self, name: sys.executable)
    for name in ("PYTHONPATH", "PIP_NO_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    return Environment(tmp_path / "env", python="true")  # in place of making one: it ends with 0


def test_commands_see_no_source_tree(environment: Environment) -> None:
    code = "import os; print(os.getcwd(), os.listdir(), {'PYTHONPATH', 'PIP_NO_CACHE_DIR'} & {*os.environ})"
    assert environment.run([sys.executable, "-c", code]) == f"{environment.empty} [] set()\n"
    assert "PYTHONPATH" in environment.log.read_text()


@pytest.mark.parametrize(("code", "expected"), [(0, 1), (1, 0)])
def test_another_exit_code_is_refused(environment: Environment, code: int, expected: int) -> None:
    command = [sys.executable, "-c", f"print('why'); raise SystemExit({code})"]
    with pytest.raises(Refused, match=rf"(?s)ended with {code}, not {expected}.*why"):
        environment.run(command, code=expected)


def test_a_command_without_end_is_refused(environment: Environment) -> None:
    with pytest.raises(Refused, match="did not end within 1 s"):
        environment.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=1)


def options_for(folder: Path, **others: object) -> argparse.Namespace:
    given = {
        "work": folder,
        "cuda": False,
        "older_torch": "torch==0.1",
        "older_python": "true",
        "keep": False,
    }
    return argparse.Namespace(**given, **others)


def test_an_older_torch_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self, *arguments, **options):
        raise Refused("pip ended with 1, not 0:\n    ERROR: No matching distribution found for torch==0.1")

    monkeypatch.setattr(Environment, "pip", refuse)
    case = check.Check(options_for(tmp_path / "a", require_older_torch=False)).older_torch
    with pytest.raises(
        check.Skipped, match=r"^torch==0.1 cannot be had here: ERROR: No matching distribution"
    ):
        case()
    case = check.Check(options_for(tmp_path / "b", require_older_torch=True)).older_torch
    with pytest.raises(Refused, match="No matching distribution"):
        case()


def test_what_is_expected_to_be_told(tmp_path: Path) -> None:
    check.expect("install .* first", "install torch first")
    with pytest.raises(Refused, match="expected to be told 'torch first', was told:\n    nothing"):
        check.expect("torch first", "nothing")
    check.refuse(tmp_path, [])
    with pytest.raises(Refused, match=r"a\.whl:\n    lacks b"):
        check.refuse(tmp_path / "a.whl", ["lacks b"])
