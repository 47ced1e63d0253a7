# SPDX-License-Identifier: BSD-3-Clause
"""The light 2D network that labels the pixel in the middle of a 32 x 32 patch, and its dense form.

Three unpadded convolutions and two fully connected layers, as in Castelli et al. (arXiv 2009.00029) and the model
their laboratory released for this tissue. The fully connected layers are kept as convolutions of 4 x 4 and 1 x 1:
on a patch they are the same sums, and on an image they give the answer of every patch, 4 pixels apart, at once.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 32
STRIDE = 4  # of the two poolings


class SlidingCNN(nn.Module):
    """Map (B, in_channels, H, W) to logits (B, classes, H, W).

    Arguments:
      in_channels: channels of the image.
      classes: 1 gives one logit, the difference of the two outputs that the softmax of the paper sees; for two
        and more, one output each. 204,226 parameters for one channel and 205,026 for two, with 1 or 2 classes.

    Each output at the pixels (4 i, 4 j) is what ``patch_logits`` gives for the patch about that pixel,
    [4 i - 16, 4 i + 16) and likewise in j, zeros outside the image. In between, outputs are interpolated linearly.
    """

    def __init__(self, in_channels: int = 1, classes: int = 1) -> None:
        super().__init__()
        self.classes = classes
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(64, 128, 4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(128, 128, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(128, max(classes, 2), 1),
        )

    def patch_logits(self, patches: Tensor) -> Tensor:
        """(B, in_channels, 32, 32) to (B, classes), the logits of the pixel (16, 16) of each patch."""
        if patches.ndim != 4 or patches.shape[2:] != (PATCH, PATCH):
            raise ValueError(f"patches must be (B, C, {PATCH}, {PATCH}), got {tuple(patches.shape)}")
        return self._answers(patches)[:, :, 0, 0]

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4:
            raise ValueError(f"image must be (B, C, H, W), got {tuple(image.shape)}")
        height, width = image.shape[2:]
        # One answer beyond the last pixel, so that all pixels lie between answers.
        rows, columns = -(-(height - 1) // STRIDE) + 1, -(-(width - 1) // STRIDE) + 1
        half = PATCH // 2
        below = (rows - 1) * STRIDE + half - height
        right = (columns - 1) * STRIDE + half - width
        answers = self._answers(F.pad(image, (half, right, half, below)))
        size = ((rows - 1) * STRIDE + 1, (columns - 1) * STRIDE + 1)
        dense = F.interpolate(answers, size, mode="bilinear", align_corners=True)
        return dense[:, :, :height, :width]

    def _answers(self, image: Tensor) -> Tensor:
        outputs = self.classifier(self.features(image))
        return outputs[:, 1:] - outputs[:, :1] if self.classes == 1 else outputs
