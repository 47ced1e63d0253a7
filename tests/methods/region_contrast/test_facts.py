# SPDX-License-Identifier: BSD-3-Clause
"""What pretraining says of itself, from vectors made by hand; and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastseg.methods.region_contrast.facts import FactSums, PretextFacts
from fastseg.methods.region_contrast.network import Memory
from fastseg.methods.region_contrast.pretexts import Outcome
from fastseg.train.ranks import Ranks


def outcome(share: Any, vectors: torch.Tensor) -> Outcome:
    used = torch.ones(vectors.shape[1:3], dtype=torch.bool)
    return Outcome(torch.tensor(1.0), {}, torch.as_tensor(share).expand(2, 1, -1), used, vectors)


def test_facts_are_those_of_the_vectors() -> None:
    axes = torch.eye(4).view(1, 1, 4, 4)
    sums = FactSums()
    sums.add(outcome([0.25] * 4, torch.cat([axes, -axes])), torch.zeros(1))
    facts = sums.facts(Ranks())
    assert facts.alive == 4
    assert facts.alignment == pytest.approx(4.0)  # opposite
    assert facts.cosine == pytest.approx(0.0)
    assert facts.uniformity == pytest.approx(-4.0)  # all at a distance of sqrt 2: log exp(-2 * 2)
    assert facts.trouble() == []


def test_directions_of_features() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(4096, 6, generator=generator) - 0.1).Q
    rows = rows - rows.mean(0)

    def directions(mixed: torch.Tensor, batches: int = 1) -> float | None:
        sums = FactSums()
        sums.add(outcome([1.0], torch.ones(2, 1, 1, 4)), torch.zeros(1))
        for part in mixed.chunk(batches):
            sums.add_features(part.T.reshape(1, mixed.shape[1], 1, 2, -1))
        return sums.facts(Ranks()).directions

    assert directions(rows, 4) == pytest.approx(6, rel=0.01)
    scaled = rows * torch.arange(1, 7) + 100 * rows.std(0)  # neither scale nor mean counts
    assert directions(scaled) == pytest.approx(6, rel=0.01)
    assert directions(rows[:, [0, 0, 0, 0, 0, 0]]) == pytest.approx(1)
    # Channels 0, 0, 0, 1: eigenvalues 3 and 1.
    assert directions(rows[:, [0, 0, 0, 1]]) == pytest.approx(16 / 10, rel=0.01)
    flat = torch.cat([rows[:, :2], torch.full((4096, 1), 3.0)], 1)
    assert directions(flat) == pytest.approx(2, rel=0.01)  # a channel that is constant is none
    assert directions(torch.ones(8, 3)) is None


def test_collapse_is_said() -> None:
    same = torch.ones(2, 1, 4, 4) / 2
    sums = FactSums()
    sums.add(outcome([0.97, 0.01, 0.01, 0.01], same), torch.zeros(1))
    facts = sums.facts(Ranks())
    assert facts.alive == 1
    notes = facts.trouble()
    assert "region 0 has 97 % of the voxels: the assignment has collapsed" in notes[0]
    assert "mean cosine of 1: they have collapsed to one" in notes[1]
    flat = PretextFacts(1.0, contrast=0.01).trouble()
    assert "1 % of the contrast of the images" in flat[0]


def test_memory_keeps_the_newest() -> None:
    memory = Memory(5, 2)
    rows = torch.arange(14.0).view(7, 2)
    memory.add(rows[:3], torch.tensor([True, False, True]), across_ranks=False)
    assert (memory.ids >= 0).tolist() == [True, False, True, False, False]
    memory.add(rows[3:7], torch.ones(4, dtype=torch.bool), across_ranks=False)
    assert memory.rows[:, 0].tolist() == [10.0, 12.0, 4.0, 6.0, 8.0]
    memory.add(rows, torch.ones(7, dtype=torch.bool), across_ranks=False)
    assert sorted(memory.rows[:, 0].tolist()) == [4.0, 6.0, 8.0, 10.0, 12.0]
