# SPDX-License-Identifier: BSD-3-Clause
"""fastseg predict and fastseg evaluate: from a trained run to segmentations, scores and pictures."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastseg.data.annotations import AnnotatedVolume
from fastseg.data.exports import EXPORT_SUFFIXES, export_volume, is_export, require_export
from fastseg.data.images import bare_name, image_paths
from fastseg.data.instances import InstanceSource
from fastseg.data.label_map import LabelMapSource
from fastseg.data.object_parts import PARTS
from fastseg.data.outputs import OUTPUT_SUFFIXES, is_begun
from fastseg.data.touching import SplitSource, at_boundaries, at_necks
from fastseg.data.volumes import Volume, is_image_folder, open_volume
from fastseg.errors import InputError
from fastseg.methods.config_file import apply_overrides, load_config, parse_config
from fastseg.methods.inference import segment, trained_network
from fastseg.metrics import Confusion, evaluate_volume, total
from fastseg.report import draw_comparison, write_metrics
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config
from fastseg.train.data_config import RegionConfig
from fastseg.train.inputs import as_stored, at_voxel_size, crop, open_annotated, with_voxel_size
from fastseg.train.ranks import Ranks, join

# What a file of one array may hold: ids of the classes (0 and 1 without data.classes), a channel of 0 and 1 for each,
# or a channel of probabilities for each; or a number of its own for each connected object.
EXPORTED = ("labels", "masks", "probability", "instances")


def predict_run(
    path: str,
    *,
    raw: str | None = None,
    output: str | None = None,
    axes: str | None = None,
    channels: str | None = None,
    region: str | None = None,
    voxel_size: str | None = None,
    overrides: Sequence[str] = (),
    what: str | None = None,
    smallest: int = 0,
    restart: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> list[str]:
    """Segment the test volumes of a run, or ``raw`` (or its ``region``) into ``output``; returns the files written.

    output: an HDF5 or Zarr of all there is; a file of another program's format, which holds ``what``, one of
    ``labels`` (the default), ``masks``, ``probability`` and ``instances``, objects of at least ``smallest`` voxels; or
    a folder, for a TIFF of each file of the folder ``raw``.
    What an interrupted prediction has finished is gone on with, unless ``restart``. An ``output`` that is there already
    is replaced only with ``overwrite``.
    """
    run = RunFolder(path)
    config = parse_config(apply_overrides(run.load_config(), overrides), path)
    state = run.load_for_prediction(config.predict.checkpoint)
    if (raw is None) != (output is None):
        raise InputError("--raw and --output go together: a volume to segment and the file to write")
    if voxel_size is not None and raw is None:
        raise InputError("--voxel-size goes with --raw; the voxel sizes of test volumes stand in data.test")
    if channels is not None and raw is None:
        raise InputError("--channels goes with --raw; those of test volumes stand in data.channels")
    if region is not None and raw is None:
        raise InputError("--region goes with --raw; the regions of test volumes stand in data.test")
    if what is not None and (output is None or _holds_all(output)):
        raise InputError(
            "--what goes with an --output of one array, such as .tif; HDF5 and Zarr hold all there is"
        )
    if what not in (None, *EXPORTED):
        raise InputError(f"--what must be one of {', '.join(EXPORTED)}, got {what}")
    if smallest and what != "instances":
        raise InputError("--smallest goes with --what instances: how many voxels an object has at least")
    if raw is not None and output is not None:
        jobs = []
        for source, target in _files(raw, output, config):
            volume = with_voxel_size(open_volume(source, axes), parse_voxel_size(voxel_size))
            volume = volume.pick(parse_channels(channels) or config.data.channels)
            volume = crop(volume, parse_region(region)) if region else volume
            if os.path.exists(target) and os.path.samefile(target, volume.source.path):
                raise InputError(f"--output {target} is the file that --raw is in: name another")
            if os.path.exists(target) and not (overwrite or is_begun(_written_first(target))):
                raise InputError(f"--output {target} exists: add --overwrite to replace it, or name another")
            jobs.append((at_voxel_size(volume, config.data), target))
    else:
        if not config.data.test:
            raise InputError(
                f"{run.file('config.yaml')} names no data.test volume: give a file to segment by --raw FILE and the "
                "one to write by --output prediction.h5 or .tif"
            )
        jobs = [
            (volume.raw, _prediction_path(run, i, config.predict.format))
            for i, volume in enumerate(_open_tests(config))
        ]
    with join(config.train.device) as ranks:
        network = trained_network(config, state, [volume for volume, _ in jobs], ranks.device)
        for volume, target in jobs:
            if _holds_all(target):
                segment(volume, network, config, target, ranks, restart=restart, quiet=quiet)
            else:
                form = (what or "labels", smallest)
                _export(volume, network, config, target, ranks, *form, restart=restart, quiet=quiet)
    return [target for _, target in jobs]


def within_run(image: str, run: str) -> str:
    """Where the segmentation of a file or folder goes where nothing is said, as ``RUN/segmented/cells.tif``: never
    beside the image, where it would be taken for an image or a mask of the training data."""
    if is_image_folder(image):
        folder = image if os.path.isdir(image) else os.path.dirname(image)
        return os.path.join(run, "segmented", os.path.basename(os.path.abspath(folder)))
    file = re.sub(r"(\.(h5|hdf5?|zarr|n5|ims)):.*$", r"\1", image)
    return os.path.join(run, "segmented", bare_name(file) + ".tif")


def evaluate_run(path: str) -> tuple[dict[str, Confusion], list[str]]:
    """Score the predictions of a run's test volumes; returns the scores and the files written."""
    run = RunFolder(path)
    config = load_config(run.file("config.yaml"))
    # Predictions are on the grid of the file, and so are labels that nothing was done to.
    tests = _open_tests(as_stored(config))
    if not tests:
        raise InputError(f"{run.file('config.yaml')} names no data.test volume to evaluate")
    results: dict[str, list[Confusion]] = {}
    files = []
    for number, truth in enumerate(tests):
        if truth.labels is None:
            raise InputError(f"data.test.{number} ({truth.raw.name}) has no labels to evaluate against")
        prediction = open_volume(f"{prediction_path(run, number)}:/segmentation")
        results[_label(number, truth)] = counts = evaluate_volume(prediction, truth)
        figure = run.file("figures", f"test_{number}.png")
        names = config.data.class_names
        dice = [f"{name} {count.dice:.3f}" for name, count in zip(names, counts, strict=False)]
        title = f"{truth.raw.label}: Dice {', '.join(dice) or f'{counts[0].dice:.3f}'}"
        draw_comparison(figure, truth, {"prediction": prediction}, title, names)
        files.append(figure)
    rows = _rows(results, config)
    write_metrics(run.file("evaluation.json"), rows)
    return rows, [run.file("evaluation.json"), *files]


