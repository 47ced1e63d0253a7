# SPDX-License-Identifier: BSD-3-Clause
"""Facts of a style transfer by hand, and what is told of trouble."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastseg.methods.domain_adaptation.style.facts import BINS, FactSums, StyleFacts
from fastseg.train.ranks import Ranks

GOOD = StyleFacts(0.05, 0.3, 0.9, 0.8, 0.6, 0.4)


def ramp(low: float, high: float) -> Tensor:
    """(1, 1, 32, 32), all levels between alike."""
    return torch.linspace(low, high, 1024).view(1, 1, 32, 32)


def facts_of(target: Tensor, restyled: Tensor, source: Tensor) -> tuple[StyleFacts, np.ndarray]:
    sums = FactSums()
    sums.add(target, restyled, source, torch.full((1, 1, 2, 2), 0.25), torch.full((1, 1, 2, 2), 0.75))
    return sums.facts(Ranks())


def test_distance_is_the_shift_of_levels_as_a_share_of_the_range() -> None:
    """1.6 of the generator's 2 is the source's range between its percentiles."""
    facts, levels = facts_of(ramp(-0.9, 0.1), ramp(-0.3, 0.7), ramp(-0.1, 0.9))
    assert facts.distance == pytest.approx(0.2 / 1.6, rel=0.02)
    assert facts.distance_before == pytest.approx(0.8 / 1.6, rel=0.02)
    assert (facts.score_source, facts.score_restyled) == (0.75, 0.25)
    assert levels.shape == (3, BINS)
    np.testing.assert_allclose(levels.sum(1), 1)
    same, _ = facts_of(ramp(-1, 1), ramp(-1, 1), ramp(-1, 1))
    assert same.distance == same.distance_before == 0
    beyond, _ = facts_of(5 * ramp(-1, 1), ramp(-1, 1), ramp(-1, 1))
    assert np.isfinite(beyond.distance_before)


def test_contrast_and_content() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3) - 0.5
    other = torch.rand(1, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3) - 0.5
    noise = 0.02 * torch.randn(image.shape)
    inverted, _ = facts_of(image, -0.5 * image + noise, image)
    assert inverted.content > 0.95
    assert inverted.contrast == pytest.approx(0.5, rel=0.05)
    elsewhere, _ = facts_of(image, image.roll((4, 4), (2, 3)), image)
    assert elsewhere.content < 0.2
    unlike, _ = facts_of(image, other, image)
    assert unlike.content < 0.8  # the grid of blocks is shared
    grey, _ = facts_of(image, torch.full_like(image, 0.3), image)
    assert grey.content == pytest.approx(0, abs=1e-6)
    assert grey.contrast == pytest.approx(0, abs=1e-6)


def test_means_are_those_of_all_images() -> None:
    sums = FactSums()
    image = ramp(-0.5, 0.5)
    for contrast, score in ((1.0, 0.0), (0.5, 1.0), (0.25, 0.5)):
        sums.add(image, contrast * image, image, torch.full((1, 1, 1, 1), score), torch.zeros(1, 1, 1, 1))
    facts, _ = sums.facts(Ranks())
    assert facts.contrast == pytest.approx(1.75 / 3)
    assert facts.score_restyled == pytest.approx(0.5)
    assert facts.content == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"contrast": 0.1, "content": 0.0}, "the generator has collapsed"),
        ({"content": 0.2}, "structures may be invented"),
        ({"score_source": 0.97, "score_restyled": 0.02}, "the discriminator knows all restyled images"),
        ({"distance": 0.4}, "further from the source's than those of target images"),
    ],
)
def test_trouble_is_told(change: dict[str, float], told: str) -> None:
    assert GOOD.trouble() == []
    notes = replace(GOOD, **change).trouble()
    assert len(notes) == 1
    assert told in notes[0]


def test_greys_that_stay_near_are_no_trouble() -> None:
    assert replace(GOOD, distance=0.09, distance_before=0.05).trouble() == []
    assert len(replace(GOOD, distance=0.11, distance_before=0.05).trouble()) == 1


def test_a_sure_discriminator_needs_both() -> None:
    assert replace(GOOD, score_source=0.97).trouble() == []
    assert replace(GOOD, score_restyled=0.02).trouble() == []
