# SPDX-License-Identifier: BSD-3-Clause
"""What is segmented of given probabilities."""

from __future__ import annotations

import torch

from fastseg.predict import segmented

# Voxel by voxel: background surely, a class surely, foreground by both together, just not, a tie.
PROBABILITY = torch.tensor([[0.1, 0.9, 0.2, 0.2, 0.3], [0.2, 0.05, 0.4, 0.29, 0.3]])[:, None, None]


def test_each_class_by_itself() -> None:
    found = segmented(PROBABILITY, 0.3)[:, 0, 0].int().tolist()
    assert found == [[0, 1, 0, 0, 1], [0, 0, 1, 0, 1]]


def test_of_exclusive_classes_a_voxel_is_one_at_most() -> None:
    found = segmented(PROBABILITY, 0.5, exclusive=True)[:, 0, 0].int()
    assert found[:, :4].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert found[:, 4].sum() == 1


def test_one_class_is_the_same_either_way() -> None:
    one = torch.rand(1, 3, 4, 5)
    assert torch.equal(segmented(one, 0.4, exclusive=True), segmented(one, 0.4))
