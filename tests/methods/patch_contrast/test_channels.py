# SPDX-License-Identifier: BSD-3-Clause
"""The choice of a channel without labels, and what is said where it cannot be trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastseg.methods.patch_contrast.channels import (
    ChannelFacts,
    ChannelSums,
    Choice,
    choose_channel,
    describe_trouble,
)
from fastseg.methods.patch_contrast.config import PatchContrastConfig


def settings(**changes: object) -> PatchContrastConfig:
    return PatchContrastConfig(patch_size=4, stride=4, **changes)


def fact(
    entropy: float = 0.3, foreground: float = 0.2, inside: float = 0.2, outside: float = 0.8, **more: object
):
    return ChannelFacts(entropy, foreground, inside, outside, **{"separation": 0.5, **more})


def test_facts_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(6, 3, 16, 20, generator=generator)
    confidence[:, 2] = 1 - confidence[:, 0]
    image = torch.rand(6, 3, 16, 20, generator=generator)
    sums = ChannelSums(3, 0.4, settings())
    for part in range(3):
        images = slice(2 * part, 2 * part + 2)
        sums.add(confidence[images], image[images], torch.tensor([0.1, 0.2, 0.3]) * part)
    facts = sums.facts(sums.total)
    grey, c = image.mean(1).numpy().astype("f8"), confidence.numpy().astype("f8")
    for k in range(3):
        marked = confidence[:, k].numpy() >= 0.4
        bits = -c[:, k] * np.log2(c[:, k]) - (1 - c[:, k]) * np.log2(1 - c[:, k])
        assert facts[k].entropy == pytest.approx(bits.mean(), rel=1e-5)  # windows tile the image
        assert facts[k].foreground == pytest.approx(marked.mean())
        assert facts[k].inside == pytest.approx(grey[marked].mean(), rel=1e-6)
        assert facts[k].outside == pytest.approx(grey[~marked].mean(), rel=1e-6)
        share = marked.mean()
        between = share * (1 - share) * (grey[marked].mean() - grey[~marked].mean()) ** 2
        assert facts[k].separation == pytest.approx(between / grey.var(), rel=1e-3, abs=1e-9)
    assert [f.twin for f in facts] == [None, None, 0]
    assert [f.gap for f in facts] == pytest.approx([0.1, 0.2, 0.3])


def test_the_surest_or_best_separated_of_the_plausible_is_chosen() -> None:
    facts = [
        fact(0.1, foreground=0.9, separation=0.9, gap=0.9),  # covers too much
        fact(0.3, separation=0.6, gap=0.1),
        fact(0.2, separation=0.4, gap=0.1),
        fact(0.4, separation=0.5, gap=0.2),
    ]
    assert choose_channel(facts, settings()) == Choice(3, False, True)
    assert choose_channel(facts, settings(criterion="separation")) == Choice(1, False, True)
    assert choose_channel(facts, settings(criterion="entropy")) == Choice(2, False, True)
    assert choose_channel(facts, settings(foreground=(0.5, 0.95))).channel == 0


def test_a_channel_of_the_other_polarity_is_taken_inverted() -> None:
    background = fact(0.1, foreground=0.8, inside=0.9, outside=0.2, gap=0.9)
    facts = [fact(0.3), background]
    assert choose_channel(facts, settings(appearance="dark")) == Choice(1, True, True)
    assert choose_channel(facts, settings(appearance="bright")) == Choice(1, False, False)
    assert choose_channel(facts, settings()) == Choice(0, False, True)
    (line,) = describe_trouble(facts, Choice(1, True, True), settings(appearance="dark"))
    assert line.startswith("channel 1 marks what is brighter and is taken inverted")


def test_collapsed_channels_are_the_last_resort() -> None:
    facts = [fact(0.0, foreground=1.0, gap=0.9), fact(0.5, foreground=0.9)]
    choice = choose_channel(facts, settings())
    assert choice == Choice(1, False, False)
    lines = describe_trouble(facts, choice, settings())
    assert any(line.startswith("channel 0 is collapsed") for line in lines)
    assert any("no channel marks a plausible share" in line and "90 %" in line for line in lines)
    everything = [fact(0.0, foreground=0.0), fact(0.0, foreground=1.0)]
    (line,) = describe_trouble(everything, choose_channel(everything, settings()), settings())
    assert line.startswith("all channels have collapsed")
    assert "train.learning_rate" in line


def test_trouble_is_named_and_nothing_is_said_without_it() -> None:
    assert describe_trouble([fact(), fact(0.5)], Choice(0, False, True), settings()) == []
    lines = describe_trouble([fact(), fact(twin=0), fact(twin=0)], Choice(0, False, True), settings())
    assert lines == [
        "channels 1, 2 are the map of another or its complement: fewer patch_contrast.channels do"
    ]
    bright = fact(inside=0.9, outside=0.1)
    (line,) = describe_trouble([bright], Choice(0, False, True), settings())
    assert "set patch_contrast.appearance: dark" in line
