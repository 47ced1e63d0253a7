# SPDX-License-Identifier: BSD-3-Clause
"""Masks of some slices of a stack, one file each with the number of its slice in its name, as labels to train from."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from fastseg.data.annotation_import import write_annotations
from fastseg.data.annotation_plan import plan_of
from fastseg.data.annotations import AnnotatedVolume, Annotation
from fastseg.data.slice_numbers import doubtful_slices
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError


def gather_slices(stack: str, masks: Sequence[str], path: str, first: int = 0) -> tuple[list[int], list[str]]:
    """Write labels and mask of the shape of ``stack`` to ``path``; returns the slices, counted from 0, and what is
    doubtful about their numbers, a line each.

    The number of a slice is the last one in the name of its mask, ``first`` that of the first slice. InputError where
    one has none, two have the same, or the stack has no such slice.
    """
    volume = open_volume(stack)
    files: dict[int, str] = {}
    for mask in masks:
        numbers = re.findall(r"\d+", os.path.splitext(os.path.basename(mask))[0])
        if not numbers:
            raise InputError(
                f"{mask} must have the number of its slice of {stack} in its name, as in z0012.png"
            )
        index = int(numbers[-1]) - first
        if not 0 <= index < volume.shape[0]:
            hint = (
                "; give --first 1 where they are counted from 1"
                if index == volume.shape[0] and not first
                else ""
            )
            raise InputError(
                f"{mask} is of slice {numbers[-1]}, and {stack} has {first} to {first + volume.shape[0] - 1}{hint}"
            )
        if index in files:
            raise InputError(f"{files[index]} and {mask} are of one slice: keep one of them")
        files[index] = mask
    plan = plan_of(volume, volume, stack, None, "z")
    slices = sorted(files)
    write_annotations(plan, {index: files[index] for index in slices}, path)
    labels, mask = (open_volume(f"{path}:/{name}") for name in ("labels", "mask"))
    annotated = AnnotatedVolume(volume, labels, mask, Annotation(0, tuple(slices)))
    return slices, [f"trouble: {line}; see --first" for line in doubtful_slices(annotated)]
