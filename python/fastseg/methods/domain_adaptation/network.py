# SPDX-License-Identifier: BSD-3-Clause
"""The networks of domain adaptation, as volumes are given to them, and what one phase hands on to the next.

All have the same names for the parts they share: ``network.encoder``, ``network.segmentation``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastseg.errors import InputError
from fastseg.methods.networks import SliceNetwork
from fastseg.nets.ynet import AttentionYNet
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config


class YNetwork(SliceNetwork):
    """The Attention Y-Net: (B, C, z, y, x), one slice thick, to the logits of its segmentation."""

    def __init__(self, config: Config, channels: int) -> None:
        settings = config.network
        network = AttentionYNet(
            channels,
            len(config.data.classes or [1]),
            width=settings.width,
            gate=settings.gate,
            dropouts=settings.dropout,
        )
        super().__init__(network.to(memory_format=torch.channels_last), config.slice_axis)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        network = self.network
        return network.segmentation(network.encoder(image.squeeze(self.axis))).unsqueeze(self.axis)

    def both(
        self, image: Tensor, *, segment: bool = True, restore: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits and restored image; None for what is not asked for."""
        features = self.network.encoder(image.squeeze(self.axis))
        logits = self.network.segmentation(features).unsqueeze(self.axis) if segment else None
        restored = self.network.reconstruction(features).unsqueeze(self.axis) if restore else None
        return logits, restored


class Restyled(nn.Module):
    """Segments images of the target: ``generator`` gives them the source's style, ``segmenter`` knows the source."""

    def __init__(self, generator: nn.Module, segmenter: nn.Module) -> None:
        super().__init__()
        self.generator, self.segmenter = generator, segmenter

    def forward(self, image: Tensor) -> Tensor:
        return self.segmenter(self.generator(image))

    def train(self, mode: bool = True) -> Restyled:
        super().train(mode)
        self.generator.eval()  # it learns nothing any more
        return self


def take_over(network: nn.Module, run: RunFolder) -> list[str]:
    """Copy the weights of an earlier phase, the best where it was validated, into those of ``network`` that have the
    same name and shape; the names of the others.

    A head that restores other channels than there are classes begins anew, and the Y-Net's second decoder stays behind.
    """
    state, own = run.load_for_prediction("best")["network"], network.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    left = [name for name in own if name not in fitting]
    if any(".head." not in name for name in left):
        raise InputError(f"{run.path} is of another network: it lacks {left[0]}, or has it in another shape")
    network.load_state_dict(fitting, strict=False)
    return left


def freeze(network: SliceNetwork, what: str) -> None:
    """Freeze the encoder of an Attention U-Net, all of it but its deepest level ("above_bottleneck"), or "nothing"."""
    levels = network.network.encoder.levels
    frozen = {"encoder": len(levels), "above_bottleneck": len(levels) - 1, "nothing": 0}[what]
    for level in levels[:frozen]:
        level.requires_grad_(False)
