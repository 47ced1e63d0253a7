# SPDX-License-Identifier: BSD-3-Clause
"""What the method patch_contrast is to a configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from fastseg.methods.base import Method
from fastseg.methods.patch_contrast.config import PatchContrastConfig
from fastseg.train.config import Config

_TEMPLATE = """\
patch_contrast:             # of method patch_contrast, without labels: start from configs/nuclei_unlabelled.yaml
  channels: 4               # confidence maps, of which one becomes the segmentation
  patch_size: 50            # of the windows that are contrasted, or one number per axis; about an object or a few
  stride: 20
  windows: 10               # drawn per image and channel
  anchors: 10               # per channel
  floor: 1.0e-3             # weight of windows that a map is wholly unsure of
  similarity: neg_mse       # or bce; features: the cosine of a small network's, in 2D with patch_size 50
  void: skip                # a step in which a channel has no positive or no negative; keep: the others learn
  contrast: image           # or negative: for bright objects on dark ground
  offset: 0.05              # black is lifted to this
  batch_norm: recalibrated  # statistics of sample_steps batches; batch: of what is predicted at a time
  sample_steps: 5           # batches for those and for the choice of a channel
  choice: unlabelled        # or labelled: by the Dice in data.validation
  criterion: gap            # that a channel is chosen by: of its windows; separation of intensities; entropy
  foreground: [0.02, 0.6]   # share of an image that objects may plausibly cover
  appearance: either        # dark or bright objects: a channel that marks the others is inverted
  stop_gain: 0.01           # end when the windows' separation gains less over stop_window steps; null: never
  stop_window: 50
  picture_every: 100        # steps between pictures of maps and windows, in figures/ and TensorBoard
"""


class PatchContrastMethod(Method):
    name, section, template = "patch_contrast", PatchContrastConfig, _TEMPLATE
    learns_labels = False

    # The paper's network, batch and optimizer.
    defaults: ClassVar[dict[str, Any]] = {
        "network": {"kind": "fcnn", "width": 8},
        "data": {"normalize": "percentile", "sampling": {"uniform": 1.0, "labelled": 0.0, "foreground": 0.0}},
        "train": {
            "batch": 10,
            "learning_rate": 2e-4,
            "clip_norm": None,
            "precision": "fp32",
            "steps": 500,
            "validate_every": 100,
            "augment": {"enabled": False},
        },
        "predict": {"morphology": [["open", 3], ["close", 3], ["open", 1], ["close", 1]]},
    }

    def check(self, config: Config) -> None:
        if config.network.weights is not None:
            raise ValueError(
                "network.weights is for methods that train a U-Net; patch_contrast begins at random"
            )
        if config.train.stop is not None and config.train.stop.rule == "morphology":
            raise ValueError("train.stop: morphology compares with labels, and patch_contrast learns none")


METHOD = PatchContrastMethod()
