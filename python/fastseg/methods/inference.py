# SPDX-License-Identifier: BSD-3-Clause
"""From a configuration to what prediction needs: probabilities of a volume's raw windows, and how it is cut."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.data.intensity import measure_intensity
from fastseg.data.resampled import ResampledVolume
from fastseg.data.volumes import Volume
from fastseg.errors import InputError
from fastseg.methods.registry import build_network
from fastseg.predict import (
    Network,
    Tiling,
    choose_batch,
    fingerprint,
    images_per_window,
    predict_to_file,
    probability_of,
    raw_changed,
    refine_file,
    restore_file,
)
from fastseg.train.checkpoint import read_json, write_atomically
from fastseg.train.config import Config
from fastseg.train.device import autocast_dtype
from fastseg.train.graph import Graphed, graphs_of
from fastseg.train.memory import explaining_out_of_memory
from fastseg.train.ranks import Ranks


def trained_network(
    config: Config, state: dict[str, Any], volumes: Sequence[Volume], device: torch.device
) -> nn.Module:
    """The network of a checkpoint, to predict ``volumes`` with. InputError where they have other channels."""
    for volume in volumes:
        if volume.channels != state["channels"]:
            raise InputError(
                f"{volume.name} must have {state['channels']} channels, got {volume.channels}; --channels, or channels "
                "in a configuration, chooses of several"
            )
    network = build_network(config, state["channels"]).to(device)
    try:
        network.load_state_dict(state["network"])
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"the checkpoint is of another network than its configuration: {said}") from error
    return network.eval()


def predictor(network: nn.Module, volume: Volume, config: Config, device: torch.device) -> Network:
    """``network`` as prediction takes it, with the intensity scaling of ``volume``."""
    return probability_of(
        network,
        measure_intensity(volume, config.data.normalize),
        device=device,
        precision=autocast_dtype(config.train.precision, device),
        flips=config.predict.flips,
        exclusive=config.exclusive,
    )


def replayed(
    predict: Network,
    network: nn.Module,
    batch: int,
    config: Config,
    device: torch.device,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Network:
    """``predict``, of ``network``, as a CUDA graph where ``train.graph`` asks for one: a launch for ``batch`` windows.

    Fewer run as they are. What comes back is written over by the next batch.

    tell: takes the line that says why there is none.
    """
    if config.train.graph == "off" or (config.train.graph == "auto" and device.type != "cuda"):
        return predict
    graphed = Graphed(
        predict,
        graphs_of(device),
        kept=lambda: itertools.chain(network.parameters(), network.buffers()),
        tell=lambda reason: tell(f"windows are not replayed as a CUDA graph (train.graph): {reason}"),
    )

    def run(raw: Tensor) -> Tensor:
        try:
            return graphed(raw) if len(raw) == batch else predict(raw)
        except torch.OutOfMemoryError:
            if graphed.captured is None:
                raise
        # The graph keeps the memory of a full batch beside that of this one.
        graphed.give_up("its memory is needed")
        return predict(raw)

    return run


def tiling_of(config: Config, predict: Network, volume: Volume, device: torch.device) -> Tiling:
    settings = config.predict
    batch = settings.batch
    if batch == "auto":
        window, images = (volume.channels, *config.window), images_per_window(settings.flips)
        batch = choose_batch(predict, window, volume.dtype, device, images)
    tiling = Tiling(config.window, settings.overlap, batch, settings.block_voxels, settings.skip_below)
    return with_halo(tiling, config.halo, volume)


def with_halo(tiling: Tiling, halo: tuple[int, int, int], volume: Volume) -> Tiling:
    """The tiling with as much overlap as lets every voxel of ``volume`` be at least ``halo`` inside some window; axes
    that a window covers whole have none."""
    needed = tuple(h if n > w else 0 for h, n, w in zip(halo, volume.shape, tiling.window, strict=True))
    for axis, margin, size in zip("zyx", needed, tiling.window, strict=True):
        if margin and size <= 2 * margin:
            raise InputError(
                f"predict.window must be more than {2 * margin} voxels along {axis}, twice what the network sees to "
                f"either side, or all of {volume.name}, got {size}"
            )
    # One voxel more, so that the stride is not rounded up.
    shares = [(2 * m + 1) / w for m, w in zip(needed, tiling.window, strict=True) if m]
    return replace(tiling, halo=needed, overlap=max([tiling.overlap, *shares]))


def decided_by(config: Config, network: nn.Module, device: torch.device) -> dict[str, Any]:
    """What else than the tiling decides a prediction, to tell whether an interrupted one can be gone on with."""
    return {
        "network": fingerprint(network),
        "intensity": config.data.normalize,
        "flips": config.predict.flips,
        "precision": str(autocast_dtype(config.train.precision, device)),
    }


def segment(
    volume: Volume,
    network: nn.Module,
    config: Config,
    path: str,
    ranks: Ranks,
    *,
    as_stored: bool = True,
    restart: bool = False,
    quiet: bool = False,
) -> None:
    """Segment a volume into the file ``path`` as ``fastseg predict`` does, shared out over all processes.

    What is done in passes keeps the file of each until the next is whole, and goes on there after a kill.
    as_stored: a volume that is resampled as it is read is written on the grid of its file; otherwise on its own.
    """
    steps = config.predict.morphology_steps(len(config.data.patch), config.slice_axis)
    back = volume if as_stored and isinstance(volume, ResampledVolume) else None
    before_steps = _beside(path, "as_predicted") if steps else path
    predicted = before_steps if back is None else _beside(path, "at_voxel_size")
    predicted_by = _predict(
        volume,
        network,
        config,
        predicted,
        ranks,
        probability=config.predict.probability or back is not None,
        record=None if predicted == path else _record(predicted),
        restart=restart,
        quiet=quiet,
    )
    options: dict[str, Any] = {"restart": restart, "predicted_by": predicted_by}
    options |= {"rank": ranks.rank, "world": ranks.count, "barrier": ranks.meet}
    if back is not None:
        settings = config.predict
        restore_file(
            predicted,
            before_steps,
            source=back,
            threshold=settings.threshold,
            exclusive=config.exclusive,
            probability=settings.probability,
            **options,
        )
        _remove(predicted, ranks)
    if steps:
        source = volume if back is None else back.stored
        refine_file(before_steps, path, steps, source=source, exclusive=config.exclusive, **options)
        _remove(before_steps, ranks)


def _beside(path: str, what: str) -> str:
    stem, suffix = os.path.splitext(path)
    return f"{stem}_{what}{suffix}"


def _record(path: str) -> str:
    """What says that a file of a first pass is whole, and what decided it."""
    return os.path.splitext(path)[0] + ".json"


def _remove(path: str, ranks: Ranks) -> None:
    for name in (_record(path), path) if ranks.first else ():
        with contextlib.suppress(OSError):
            (shutil.rmtree if os.path.isdir(name) else os.remove)(name)


def _predict(
    volume: Volume,
    network: nn.Module,
    config: Config,
    path: str,
    ranks: Ranks,
    *,
    probability: bool,
    record: str | None,
    restart: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Returns what decides the prediction. record: the file that keeps it, of a first pass, which then is not done
    again where that says the same."""
    settings = decided_by(config, network, ranks.device)
    if isinstance(volume, ResampledVolume):
        settings["resampled by"] = list(volume.ratio)
    sizes = {"predict.batch": config.predict.batch, "predict.block_voxels": config.predict.block_voxels}
    with explaining_out_of_memory(ranks, sizes, "lower one of them"):
        predict = predictor(network, volume, config, ranks.device)
        tiling = ranks.from_first(tiling_of(config, predict, volume, ranks.device))
        decided = {
            "raw changed": raw_changed(volume),
            "threshold": config.predict.threshold,
            "exclusive": config.exclusive,
            "probability": probability,
            "tiling": {**asdict(tiling), "window": list(tiling.window), "halo": list(tiling.halo)},
            **settings,
        }
        tell = {"tell": lambda line: None} if quiet or not ranks.first else {}
        predict = replayed(predict, network, tiling.batch, config, ranks.device, **tell)
        if record is not None:
            done = os.path.exists(path) and read_json(record) == decided and not restart
            if ranks.from_first(done):
                return decided
            if ranks.first:
                with contextlib.suppress(OSError):
                    os.remove(record)
        predict_to_file(
            volume,
            predict,
            path,
            tiling,
            classes=len(config.data.classes or [1]),
            threshold=config.predict.threshold,
            exclusive=config.exclusive,
            probability=probability,
            device=ranks.device,
            settings=settings,
            restart=restart,
            rank=ranks.rank,
            world=ranks.count,
            barrier=ranks.meet,
            quiet=quiet or not ranks.first,
        )
        if record is not None and ranks.first:
            write_atomically(record, (json.dumps(decided, indent=2) + "\n").encode())
    return decided
