# SPDX-License-Identifier: BSD-3-Clause
"""Labels of one EM stack, images alone of another: every strategy of domain_adaptation beside none.

    python benchmarks/experiments/domain_adaptation.py run --data lucchi-vnc vnc-lucchi --root FOLDER
    python benchmarks/experiments/domain_adaptation.py show

FOLDER holds em_lucchi/train.h5, em_vnc/stack1_z00-14.h5, em_vnc/stack2_unlabelled.h5 and
em_cdeep3m/train_z010-029.h5, with raw and mito (mitochondria). lucchi has 5 nm pixels, vnc 4.6; cdeep3m does not
state its size and is taken for 5. All are resampled to pixels of --pixel nm. Any two make a pair, the source first. Of
the target there are images to learn from, and test slices in another part: see DOMAINS.

Arms: none (the source alone), matched (its histogram is the target's), style, pretrain, ynet, and the last two with
less of the encoder frozen. All have the same network, batches and --steps of learning the source's labels; pretrain
restores for as many steps before, ynet takes half and 0.4 of them for its first two (the paper's 50, 40 and 100
epochs). As there are so few steps, greys are zscore of each volume, where the paper has value / 255, and learning rates
are 5e-3 in the last phase, 25 times the paper's, and 1e-3 with Adam before. These were chosen by the IoU of held-out
slices of the source, without a look at a target.

A run looks at the target --looks times. The row has the IoU of the test slices, each by itself at a threshold of 0.5,
then their mean: at the look that the stop by morphology takes, at the one it takes of the second half
(train.stop.after: 0.5), at the last one, and at the best one, which only labels can tell.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from looks import RecordingChooser, looks_of
from rows import add, commit, parse, read

from fastseg.methods.config_file import parse_config
from fastseg.methods.registry import train
from fastseg.methods.supervised import training as supervised

RESULTS = Path(__file__).parents[1] / "results" / "experiments" / "domain_adaptation.csv"
COLUMNS = ("data", "arm", "seed", "iou_stop", "iou_late", "iou_last", "iou_best", "step_stop", "step_late")
COLUMNS += ("step_best", "looks", "seconds", "steps", "width", "pixel", "commit")
# Of Adam in all phases before the last. The paper's SGD, 1e-3 with momentum 0.99, has not found the mean grey of the
# images after 200 steps.
_EARLY_RATE = 1e-3

ARMS = {
    "none": {"strategy": "none"},
    "matched": {"strategy": "none", "match_histograms": True},
    "style": {"strategy": "style"},
    "pretrain": {"strategy": "pretrain"},
    "ynet": {"strategy": "ynet"},
    # As in the authors' code, which does not freeze the deepest level of the encoder.
    "pretrain_above": {"strategy": "pretrain", "freeze": "above_bottleneck"},
    "ynet_above": {"strategy": "ynet", "freeze": "above_bottleneck"},
    # Ours.
    "pretrain_free": {"strategy": "pretrain", "freeze": "nothing"},
    "ynet_free": {"strategy": "ynet", "freeze": "nothing"},
}


@dataclass(frozen=True)
class Domain:
    """Regions of a stack: labelled ones to learn from, images of it as a target, and slices to test on, one by one."""

    labelled: str
    voxel_size: tuple[float, float, float]  # micrometres, z y x
    source: dict[str, list[int]]
    images: str
    target: dict[str, list[int]]
    slices: tuple[int, ...]
    test: dict[str, list[int]]


DOMAINS = {
    "lucchi": Domain(
        "em_lucchi/train.h5",
        (0.005, 0.005, 0.005),
        {"z": [0, 48]},
        "em_lucchi/train.h5",
        {"z": [60, 72]},
        (100, 109, 118, 127),
        {},
    ),
    "vnc": Domain(
        "em_vnc/stack1_z00-14.h5",
        (0.05, 0.0046, 0.0046),
        {},
        "em_vnc/stack2_unlabelled.h5",
        {"z": [0, 8]},
        (2, 6, 10, 14),
        {},
    ),
    "cdeep3m": Domain(
        "em_cdeep3m/train_z010-029.h5",
        (0.005, 0.005, 0.005),
        {"z": [0, 10]},
        "em_cdeep3m/train_z010-029.h5",
        {"z": [0, 8]},
        (13, 15, 17, 19),
        {},
    ),
}
PAIRS = [f"{source}-{target}" for source in DOMAINS for target in DOMAINS if source != target]


def configured(pair, arm, seed, options):
    source, target = (DOMAINS[name] for name in pair.split("-"))
    steps, folder = options.steps, options.root
    fast = {"batch": options.batch, "optimizer": "adam", "learning_rate": _EARLY_RATE}
    phases = {
        "pretrain": {**fast, "steps": steps},
        "step_1": {**fast, "steps": max(steps // 2, 1)},
        "step_2": {**fast, "steps": max(2 * steps // 5, 1)},
    }
    if ARMS[arm]["strategy"] == "style":
        side = max(options.patch, 64)
        phases["style"] = {"steps": steps, "patch": [side, side], "width": 2 * options.width, "blocks": 4}
    tests = [{**labelled(folder, target), "region": {**target.test, "z": [z, z + 1]}} for z in target.slices]
    values = {
        "method": "domain_adaptation",
        "output": str(options.folder / pair / f"{arm}_{seed}"),
        "seed": seed,
        "data": {
            "root": "/",
            "train": [{**labelled(folder, source), "region": source.source}],
            "target": [
                {
                    "raw": f"{folder / target.images}:/raw",
                    "region": target.target,
                    "voxel_size": target.voxel_size,
                }
            ],
            "test": tests,
            "patch": [options.patch] * 2,
            "voxel_size": [None, options.pixel / 1000, options.pixel / 1000],
            "normalize": "zscore",
        },
        "network": {"width": options.width},
        "domain_adaptation": {**ARMS[arm], **phases},
        "train": {
            "steps": steps,
            "batch": options.batch,
            "learning_rate": options.learning_rate,
            "precision": "fp32",
            "checkpoint_every": steps,
            "validate_every": steps,
            "stop": {"rule": "morphology"},
        },
        "predict": {"window": [2 * options.patch] * 2, "overlap": 0.25},
    }
    return parse_config(values, f"{pair}, {arm}")


def labelled(folder, domain):
    path = folder / domain.labelled
    return {"raw": f"{path}:/raw", "labels": f"{path}:/mito", "voxel_size": domain.voxel_size}


def run_arm(pair, arm, seed, options):
    began = time.perf_counter()
    run = train(configured(pair, arm, seed, options), resume=True, quiet=options.quiet)
    looks = looks_of(run.path)
    stop, late = (
        min((look for look in looks if look["step"] >= first), key=lambda look: look["morphology_distance"])
        for first in (0, options.steps / 2)
    )
    best = max(looks, key=lambda look: look["test_iou"])
    return {
        "data": pair,
        "arm": arm,
        "seed": seed,
        "iou_stop": round(stop["test_iou"], 4),
        "iou_late": round(late["test_iou"], 4),
        "iou_last": round(looks[-1]["test_iou"], 4),
        "iou_best": round(best["test_iou"], 4),
        "step_stop": stop["step"],
        "step_late": late["step"],
        "step_best": best["step"],
        "looks": len(looks),
        "seconds": round(time.perf_counter() - began),
        "steps": options.steps,
        "width": options.width,
        "pixel": options.pixel,
        "commit": commit(),
    }


def run_all(options):
    supervised.morphology_chooser = RecordingChooser
    RecordingChooser.looks = options.looks
    done = {(row["data"], row["arm"], row["seed"]) for row in read(options.results)}
    for seed in options.seeds:
        for pair in options.data:
            for arm in options.arms:
                if (pair, arm, str(seed)) in done:
                    continue
                row = run_arm(pair, arm, seed, options)
                add(options.results, row, COLUMNS)
                print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=PAIRS, default=["lucchi-vnc", "vnc-lucchi"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument(
        "--steps", type=int, default=800, help="of learning the source's labels (%(default)s)"
    )
    parser.add_argument(
        "--looks", type=int, default=10, help="at the target, in the last phase (%(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="of the last phase (%(default)s)")
    parser.add_argument("--width", type=int, default=8, help="of the Attention U-Net (%(default)s)")
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--pixel", type=float, default=10.0, help="nm, of all stacks (%(default)s)")
    parser.add_argument("--batch", type=int, default=4)
    options = parse(parser, "domain_adaptation", RESULTS)
    if options is not None:
        run_all(options)


if __name__ == "__main__":
    main()
