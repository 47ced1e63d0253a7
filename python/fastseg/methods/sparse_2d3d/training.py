# SPDX-License-Identifier: BSD-3-Clause
"""From a few annotated slices to a dense 3D segmentation, after Castelli et al. (arXiv 2009.00029).

A light 2D network learns the annotated slices and labels the rest of the training volumes; a 3D network learns from
both, pseudo-labels counting ``loss.pseudo_weight``. Each phase is a run or a volume that can be opened by itself:
``<output>/slices`` is the 2D network's run, ``<output>/pseudo_labels`` holds its volumes, ``<output>`` is the 3D
network's run. All phases go on after a kill where they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from fastseg.data.annotations import AnnotatedVolume
from fastseg.errors import InputError
from fastseg.methods.config_file import parse_config
from fastseg.methods.inference import decided_by, segment, trained_network
from fastseg.methods.networks import build_network
from fastseg.methods.runs import require_fresh_or_same, tell
from fastseg.methods.sparse_2d3d.config import Sparse2d3dConfig
from fastseg.methods.supervised import training as supervised
from fastseg.train.checkpoint import RunFolder, read_json, write_atomically
from fastseg.train.config import Config
from fastseg.train.inputs import open_training
from fastseg.train.ranks import Ranks, join
from fastseg.train.run_lock import writing_alone

prepare = supervised.prepare  # of the 3D network

# A slice is predicted whole where it has no larger side, as the paper's dense inference does; larger ones in windows.
_LARGEST_WINDOW = 1024


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Train the 2D network, let it label the volumes, train the 3D network; a phase that is done is not repeated."""
    with join(config.train.device) as ranks, writing_alone(config.output, ranks):
        run = RunFolder(config.output)
        if ranks.first:
            require_fresh_or_same(config, run, resume)
        volumes = open_training(config)
        slices = slices_config(config, volumes)
        tell("2D network on the annotated slices", ranks, quiet)
        supervised.train_with(slices, ranks, resume=resume, quiet=quiet)
        ranks.meet()  # only then is the last checkpoint there for all to read
        tell("pseudo-labels", ranks, quiet)
        paths = infer_pseudo_labels(config, slices, volumes, ranks, resume=resume, quiet=quiet)
        tell("3D network on annotations and pseudo-labels", ranks, quiet)
        return supervised.train_with(config, ranks, pseudo_labels=paths, resume=resume, quiet=quiet)


def slices_config(config: Config, volumes: Sequence[AnnotatedVolume]) -> Config:
    """The supervised configuration of the 2D network: that of the run where the section does not say otherwise."""
    settings = config.section(Sparse2d3dConfig)
    if len(config.data.patch) != 3:
        raise InputError(f"data.patch must be [z, y, x], of the 3D network, got {config.data.patch}")
    axis = _slice_axis(config)
    plane = [a for a in range(3) if a != "zyx".index(axis)]
    values = config.model_dump(mode="json", exclude={"sparse_2d3d", "network"})
    augment = values["train"]["augment"]
    if axis != "z":
        # Free geometry turns and bends in y and x, out of these slices.
        augment |= {"rotate": 0.0, "tilt": 0.0, "scale": 0.0, "elastic": 0.0}
    sampling = config.data.sampling
    annotated = {"uniform": 0.0, "labelled": sampling.labelled, "foreground": sampling.foreground}
    if sampling.labelled + sampling.foreground == 0:
        annotated["labelled"] = 1.0
    divisor = settings.network.divisor(2)
    window = [
        -(-min(max(v.shape[a] for v in volumes), _LARGEST_WINDOW) // d) * d
        for a, d in zip(plane, divisor, strict=True)
    ]
    values |= {
        "method": "supervised",
        "output": os.path.join(config.output, "slices"),
        "network": settings.network.model_dump(mode="json"),
        "data": {
            **values["data"],
            "patch": settings.patch,
            "slice_axis": axis,
            "sampling": annotated,
        },
        "train": {
            **values["train"],
            "steps": settings.steps,
            "batch": settings.batch,
            "learning_rate": settings.learning_rate,
        },
        "predict": {**values["predict"], "window": window},
    }
    return parse_config(values, f"{config.output}, sparse_2d3d")


def infer_pseudo_labels(
    config: Config,
    slices: Config,
    volumes: list[AnnotatedVolume],
    ranks: Ranks,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> list[str]:
    """Segment the used part of each training volume with the 2D network; the paths of what the 3D network learns."""
    run = RunFolder(slices.output)
    state = run.load_for_prediction(slices.predict.checkpoint)
    network = trained_network(slices, state, [volume.raw for volume in volumes], ranks.device)
    # Both are kept whatever predict.probability says: the one to be learnt from and the one to be looked at.
    slices = slices.model_copy(update={"predict": slices.predict.model_copy(update={"probability": True})})
    folder = RunFolder(os.path.join(config.output, "pseudo_labels"))
    paths = [folder.file(f"train_{i}.{config.predict.format}") for i in range(len(volumes))]
    record = {
        "volumes": [v.raw.name for v in volumes],
        "predict": slices.predict.model_dump(
            mode="json", include={"window", "overlap", "threshold", "skip_below"}
        ),
        **decided_by(slices, network, ranks.device),
    }
    # One process looks: another may see an older folder over a network.
    done = ranks.from_first(resume and read_json(folder.file("done.json")) == record)
    if not done:
        for volume, path in zip(volumes, paths, strict=True):
            options = {"as_stored": False, "restart": not resume, "quiet": quiet}
            segment(volume.raw, network, slices, path, ranks, **options)
        if ranks.first:
            write_atomically(folder.file("done.json"), json.dumps(record, indent=2).encode())
    dataset = "segmentation" if config.section(Sparse2d3dConfig).pseudo_labels == "hard" else "probability"
    return [f"{path}:/{dataset}" for path in paths]


def describe_slices(config: Config, volumes: Sequence[AnnotatedVolume]) -> list[str]:
    """Lines of ``fastseg check`` on the 2D network and what it hands on."""
    slices = slices_config(config, volumes)
    count = sum(p.numel() for p in build_network(slices, volumes[0].raw.channels).parameters())
    return [
        f"2D network: {count:,} parameters, patch {slices.patch} (z, y, x), batch {slices.train.batch}, "
        f"steps: {slices.train.steps}",
        f"pseudo-labels: windows of {slices.window} (z, y, x); they count {config.loss.pseudo_weight} in what follows",
    ]


def _slice_axis(config: Config) -> str:
    stated = {entry.annotated.axis for entry in config.data.train if entry.annotated is not None}
    own = config.section(Sparse2d3dConfig).axis
    if own is not None:
        stated.add(own)
    if len(stated) > 1:
        raise InputError(
            f"sparse_2d3d learns slices across one axis, data.train and sparse_2d3d.axis name "
            f"{', '.join(sorted(stated))}"
        )
    return stated.pop() if stated else "z"
