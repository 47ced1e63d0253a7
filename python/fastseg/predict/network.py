# SPDX-License-Identifier: BSD-3-Clause
"""What prediction asks of a network: probabilities of raw windows, in batches that fit the device."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastseg.data.intensity import Intensity, scale_intensity
from fastseg.predict.stream import Network

Flips = Literal["none", "plane", "volume"]
_FLIPPED_AXES = {"none": (), "plane": (3, 4), "volume": (2, 3, 4)}

# A batch of this many voxels keeps a device of that kind busy; more only takes memory.
_VOXELS_PER_BATCH = {"cuda": 1 << 22, "cpu": 1 << 18}
_SHARE_OF_FREE_MEMORY = 0.7


def probability_of(
    network: nn.Module,
    intensity: Intensity,
    *,
    device: torch.device,
    precision: torch.dtype | None = None,
    flips: Flips = "none",
    exclusive: bool = False,
) -> Network:
    """Raw windows (B, channels, z, y, x) to probabilities, float32: intensity scaling, the network, a sigmoid.

    precision: autocast to it, None for float32. flips: mean over the window and its mirror images along y and x
    ("plane", 4 images) or along all axes ("volume", 8 images), which the network sees in one batch. exclusive: a
    softmax in place of the sigmoid, over the classes and a background of logit 0, as of
    ``fastseg.nn.MaskedCrossEntropy``.
    """
    shift, scale = (torch.tensor([values], device=device) for values in (intensity.shift, intensity.scale))
    mirrors = _mirrors(flips)

    @torch.inference_mode()
    def probability(raw: Tensor) -> Tensor:
        image = scale_intensity(raw, shift, scale)
        if len(mirrors) > 1:
            image = torch.cat([image.flip(mirror) for mirror in mirrors])
        with torch.autocast(device.type, precision, enabled=precision is not None):
            logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        probabilities = _activated(logits.float(), exclusive)
        if len(mirrors) == 1:
            return probabilities
        turned_back = zip(probabilities.split(len(raw)), mirrors, strict=True)
        return torch.stack([part.flip(mirror) for part, mirror in turned_back]).mean(0)

    return probability


def _activated(logits: Tensor, exclusive: bool) -> Tensor:
    if not exclusive:
        return logits.sigmoid()
    return torch.cat((torch.zeros_like(logits[:, :1]), logits), 1).softmax(1)[:, 1:]


def images_per_window(flips: Flips) -> int:
    """How many images the network sees of a window."""
    return len(_mirrors(flips))


def _mirrors(flips: Flips) -> list[tuple[int, ...]]:
    axes = _FLIPPED_AXES[flips]
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def choose_batch(
    network: Network, window: tuple[int, ...], dtype: np.dtype, device: torch.device, images: int = 1
) -> int:
    """How many windows (channels, z, y, x) to predict at once: a power of two that keeps the device busy and, on
    a GPU, takes at most 70 % of the memory that is free. It is not timed, so that it seldom differs between runs.

    images: that ``network`` sees of each window, see ``images_per_window``.
    """
    voxels = _VOXELS_PER_BATCH["cuda" if device.type == "cuda" else "cpu"]
    busy = _power_of_two_below(voxels / (images * math.prod(window[1:])))
    if device.type != "cuda" or busy == 1:
        return busy
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    network(torch.from_numpy(np.zeros((1, *window), dtype)).to(device))
    needed = max(torch.cuda.max_memory_allocated(device) - before, 1)
    return min(busy, _power_of_two_below(_SHARE_OF_FREE_MEMORY * free / needed))


def fingerprint(network: nn.Module) -> str:
    """A hash of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _power_of_two_below(value: float) -> int:
    return 1 << max(int(math.log2(max(value, 1))), 0)
