# SPDX-License-Identifier: BSD-3-Clause
"""Annotated slices of a plan, gathered into one file of labels and mask as training reads them."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass

import numpy as np

from fastseg.data.annotation_plan import Plan, label_files, load_plan
from fastseg.data.annotations import LABELLED
from fastseg.data.imagej_rois import ROI_SUFFIXES, draw_rois, split_rois
from fastseg.data.outputs import ArraySpec, Block, open_output
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError

ANNOTATIONS = "annotations.h5"

# In the plane of the slices; across them chunks are one thick, so that a slice costs its own chunks alone.
_CHUNK = 256


@dataclass(frozen=True)
class Imported:
    """What was written: ``path``, the slices in it, those of the plan that have no labels yet, and voxels counted."""

    plan: Plan
    path: str
    slices: list[int]
    missing: list[int]
    labelled_voxels: int
    foreground_voxels: int


def import_annotations(folder: str, unlabelled: int | None = None) -> Imported:
    """Write ``annotations.h5`` into the folder of a plan from its files of labels, whole or not at all.

    ``labels``, of the smallest unsigned dtype that holds the ids, and ``mask``, uint8: 1 on the annotated slices, 0
    elsewhere and where the id is ``unlabelled``, whose labels are 0. Both have the shape (z, y, x) of the volume's
    file. Files of labels are grey images of the slice's height and width, of integers from 0 on; 0 is background; or
    ImageJ's ROIs (imagej_rois.py).
    Slices that were not planned are taken as well. Those without labels cost nothing: their chunks are not stored.
    Memory: labels and mask of one slice of the file.
    InputError for a file that does not fit, with what is wrong.
    """
    plan = load_plan(folder)
    return write_annotations(
        plan, _files_by_slice(plan, folder), os.path.join(folder, ANNOTATIONS), unlabelled
    )


def add_rois(path: str, folder: str) -> list[str]:
    """Write the ROIs of a stack into the folder of a plan, a file for each slice that has any; returns their paths.
    InputError where they are not of whole slices across z, or a file is there already."""
    plan = load_plan(folder)
    (top, bottom), (left, right) = plan.plane
    if plan.axis != "z" or (top, left) != (0, 0) or (bottom, right) != plan.shape[1:]:
        raise InputError(
            f"{path} holds ROIs of whole slices across z: plan {folder} without --axis and --region"
        )
    low, high = plan.region[0]
    return split_rois(
        path, range(low, high), lambda index: os.path.join(folder, f"{plan.name(index)}_labels.zip")
    )


def write_annotations(
    plan: Plan, files: dict[int, str], path: str, unlabelled: int | None = None
) -> Imported:
    """The same to ``path``, of a file of labels for each slice, in order."""
    highest = labelled = foreground = 0
    for name in files.values():
        ids, known = _read_labels(name, plan, unlabelled)
        highest = max(highest, int(ids.max()))
        labelled += int(np.count_nonzero(known))
        foreground += int(np.count_nonzero(ids))

    axis = plan.number
    chunks = [_CHUNK] * 3
    chunks[axis] = 1
    dtypes = {"labels": np.min_scalar_type(highest), "mask": np.dtype(np.uint8)}
    voxel_size = plan.voxel_size
    arrays = {
        name: ArraySpec(plan.shape, dtype, tuple(chunks), None, voxel_size, {"source": plan.volume})
        for name, dtype in dtypes.items()
    }
    blocks = _blocks(plan, list(files))
    here = [slice(*limits) for limits in plan.region]
    here[axis] = slice(None)
    with open_output(path, arrays, blocks=blocks) as output:
        for start, stop in blocks:
            if start[axis] not in files:
                output.write(start, stop, {})
                continue
            ids, known = _read_labels(files[start[axis]], plan, unlabelled)
            box = [b - a for a, b in zip(start, stop, strict=True)]
            whole = {name: np.zeros(box, dtype) for name, dtype in dtypes.items()}
            whole["labels"][tuple(here)] = np.expand_dims(ids, axis)
            whole["mask"][tuple(here)] = np.expand_dims(known, axis) * LABELLED
            output.write(start, stop, whole)
    missing = [index for index in sorted(plan.indexes()) if index not in files]
    return Imported(plan, path, list(files), missing, labelled, foreground)


def _files_by_slice(plan: Plan, folder: str) -> dict[int, str]:
    """The files of labels by the slice they are of, planned or not, in order."""
    found = label_files(folder)
    if not found:
        name = plan.name(min(plan.indexes(), default=plan.first))
        raise InputError(f"{folder} holds no labels: save those of {name}.tif as {name}_labels.tif or .png")
    low, high = plan.region[plan.number]
    files: dict[int, str] = {}
    for name, path in found.items():
        match = re.fullmatch(rf"{plan.axis}(\d+)", name)
        index = int(match[1]) if match else -1
        if not low <= index < high:
            raise InputError(
                f"{path} is of no slice of the plan: names are {plan.name(low)} to {plan.name(high - 1)}, counted from "
                f"{low}, and _labels"
            )
        if index in files:
            raise InputError(f"{files[index]} and {path} are of one slice: keep one of them")
        files[index] = path
    return dict(sorted(files.items()))


def _blocks(plan: Plan, annotated: list[int]) -> list[Block]:
    """Boxes that tile the file: one for each annotated slice, and one for all slices between two of them."""
    cuts = sorted({0, plan.shape[plan.number], *annotated, *(index + 1 for index in annotated)})
    blocks = []
    for low, high in itertools.pairwise(cuts):
        start, stop = [0, 0, 0], list(plan.shape)
        start[plan.number], stop[plan.number] = low, high
        blocks.append(((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])))
    return blocks


def _read_labels(path: str, plan: Plan, unlabelled: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids (rows, columns), 0 where they are ``unlabelled``, and where they are not."""
    if path.lower().endswith(ROI_SUFFIXES):
        ids = draw_rois(path, plan.picture)
    else:
        volume = open_volume(path, ids=True)
        _require_grey_picture(path, volume, plan.picture)
        ids = volume.read((0, 0, 0), volume.shape)[0, 0]
    known = np.ones(ids.shape, bool) if unlabelled is None else ids != unlabelled
    ids = np.where(known, ids, 0)
    if ids.min() < 0:
        raise InputError(
            f"{path} holds the id {ids.min()}: ids must be 0 (background) or more; an id for what was not looked at "
            "is given as --unlabelled"
        )
    return ids, known


def _require_grey_picture(path: str, volume: Volume, picture: tuple[int, int]) -> None:
    expected = f"{picture[0]} x {picture[1]} (height x width), like its slice"
    pages, *size = volume.shape
    if volume.channels != 1:
        hint = " (an image editor has saved colours, RGB)" if volume.channels in (3, 4) else ""
        raise InputError(
            f"{path} must be a grey image that holds ids, got {volume.channels} channels{hint}: save it with one"
        )
    if volume.dtype.kind not in "bui":
        raise InputError(f"{path} must hold integers, got {volume.dtype}: save ids as 8 or 16 bit")
    if pages != 1:
        raise InputError(f"{path} must be one image of {expected}, got {pages} of them")
    if tuple(size) != picture:
        hint = ": it is transposed, rows and columns are exchanged" if tuple(size[::-1]) == picture else ""
        raise InputError(f"{path} must be {expected}, got {size[0]} x {size[1]}{hint}")
