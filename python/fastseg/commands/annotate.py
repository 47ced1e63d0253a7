# SPDX-License-Identifier: BSD-3-Clause
"""fastseg annotate-plan and annotate-import: from a volume to pictures to annotate, and back to labels and mask."""

from __future__ import annotations

import os
from typing import Any

import yaml

from fastseg.commands.infer import parse_region
from fastseg.data.annotation_import import add_rois, import_annotations
from fastseg.data.annotation_plan import (
    Plan,
    PlannedSlice,
    continue_plan,
    extend_plan,
    plan_of,
    taken_slices,
)
from fastseg.data.slice_choice import highest_slices, spread_slices
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError
from fastseg.methods.config_file import parse_config
from fastseg.methods.inference import predictor, tiling_of, trained_network
from fastseg.methods.uncertainty import SliceUncertainty, measure_uncertainty
from fastseg.predict import show_progress
from fastseg.train.checkpoint import RunFolder
from fastseg.train.device import choose_device
from fastseg.train.inputs import crop
from fastseg.train.memory import explaining_out_of_memory
from fastseg.train.ranks import Ranks


def plan_slices(
    path: str,
    folder: str,
    count: int | None,
    *,
    at: str | None = None,
    axis: str = "z",
    region: str | None = None,
    run: str | None = None,
    axes: str | None = None,
    window: int = 32,
) -> list[str]:
    """Add slices of a volume to the plan in ``folder``: ``count`` that are even, or where the network of ``run`` is
    least certain; or those of ``at``, as in ``5,9``. Returns lines to print."""
    if axis not in ("z", "y", "x"):
        raise InputError(f"--axis must be z, y or x, got {axis}")
    if (count is None) == (at is None):
        raise InputError("give either --slices, how many, or --at, which ones")
    if at is not None and run is not None:
        raise InputError("--run chooses slices by itself: leave --at or --run")
    volume = open_volume(path, axes)
    part = crop(volume, parse_region(region)) if region else volume
    plan = continue_plan(folder, plan_of(volume, part, path, axes, axis))
    taken = taken_slices(plan, folder)
    if count is not None and count > plan.depth - len(taken):
        raise InputError(
            f"--slices {count}: of the {plan.depth} slices along {axis}, {plan.depth - len(taken)} are not planned yet"
        )
    lines = []
    if at is not None:
        chosen = [PlannedSlice(index) for index in _slices_by_hand(at, plan)]
        if not chosen:
            return [f"all of --at {at} are planned already"]
    elif run is None:
        chosen = [PlannedSlice(plan.first + place) for place in spread_slices(plan.depth, count or 0, taken)]
    else:
        uncertainty = _uncertainty(run, part, plan.number, window)
        scores = uncertainty.scores()
        places, asked, kept = highest_slices(scores, count or 0, taken)
        if kept < asked:
            lines.append(f"no slice was left {asked:.3g} from all others: some are only {kept:.3g} apart")
        chosen = [
            PlannedSlice(
                plan.first + place, float(scores[place]), uncertainty.least_certain(place), uncertainty.window
            )
            for place in places
        ]
    extend_plan(plan, folder, part, chosen)
    lines += [_describe(plan, planned) for planned in chosen]
    name = plan.name(chosen[0].index)
    return [
        *lines,
        f"save labels beside them, as in {os.path.join(folder, name)}_labels.tif or .png, then fastseg annotate-import "
        f"{folder}",
    ]


def import_labels(folder: str, unlabelled: int | None = None, rois: str | None = None) -> list[str]:
    """Gather the labels of a plan into one file, with ``rois``, a file of ImageJ. Returns lines to print."""
    added = add_rois(rois, folder) if rois is not None else []
    found = import_annotations(folder, unlabelled)
    plan, voxels = found.plan, found.labelled_voxels
    foreground = 100 * found.foreground_voxels / max(voxels, 1)
    lines = [f"wrote {path}" for path in added]
    lines += [
        f"{len(found.slices)} slices, {voxels:,} voxels annotated, {foreground:.3g} % of them foreground",
        f"wrote {found.path}",
    ]
    if found.missing:
        lines.append(f"planned, without labels yet: {', '.join(map(plan.name, found.missing))}")
    entry: dict[str, Any] = {"raw": plan.path} | ({"axes": plan.axes} if plan.axes else {})
    path = os.path.abspath(found.path)
    entry |= {"labels": f"{path}:/labels", "mask": f"{path}:/mask"}
    # The mask says it all, but with the slices named no other is read in search of labels.
    entry |= {"annotated": {"axis": plan.axis, "slices": found.slices}}
    layout = {"sort_keys": False, "default_flow_style": None, "width": 10**6, "allow_unicode": True}
    text = yaml.safe_dump({"data": {"train": [entry]}}, **layout)
    return [*lines, "in a configuration:", *(f"  {line}" for line in text.splitlines())]


def _slices_by_hand(at: str, plan: Plan) -> list[int]:
    """Those of ``5,9`` that are not planned yet, in order."""
    low, high = plan.region[plan.number]
    try:
        indexes = sorted({int(part) for part in at.split(",")})
    except ValueError:
        raise InputError(f"--at must be numbers of slices, as in 5,9, got {at!r}") from None
    for index in indexes:
        if not low <= index < high:
            raise InputError(f"--at {index}: slices along {plan.axis} are numbered {low} to {high - 1}")
    return [index for index in indexes if index not in plan.indexes()]


def _uncertainty(path: str, volume: Volume, axis: int, window: int) -> SliceUncertainty:
    """Of the network of a run, opened and run as fastseg predict does."""
    run = RunFolder(path)
    config = parse_config(run.load_config(), path)
    if config.data.voxel_size is not None:
        raise InputError(
            f"--run {path}: its network sees volumes at data.voxel_size, which annotate-plan does not resample to: "
            "plan without --run"
        )
    state = run.load_for_prediction(config.predict.checkpoint)
    device = choose_device(config.train.device)
    volume = volume.pick(config.data.channels)
    network = trained_network(config, state, [volume], device)
    sizes = {"predict.batch": config.predict.batch, "predict.block_voxels": config.predict.block_voxels}
    with explaining_out_of_memory(Ranks(device=device), sizes, "lower one of them"):
        predict = predictor(network, volume, config, device)
        return measure_uncertainty(
            volume,
            predict,
            tiling_of(config, predict, volume, device),
            axis,
            window,
            classes=len(config.data.classes or [1]),
            exclusive=config.exclusive,
            device=device,
            progress=show_progress,
        )


def _describe(plan: Plan, planned: PlannedSlice) -> str:
    text = f"{plan.name(planned.index)}.tif"
    if planned.score is None:
        return text
    corners = ", ".join(f"({row}, {column})" for row, column in planned.look_first)
    return f"{text}  {planned.score:.3f} bits; look first at (row, column) {corners}"
