# SPDX-License-Identifier: BSD-3-Clause
"""The commented configuration that ``fastseg init`` writes; a test holds it against the schema."""

from __future__ import annotations

import os

from fastseg.errors import InputError
from fastseg.methods.registry import METHODS
from fastseg.train.checkpoint import write_atomically

_ABOVE = """\
# A run of fastseg. Every key can be overridden on the command line: fastseg train FILE train.steps=100
method: supervised          # a network on the annotated voxels; or sparse_2d3d, patch_contrast, region_contrast,
                            # domain_adaptation
output: runs/first          # checkpoints, log, predictions and figures go here
seed: 0

data:
  # root: .                 # folder of the paths below; default: this file's own
  train:                    # one entry per volume
    - raw: brain.h5:/raw    # HDF5 file.h5:/dataset, stack.tif, "slices/*.png", a folder, array.npy
      labels: brain.h5:/labels   # 0 is background
      # mask: brain.h5:/mask     # per voxel 0 ignored, 1 labelled, 2 pseudo-labelled
      # axes: czyx               # where they are not yx, zyx or czyx
      # labels_axes: zyx         # and those of labels and mask
      # mask_axes: zyx
      # channels: [1]            # in place of data.channels
      # pairs: pairs.csv         # lines of raw,labels, for folders whose names do not tell what belongs together
      # voxel_size: [0.04, 0.008, 0.008]   # z, y, x in micrometres, where the file does not state it
      region: {z: [0, 96]}       # the part to use, [first, last) in voxels; leave out for all
      annotated: {axis: z, every: 8}   # or slices: [0, 8, 16]; leave out if every voxel is labelled
      # weight: 1.0              # share of the patches; for every volume or none
  validation:               # predicted while training, for the best checkpoint and train.stop; may be left out
    - raw: brain.h5:/raw
      labels: brain.h5:/labels
      region: {z: [128, 144]}
  test:                     # for fastseg predict and fastseg evaluate
    - raw: brain.h5:/raw
      labels: brain.h5:/labels
      region: {z: [100, 128]}
  target: []                # of another domain to segment, unlabelled: what train.stop: morphology looks at
  voxel_size: null          # z, y, x in micrometres, as in [0.04, 0.01, 0.01], that all volumes are resampled to; null,
                            # of an axis or of all: as stored. See docs/volumes.md
  patch: [16, 96, 96]       # z, y, x for a 3D network; [256, 256] makes it a 2D one
  slice_axis: z             # across the slices that a 2D network sees
  channels: null            # of several the ones to see, as in [1], or by their OME names, [DAPI, actin]; null: all
  classes: null             # null: label != 0, also of numbered objects; or ids, [1, 2], or {nucleus: 1, fibre: 2}
                            # or parts of numbered objects, [interior, boundary] or {cell: interior, edge: boundary}
  boundary: 1               # how many voxels wide boundaries are, or a width per axis, as in [0, 1, 1]
  exclusive: true           # of several classes a voxel is one at most; false: each is decided by itself
  ignore_label: null        # a label that says nothing, as in 255
  normalize: zscore         # per volume; or range (integers to 0..1), percentile (1st and 99th to 0 and 1), none
  sampling: {uniform: 0.1, labelled: 0.45, foreground: 0.45}   # shares of patch positions
  threads: 2                # readers
  patches_per_block: 4      # patches taken from one block of chunks; 1: each by itself. See docs/loading.md
  shuffle_steps: 8          # steps between patches of one block, on average
  cache_mib: 512            # decoded chunks kept for the patches that follow
  resident: auto            # volumes on the device where they fit into resident_mib; true; false
  resident_mib: 1024

network:
  kind: unet                # or resnet50, with five strides; sliding_cnn: a light network for slices; fcnn: that of
                            # patch_contrast; attention_unet: that of domain_adaptation, for slices
  width: 16                 # channels of the first convolution, doubled by each level
  pooling: [2, 2, 2]        # a stride per level; [[1, 2, 2], 2, 2] keeps z at first, for thick slices
  norm: instance            # or batch, none
  weights: null             # a run, as of region_contrast, or a checkpoint to begin with
  dilations: [1, 2, 3, 5, 10, 20]   # of fcnn, a residual block each; [1, 10, 10] sees less far along z
  gate: up                  # of attention_unet: its attention weights the features that come up, or skip
  dropout: [0.1, 0.1, 0.2, 0.2, 0.3]   # of attention_unet's levels

loss:
  normalize: voxels         # or weight, terms: see docs/ops/masked_bce.md
  pseudo_weight: 0.25       # of pseudo-labelled voxels: mask code 2, or those of sparse_2d3d
  pseudo_ramp: null         # as in [0.1, 0.5]: 0 for a tenth of the steps, pseudo_weight after half of them
  pos_weight: null          # a factor on foreground, one per class, as in [2.0]

"""

