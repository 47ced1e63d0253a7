# SPDX-License-Identifier: BSD-3-Clause
"""The public API as somebody's type checker sees it; `make lint` checks what stands behind it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import fastseg

PUBLIC = [getattr(fastseg, name) for name in fastseg.__all__ if not name.startswith("_") and name != "nn"]
PUBLIC += [getattr(fastseg.nn, name) for name in fastseg.nn.__all__]
FUNCTIONS = [thing for thing in PUBLIC if inspect.isfunction(thing)]
FUNCTIONS += [thing.__init__ for thing in PUBLIC if inspect.isclass(thing) and not issubclass(thing, tuple)]
FUNCTIONS += [thing.forward for thing in PUBLIC if hasattr(thing, "forward")]

USER = """
import torch
import fastseg

rows = torch.zeros(3, 2)
loss: torch.Tensor = fastseg.region_contrast(rows, anchor_ids=torch.zeros(3, dtype=torch.long))
windows: fastseg.WindowEntropy = fastseg.patch_entropy(torch.zeros(1, 1, 8, 8), 4, 2)
loss = fastseg.nn.MaskedWeightedBCE(pseudo_weight=0.5).pseudo_weight
fastseg.region_pool(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8), "3")
"""


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_every_argument_has_a_type(function) -> None:
    parameters = [p for name, p in inspect.signature(function).parameters.items() if name != "self"]
    assert [p.name for p in parameters if p.annotation is p.empty] == []
    if function.__name__ != "__init__":
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@pytest.mark.long
def test_ops_are_functions_to_a_type_checker(tmp_path: Path) -> None:
    """Not modules of the same name; and a wrong argument is seen."""
    api = pytest.importorskip("mypy.api")
    root, user = Path(__file__).parents[1], tmp_path / "user.py"
    user.write_text(USER)
    told, trouble, _ = api.run(
        ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(tmp_path), str(user)]
    )
    assert not trouble
    errors = [line for line in told.splitlines() if ": error:" in line]
    assert [int(line.split(":")[1]) for line in errors] == [8, 9], told
