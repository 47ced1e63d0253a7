# SPDX-License-Identifier: BSD-3-Clause
"""Networks."""

from fastseg.nets.cut import CutGenerator, PatchDiscriminator, ProjectionHeads
from fastseg.nets.fcnn import FCNN, PatchFeaturiser
from fastseg.nets.resnet import ResNetUNet
from fastseg.nets.sliding_cnn import SlidingCNN
from fastseg.nets.unet import UNet
from fastseg.nets.ynet import AttentionUNet, AttentionYNet

__all__ = [
    "FCNN",
    "AttentionUNet",
    "AttentionYNet",
    "CutGenerator",
    "PatchDiscriminator",
    "PatchFeaturiser",
    "ProjectionHeads",
    "ResNetUNet",
    "SlidingCNN",
    "UNet",
]
