# SPDX-License-Identifier: BSD-3-Clause
"""The commented configuration that ``fastseg init`` writes; a test holds it against the schema."""

from __future__ import annotations

import os

from fastseg.errors import InputError
from fastseg.train.checkpoint import write_atomically

TEMPLATE = """\
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

sparse_2d3d:                # of method sparse_2d3d: a 2D network labels the slices between the annotated ones
  axis: null                # across the slices; null: that of annotated, or z
  patch: [128, 128]         # of the slices; data.patch is the 3D network's
  network: {kind: sliding_cnn, width: 16, pooling: [2, 2, 2], norm: instance, weights: null,
            dilations: [1, 2, 3, 5, 10, 20], gate: up, dropout: [0.1, 0.1, 0.2, 0.2, 0.3]}
  steps: 1000
  batch: 8
  learning_rate: 1.0e-3
  pseudo_labels: hard       # 0 and 1 at predict.threshold; soft: the probabilities

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

domain_adaptation:          # of method domain_adaptation: labels in data.train, images alone in data.target
  strategy: none            # or pretrain: restores images of both first; ynet: restores and segments; style: restyles
  phase: all                # written by the run itself into the folders of its phases
  match_histograms: null    # of data.train to data.target; null: with pretrain and ynet
  target_share: 0.5         # of the patches, while both domains are seen
  transductive: false       # true: the images of data.test are learnt from too
  freeze: encoder           # at the end of pretrain, ynet; or above_bottleneck: all but its deepest level; or nothing
  pretrain:                 # of strategy pretrain: degraded images are restored
    steps: 20000
    batch: 6
    learning_rate: 5.0e-4
    optimizer: adam         # or sgd, with momentum
    momentum: 0.99
    schedule: one_cycle     # or constant
    patience: null          # validations without a lower loss that end the phase; needs data.validation
    noise: 0.3              # of the largest value of a patch
    factor: 2               # smaller and large again along both axes
  step_1: {weights: [0.98, 0.02], steps: 5000, batch: 4, learning_rate: 1.0e-3, optimizer: sgd, momentum: 0.99,
           schedule: constant, patience: null}   # of strategy ynet; weights of image and segmentation in the loss
  step_2: {weights: [1.0, 0.0], steps: 4000, batch: 4, learning_rate: 2.0e-4, optimizer: adam, momentum: 0.99,
           schedule: constant, patience: null}   # the last step, of the segmentation alone, is train
  style:                    # of strategy style: images of data.target are given the style of data.train
    steps: 20000
    batch: 1                # images of either domain per step, of all processes together
    patch: [512, 512]       # y, x of the crops; several times what the generator should keep in proportion
    width: 64               # of generator and discriminator
    blocks: 9               # residual blocks of the generator
    patches: 256            # places of an image and layer that must be told apart
    projection: 256         # dimensions of what tells them apart
    temperature: 0.07
    nce_weight: 1.0         # of keeping what is where, against 1 of looking like the source
    identity: true          # source images must stay what they are
    learning_rate: 2.0e-4
    decay: 0.5              # share of the steps, the last ones, in which the learning rate falls to 0
    sample_steps: 8         # batches that tell what has been learnt
    picture_every: 200      # steps between pictures, in figures/ and TensorBoard

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


def write_template(path: str) -> None:
    """Write the template to a new file; InputError if there is one already."""
    if os.path.exists(path):
        raise InputError(f"{path} exists already: name another file")
    write_atomically(path, TEMPLATE.encode())