def prediction_path(run: RunFolder, number: int) -> str:
    """Where the prediction of a test volume is; of two formats, the newer one. InputError if there is none."""
    paths = [_prediction_path(run, number, suffix) for suffix in ("h5", "zarr")]
    found = [path for path in paths if os.path.exists(path)]
    if not found:
        raise InputError(f"{paths[0]} does not exist: run fastseg predict {run.path} first")
    return max(found, key=os.path.getmtime)


def parse_region(text: str) -> RegionConfig:
    """``z=0:64,x=100:356`` as a region."""
    ranges = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([zyx])\s*=\s*(\d+)\s*:\s*(\d+)\s*", part)
        if not match or match[1] in ranges:
            raise InputError(f"--region must look like z=0:64,x=100:356, each axis once, got {text!r}")
        ranges[match[1]] = (int(match[2]), int(match[3]))
    return RegionConfig.model_construct(**ranges)


def parse_channels(text: str | None) -> list[int | str] | None:
    """``1,DAPI`` as numbers and names."""
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    return [int(part) if part.isdigit() else part for part in parts] or None


def parse_voxel_size(text: str | None) -> tuple[float, float, float] | None:
    """``0.04,0.008,0.008`` as micrometres (z, y, x)."""
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        z = y = x = math.nan
    if not all(0 < size < math.inf for size in (z, y, x)):
        raise InputError(
            f"--voxel-size must be micrometres along z,y,x, as in 0.04,0.008,0.008, got {text!r}"
        )
    return (z, y, x)


