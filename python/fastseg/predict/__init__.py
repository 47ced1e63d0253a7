# SPDX-License-Identifier: BSD-3-Clause
"""Sliding-window prediction from file to file, in memory that does not depend on the volume's size."""

from fastseg.predict.decide import segmented
from fastseg.predict.files import predict_to_file, raw_changed, show_progress
from fastseg.predict.grid import Block, Grid, Tiling
from fastseg.predict.network import Flips, choose_batch, fingerprint, images_per_window, probability_of
from fastseg.predict.refine import refine_file
from fastseg.predict.restore import restore_file
from fastseg.predict.stream import CHUNK, Network, Waited, predict_blocks

__all__ = [
    "CHUNK",
    "Block",
    "Flips",
    "Grid",
    "Network",
    "Tiling",
    "Waited",
    "choose_batch",
    "fingerprint",
    "images_per_window",
    "predict_blocks",
    "predict_to_file",
    "probability_of",
    "raw_changed",
    "refine_file",
    "restore_file",
    "segmented",
    "show_progress",
]
