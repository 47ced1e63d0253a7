# SPDX-License-Identifier: BSD-3-Clause
"""The demo, cut down to a few steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastseg.commands import demo
from fastseg.methods.config_file import load_config
from fastseg.methods.registry import train
from tests.project import fastseg


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.sub(r"steps: \d+", "steps: 2", demo._CONFIG)
    monkeypatch.setattr(demo, "_CONFIG", text)
    monkeypatch.setattr(demo, "_SHAPE", (16, 96, 96))


@pytest.mark.long
@pytest.mark.usefixtures("short")
def test_three_networks_are_compared_in_one_picture(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = fastseg("demo", folder)
    assert done.returncode == 0, done.stderr
    for name in ("2D network", "3D, slices only", "3D + pseudo-labels"):
        assert re.search(rf"^{re.escape(name)} +0\.\d+ ", done.stdout, re.MULTILINE), done.stdout
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    again = load_config(folder / "demo.yaml")
    assert again.method == "sparse_2d3d"
    done = fastseg("demo", folder)
    assert (done.returncode, "already holds a demo: add --overwrite" in done.stderr) == (2, True)
    assert fastseg("demo", folder, "--overwrite").returncode == 0
    assert train(again, resume=True, quiet=True).checkpoints()[-1][0] == 2