def _files(raw: str, output: str, config: Config) -> list[tuple[str, str]]:
    """What is to be segmented, and the file to write of it."""
    if output.lower().endswith((*OUTPUT_SUFFIXES, *EXPORT_SUFFIXES)):
        return [(raw, output)]
    if not is_image_folder(raw) or os.path.splitext(output.rstrip("/"))[1]:
        known = ", ".join((*OUTPUT_SUFFIXES, *EXPORT_SUFFIXES))
        raise InputError(
            f"--output must end in one of {known}, or be a folder for the files of a folder --raw, got {output}"
        )
    found: dict[str, str] = {}
    for path in image_paths(raw):
        target = os.path.join(output, bare_name(path) + ".tif")
        if target in found:
            raise InputError(f"{found[target]} and {path} would both be written to {target}: rename one")
        found[target] = path
    return [(path, target) for target, path in found.items()]


def _written_first(path: str) -> str:
    """The HDF5 that an output of another format is made of, itself where it is none."""
    return path if _holds_all(path) else f"{path}.h5"


def _holds_all(path: str) -> bool:
    """Whether an output is one of fastseg's own, with segmentation and probability."""
    return path.lower().endswith(OUTPUT_SUFFIXES) and not is_export(path)


def _export(
    volume: Volume,
    network: nn.Module,
    config: Config,
    path: str,
    ranks: Ranks,
    what: str,
    smallest: int,
    *,
    restart: bool,
    quiet: bool,
) -> None:
    """Segment a volume into ``path``, a file of another program's format, by way of an HDF5 beside it."""
    classes = config.data.class_ids
    channels = len(classes or [1])
    merged = what in ("labels", "instances")
    require_export(path, volume, 1 if merged else channels)
    needed = what == "probability" or channels > 1 or (what == "instances" and config.instances == "boundary")
    predict = config.predict.model_copy(update={"probability": needed})
    between = _written_first(path)
    segment(
        volume,
        network,
        config.model_copy(update={"predict": predict}),
        between,
        ranks,
        restart=restart,
        quiet=quiet,
    )
    if ranks.first:
        found = open_volume(f"{between}:/{'probability' if what == 'probability' else 'segmentation'}")
        probability = open_volume(f"{between}:/probability") if needed else None
        if merged and classes:
            # The parts of an object are one for whoever looks for objects.
            ids = [1] * channels if what == "instances" and config.data.parts else classes
            merged_classes = Volume(LabelMapSource(found, probability, ids))
        else:
            merged_classes = found
        if what == "instances" and config.instances != "components":
            parts = InstanceSource(merged_classes, smallest)
            split = at_necks(parts, predict.neck)
            if config.instances == "boundary":
                place = [classes.index(PARTS["boundary"])]
                split = at_boundaries(found.pick(place), probability.pick(place), smallest)
            apart = SplitSource(parts, f"{between}.objects", split)
            try:
                export_volume(Volume(apart), path, like=volume)
            finally:
                apart.close()
        elif what == "instances":
            export_volume(Volume(InstanceSource(merged_classes, smallest)), path, like=volume)
        else:
            export_volume(merged_classes, path, like=volume)
        os.remove(between)
    ranks.meet()


def _prediction_path(run: RunFolder, number: int, suffix: str) -> str:
    return run.file("predictions", f"test_{number}.{suffix}")


def _open_tests(config: Config) -> list[AnnotatedVolume]:
    return [open_annotated(entry, config.data) for entry in config.data.test]


def _label(number: int, truth: AnnotatedVolume) -> str:
    return f"{number}: {truth.raw.label}"


def _rows(results: dict[str, list[Confusion]], config: Config) -> dict[str, Confusion]:
    classes: list[Any] = list(config.data.class_names or [None])
    rows = {}
    for name, counts in results.items():
        for value, count in zip(classes, counts, strict=True):
            rows[name if value is None else f"{name} class {value}"] = count
    if len(results) > 1:
        for place, value in enumerate(classes):
            name = "all" if value is None else f"all class {value}"
            rows[name] = total(counts[place] for counts in results.values())
    return rows
