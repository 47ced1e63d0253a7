# SPDX-License-Identifier: BSD-3-Clause
"""The linear probe: how well one linear map of the features, fitted to a few labels, segments validation volumes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.augment import Augmentation, augment
from fastseg.errors import InputError
from fastseg.methods.inference import predictor, tiling_of
from fastseg.methods.region_contrast.config import RegionContrastConfig
from fastseg.methods.region_contrast.network import PretextNetwork
from fastseg.methods.training_data import build_loader
from fastseg.methods.validation import Validation
from fastseg.train.config import Config
from fastseg.train.inputs import open_validation
from fastseg.train.ranks import Ranks

# Of the mean square of a feature: what keeps features that say the same from large weights.
_RIDGE = 1e-4


class LinearProbe:
    """Dice of least squares on the labelled voxels of ``sample_steps`` batches, classes weighing alike; none without
    ``data.validation``."""

    def __init__(
        self, config: Config, volumes: list[AnnotatedVolume], network: PretextNetwork, ranks: Ranks
    ) -> None:
        self.config, self.network, self.ranks = config, network, ranks
        self.held_out = open_validation(config, volumes[0].raw)
        self.labelled = [volume for volume in volumes if volume.labels is not None]
        if self.held_out and not self.labelled:
            raise InputError(
                "data.validation measures a linear probe, which learns from labels: give some volume of data.train "
                "its labels, or leave data.validation out"
            )
        if not self.held_out:
            return
        sampling = {"uniform": 0.0, "labelled": 0.5, "foreground": 0.5}
        entries = [e for e, v in zip(config.data.train, volumes, strict=True) if v.labels is not None]
        data = {"sampling": config.data.sampling.model_copy(update=sampling), "train": entries}
        probing = config.model_copy(update={"data": config.data.model_copy(update=data)})
        indexes = [index_labels(volume, config.seed) for volume in self.labelled]
        places = ranks.places(config.train.batch)
        self.loader = build_loader(probing, self.labelled, indexes, ranks.device, places, (0, 0, 0))
        self.probe = _Probe(network, self.labelled[0].target_channels)
        # Each class is fitted by itself.
        apart = config.model_copy(update={"data": config.data.model_copy(update={"exclusive": False})})
        predictors = [predictor(self.probe, v.raw, apart, ranks.device) for v in self.held_out]
        tilings = [
            tiling_of(config, predict, volume.raw, ranks.device)
            for predict, volume in zip(predictors, self.held_out, strict=True)
        ]
        self.validation = Validation(self.held_out, predictors, tilings, config.predict.threshold, ranks)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """``dice``, or nothing where there is nothing to measure with."""
        if not self.held_out:
            return {}
        self._fit()
        return {"dice": self.validation.measure()["dice"]}

    def _fit(self) -> None:
        classes, size = self.labelled[0].target_channels, self.network.width + 1
        gram = torch.zeros(classes, 2, size, size + 1, dtype=torch.float64)  # by class, and target 0 or 1
        count = torch.zeros(classes, 2, dtype=torch.float64)
        for step in range(self.config.section(RegionContrastConfig).sample_steps):
            batch = self.loader.load(step).to(self.ranks.device)
            image, target, codes = augment(batch, Augmentation(enabled=False), self.config.patch, 0)
            rows = self.network.features(image).movedim(1, -1)[codes[:, 0] == 1].double()
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
            for c in range(classes):
                truth = target[:, c][codes[:, 0] == 1] >= 0.5
                for t in (0, 1):
                    mine = rows[truth == bool(t)]
                    gram[c, t, :, :size] += (mine.T @ mine).cpu()
                    gram[c, t, :, size] += t * mine.sum(0).cpu()
                    count[c, t] += len(mine)
        gram, count = self.ranks.sum(gram), self.ranks.sum(count)
        weighted = (gram / count.clamp(min=1)[..., None, None]).sum(1)
        squares, products = weighted[..., :size], weighted[..., size]
        squares = squares + _RIDGE * torch.diag_embed(squares.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12))
        self.probe.set(torch.linalg.solve(squares, products))


class _Probe(nn.Module):
    """Logits (B, K, z, y, x), 0 where the fitted target is a half."""

    def __init__(self, network: PretextNetwork, classes: int) -> None:
        super().__init__()
        self.features, self.linear = network, nn.Conv3d(network.width, classes, 1)

    def set(self, weights: Tensor) -> None:
        """(K, width + 1), the last of each row its offset."""
        self.linear.to(next(self.features.parameters()).device)
        self.linear.weight.copy_(weights[:, :-1].reshape(self.linear.weight.shape))
        self.linear.bias.copy_(weights[:, -1] - 0.5)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.features.features(image))
