# SPDX-License-Identifier: BSD-3-Clause
"""Weights that come over from another run: all are named, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fastseg.errors import InputError
from fastseg.methods.weights import load_weights
from fastseg.nets import UNet


def network(**options: object) -> UNet:
    return UNet(2, **{"width": 4, "pooling": [2], **options})


def saved(path: Path, state: dict[str, torch.Tensor]) -> str:
    torch.save({"network": state}, path)
    return str(path)


def test_tensors_are_taken_over_and_the_rest_is_named(tmp_path: Path) -> None:
    source, target = network(), network()
    state = {f"backbone.{n}": v for n, v in source.state_dict().items() if not n.startswith("head.")}
    found = load_weights(target, saved(tmp_path / "a.pt", state | {"embedding.weight": torch.ones(1)}))
    assert found.missing == ["head.weight", "head.bias"]
    assert found.unexpected == ["embedding.weight"]
    assert len(found.loaded) + 2 == len(target.state_dict())
    for name in found.loaded:
        assert torch.equal(target.state_dict()[name], source.state_dict()[name])
    said = found.describe()
    assert f"{len(found.loaded)} tensors loaded" in said
    assert "not in it, begun at random: head.weight, head.bias" in said
    assert "in it and not used: embedding.weight" in said


def test_a_whole_network_or_bare_tensors(tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(source.state_dict(), tmp_path / "bare.pt")
    assert load_weights(target, str(tmp_path / "bare.pt")).missing == []
    assert torch.equal(target.head.weight, source.head.weight)


def test_another_network_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    wider = saved(tmp_path / "wider.pt", network(width=8).state_dict())
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(InputError, match=r"down.0.0.weight must be \(4, 1, 3, 3\), .* got \(8, 1, 3, 3\)"):
        load_weights(target, wider)
    strange = saved(tmp_path / "strange.pt", nn.Linear(2, 2).state_dict())
    with pytest.raises(
        InputError, match=r"holds no tensor of this network, such as down.0.0.weight; it has weight"
    ):
        load_weights(target, strange)
    with pytest.raises(InputError, match="is no run and no checkpoint: nothing is there"):
        load_weights(target, str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_weights(target, str(tmp_path / "empty"))
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(InputError, match="is no readable checkpoint"):
        load_weights(target, str(tmp_path / "text.pt"))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
