# SPDX-License-Identifier: BSD-3-Clause
"""What the method region_contrast is to a configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from fastseg.methods.base import Method
from fastseg.methods.region_contrast.config import RegionContrastConfig
from fastseg.train.config import Config

_TEMPLATE = """\
region_contrast:            # of method region_contrast: pretraining without labels, then training with few
  stage: pretrain           # or finetune: network.weights is the run of the first stage
  pretext: regions          # or, to compare with, masked: hidden blocks are restored; images: views are told apart
  regions: 16               # K, of an image
  given: false              # true: the labels of data.train are regions, as superpixels, 0 being none
  assignment: shared        # of voxels to regions, by both views together; own: by each for itself
  embedding: 32             # D, of a voxel and of a region
  temperature: 0.2
  semantic_weight: 1.0      # of the contrast between regions
  grey_weight: 1.0          # of the grey levels within and between regions
  beta: 1.0                 # of those between
  margin: 0.2               # that grey levels of two regions should be apart
  negatives: batch          # regions of the batch; or image: of the same image alone
  least_share: 1.0e-3       # of an image, for a region to be there
  memory: 0                 # regions of earlier steps to be told apart from, as in 4096
  shift: 16                 # voxels that a view is off the middle, at most; or one number per axis
  mask_size: 16             # of masked: the blocks; or one number per axis
  mask_share: 0.6           # hidden
  sample_steps: 4           # batches that tell which regions are in use, and how far apart
  picture_every: 200        # steps between pictures of the regions, in figures/ and TensorBoard
"""


class RegionContrastMethod(Method):
    name, section, template = "region_contrast", RegionContrastConfig, _TEMPLATE

    # In both stages: greys from 0 to 1.
    defaults: ClassVar[dict[str, Any]] = {"data": {"normalize": "percentile"}}

    def segments(self, config: Config) -> bool:
        return config.section(RegionContrastConfig).stage == "finetune"


METHOD = RegionContrastMethod()