_BELOW = """\
train:
  steps: 2000
  batch: 2                  # patches per step, of all processes together
  learning_rate: 1.0e-3     # the peak of a one-cycle schedule
  warmup: 0.2               # share of the steps before the peak
  weight_decay: 1.0e-4
  clip_norm: 1.0            # of the gradient; null for none
  precision: auto           # bf16 where the device is fast at it, else fp32; or fp16, with scaled gradients
  device: auto              # or cpu, cuda, cuda:1; with several processes each takes a GPU of its own
  compile: false            # torch.compile of the network: minutes at the start, fewer per step after
  graph: auto               # a step as one CUDA graph, where the method allows; on: say so where it cannot be; off
  ema: null                 # as in 0.999: predict and validate with a moving average of the weights
  checkpoint_every: 500
  validate_every: 500       # steps between predictions of data.validation
  measure: dice             # what the best checkpoint is best in; or loss
  stop: null                # as in {patience: 5, gain: 0.001}: end after 5 validations that gained no more; or
                            # morphology: without labels of data.target, see docs/stopping.md
  augment:                  # augment: none, or enabled: false, for none at all; each kind is off at 0
    enabled: true
    symmetry: plane         # flips and right angles in y, x; volume: in all axes; none
    rotate: 0.0             # degrees to either side in y, x; with it a larger patch is read
    tilt: 0.0               # degrees about y and x
    scale: 0.0              # 0.2: zoom from 1/1.2 to 1.2
    elastic: 0.0            # displacement of control points, voxels
    elastic_grid: 32        # distance of control points, voxels
    gamma: 0.0              # 0.3: exponents from 1/1.3 to 1.3
    contrast: 0.1
    brightness: 0.1
    noise: 0.0
    blur: 0.0               # widest Gaussian, voxels
    missing: 0              # most sections in a row that are dark or faint
    probability: {rotate: 0.5, scale: 0.5, elastic: 0.3, gamma: 0.3, contrast: 1.0, brightness: 1.0, noise: 1.0,
                  blur: 0.2, missing: 0.2}   # share of samples that each kind changes

predict:
  window: null              # what the network sees at a time; null: as large as data.patch
  overlap: 0.5              # share of the window shared with the next
  threshold: 0.5
  flips: none               # plane: mean over 4 mirror images, volume: over 8
  morphology: []            # as in [[open, 3], [close, 3]]: disks or balls of a radius, or one per axis
  instances: auto           # of --what instances: boundary cuts along that class, where it is one; components: objects
                            # that touch are one; distance: they are cut at their necks
  neck: 0.8                 # of distance: the widest neck that is cut, as a share of the smaller object's width
  skip_below: null          # windows all at or below this raw value are background, not predicted
  batch: auto               # windows at a time; auto: what keeps the device busy and fits it
  block_voxels: 33554432    # voxels in accumulation at a time
  probability: true         # keep /probability beside /segmentation
  format: h5                # or zarr
  checkpoint: best          # in data.validation, if there is any; or newest
"""

TEMPLATE = "\n".join(
    [_ABOVE.removesuffix("\n"), *(m.template for m in METHODS.values() if m.template), _BELOW]
)


def write_template(path: str) -> None:
    """Write the template to a new file; InputError if there is one already."""
    if os.path.exists(path):
        raise InputError(f"{path} exists already: name another file")
    write_atomically(path, TEMPLATE.encode())
