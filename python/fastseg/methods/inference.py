# SPDX-License-Identifier: BSD-3-Clause
"""From a configuration to what prediction needs: probabilities of a volume's raw windows, and how it is cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastseg.data.intensity import measure_intensity
from fastseg.data.volumes import Volume
from fastseg.predict import Network, Tiling, choose_batch, fingerprint, probability_of
from fastseg.train.config import Config
from fastseg.train.device import autocast_dtype


def predictor(network: nn.Module, volume: Volume, config: Config, device: torch.device) -> Network:
    """``network`` as prediction takes it, with the intensity scaling of ``volume``."""
    return probability_of(
        network,
        measure_intensity(volume, config.data.normalize),
        device=device,
        precision=autocast_dtype(config.train.precision, device),
        flips=config.predict.flips,
    )


def tiling_of(config: Config, predict: Network, volume: Volume, device: torch.device) -> Tiling:
    settings = config.predict
    batch = settings.batch
    if batch == "auto":
        batch = choose_batch(predict, (volume.channels, *config.patch), volume.dtype, device)
    return Tiling(config.patch, settings.overlap, batch, settings.block_voxels, settings.skip_below)


def decided_by(config: Config, network: nn.Module, device: torch.device) -> dict[str, Any]:
    """What else than the tiling decides a prediction, to tell whether an interrupted one can be gone on with."""
    return {
        "network": fingerprint(network),
        "intensity": config.data.normalize,
        "flips": config.predict.flips,
        "precision": str(autocast_dtype(config.train.precision, device)),
    }
