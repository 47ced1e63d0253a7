# SPDX-License-Identifier: BSD-3-Clause
"""Which of the K confidence maps is the segmentation, found without labels, and what is wrong where none is.

Boserup & Selvan choose the channel by the Dice of labelled images. What is measured here needs none, and is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastseg.methods.patch_contrast.config import PatchContrastConfig
from fastseg.ops import patch_entropy

# A map that marks less than this share of the voxels, or all but that, says nothing.
_NOTHING = 1e-3

# Two maps that correlate so highly, or so negatively, are one map.
_TWINS = 0.98


@dataclass(frozen=True)
class ChannelFacts:
    """What one channel looks like over some images."""

    entropy: float  # mean over windows, bits
    foreground: float  # share of voxels at or above the threshold
    inside: float  # mean intensity there, [0, 1]
    outside: float  # and elsewhere
    separation: float  # share of the intensity's variance between inside and outside, Otsu's criterion
    gap: float = 0.0  # D_pn - D_pp of its windows
    twin: int | None = None  # an earlier channel with the same map or its complement

    @property
    def collapsed(self) -> bool:
        return not _NOTHING < self.foreground < 1 - _NOTHING


@dataclass(frozen=True)
class Choice:
    channel: int
    inverted: bool
    plausible: bool


class ChannelSums:
    """Sums over images, added up on the device, from which ``facts`` makes the facts of all channels."""

    def __init__(self, channels: int, threshold: float, settings: PatchContrastConfig) -> None:
        self.channels, self.threshold, self.settings = channels, threshold, settings
        self.total: Tensor | None = None

    def add(self, confidence: Tensor, image: Tensor, gap: Tensor) -> None:
        """confidence (B, K, *S), intensity (B, C, *S), of the axes of the windows; gap (K,) of those images."""
        size, stride = self.settings.patch_size, self.settings.stride
        entropy = patch_entropy(confidence.float(), size, stride).entropy
        marked = confidence >= self.threshold
        grey = image.mean(1, keepdim=True)
        others = [axis for axis in range(confidence.dim()) if axis != 1]
        flat = confidence.transpose(0, 1).flatten(1).double()
        numbers = torch.stack([grey.new_tensor(grey.numel(), dtype=torch.float64), *_moments(grey)])
        rows = [
            entropy.double().mean(others) * len(confidence),
            marked.sum(others).double(),
            torch.where(marked, grey, 0.0).sum(others, dtype=torch.float64),
            flat.sum(1),
            gap.double() * len(confidence),
        ]
        images = torch.full((1,), len(confidence), dtype=torch.float64, device=confidence.device)
        new = torch.cat([images, numbers, *rows, (flat @ flat.T).reshape(-1)])
        self.total = new if self.total is None else self.total + new

    def facts(self, total: Tensor) -> list[ChannelFacts]:
        """From the sum of ``total`` over processes, on the CPU."""
        k = self.channels
        images, count, mass, squares, *rest = total.tolist()
        entropy, marked, lit, means, gaps = (rest[i * k : (i + 1) * k] for i in range(5))
        products = torch.tensor(rest[5 * k :], dtype=torch.float64).view(k, k) / count
        mean = torch.tensor(means, dtype=torch.float64) / count
        covariance = products - mean[:, None] * mean
        spread = covariance.diagonal().clamp(min=1e-12).sqrt()
        correlation = covariance / (spread[:, None] * spread)
        variance = max(squares / count - (mass / count) ** 2, 1e-12)
        facts = []
        for i in range(k):
            share = marked[i] / count
            inside = lit[i] / max(marked[i], 1)
            outside = (mass - lit[i]) / max(count - marked[i], 1)
            twins = [j for j in range(i) if abs(correlation[i, j]) > _TWINS]
            facts.append(
                ChannelFacts(
                    entropy[i] / images,
                    share,
                    inside,
                    outside,
                    share * (1 - share) * (inside - outside) ** 2 / variance,
                    gaps[i] / images,
                    twins[0] if twins else None,
                )
            )
        return facts


def choose_channel(facts: Sequence[ChannelFacts], settings: PatchContrastConfig) -> Choice:
    """The best channel by ``criterion`` among those whose foreground share is plausible; none being so, the best of
    those that have not collapsed, or the first.

    Where the objects' ``appearance`` is stated, a channel of the other polarity is taken inverted.
    """
    inverted = [is_inverted(fact, settings) for fact in facts]
    shares = [1 - f.foreground if turned else f.foreground for f, turned in zip(facts, inverted, strict=True)]
    least, most = settings.foreground

    def rank(channel: int) -> tuple[bool, bool, float]:
        fact = facts[channel]
        value = -fact.entropy if settings.criterion == "entropy" else getattr(fact, settings.criterion)
        return least <= shares[channel] <= most, not fact.collapsed, value

    best = max(range(len(facts)), key=rank)
    return Choice(best, inverted[best], least <= shares[best] <= most)


def is_inverted(fact: ChannelFacts, settings: PatchContrastConfig) -> bool:
    """Whether a channel marks what cannot be the objects, by their stated appearance."""
    if settings.appearance == "either":
        return False
    return (fact.inside > fact.outside) == (settings.appearance == "dark")


def describe_trouble(
    facts: Sequence[ChannelFacts], choice: Choice, settings: PatchContrastConfig
) -> list[str]:
    """What a person should know before trusting the masks, and what to change; nothing where all is well."""
    lines = []
    collapsed = [i for i, fact in enumerate(facts) if fact.collapsed]
    if len(collapsed) == len(facts):
        lines.append(
            "all channels have collapsed, each marks everything or nothing: train for fewer steps or with a lower "
            "train.learning_rate, set patch_contrast.patch_size nearer to the size of an object, or try another seed"
        )
        return lines
    if collapsed:
        lines.append(
            f"{_channels(collapsed)} collapsed, everything or nothing marked: harmless while another is chosen; "
            "fewer patch_contrast.channels or a lower train.learning_rate avoids it"
        )
    twins = [i for i, fact in enumerate(facts) if fact.twin is not None and not fact.collapsed]
    if twins:
        lines.append(
            f"{_channels(twins)} the map of another or its complement: fewer patch_contrast.channels do"
        )
    chosen = facts[choice.channel]
    share = 1 - chosen.foreground if choice.inverted else chosen.foreground
    if not choice.plausible:
        least, most = settings.foreground
        lines.append(
            f"no channel marks a plausible share of the image: of channel {choice.channel}, the nearest, it is "
            f"{100 * share:.3g} %, expected {100 * least:.3g} to {100 * most:.3g} % (patch_contrast.foreground). "
            "Change that if your objects cover more or less, or try another seed, more patch_contrast.channels, or "
            "patch_contrast.contrast: negative where the objects are bright"
        )
    if choice.inverted:
        lines.append(
            f"channel {choice.channel} marks what is {'brighter' if settings.appearance == 'dark' else 'darker'} and "
            f"is taken inverted, the objects being {settings.appearance} (patch_contrast.appearance)"
        )
    elif settings.appearance == "either" and chosen.inside > chosen.outside:
        lines.append(
            f"channel {choice.channel} marks what is brighter, {chosen.inside:.2f} against {chosen.outside:.2f}: where "
            "your objects are the dark ones, set patch_contrast.appearance: dark"
        )
    return lines


def _moments(grey: Tensor) -> tuple[Tensor, Tensor]:
    wide = grey.double()
    return wide.sum(), wide.square().sum()


def _channels(numbers: Sequence[int]) -> str:
    return f"channel {numbers[0]} is" if len(numbers) == 1 else f"channels {', '.join(map(str, numbers))} are"
