# SPDX-License-Identifier: BSD-3-Clause
"""Pretraining without labels, then training with few: regions beside other pretext tasks, and none.

    python benchmarks/experiments/region_contrast.py run --data kidney vnc --root FOLDER
    python benchmarks/experiments/region_contrast.py show

FOLDER holds em_kidney_gbm/ (photo<N>_image.png, photo<N>_gbm.png, six photos) and em_vnc/ (stack1_z00-14.h5 with raw
and membrane, stack2_unlabelled.h5). The kidney's photos are reduced 4 times, slices of em_vnc 2 times, by averaging.

Pretraining sees all photos, or all slices of both stacks, without labels. Training then sees a quarter of a labelled
photo, one or four; or a sixteenth of a slice, a quarter or all of it: other ones for each seed. It is tested on all
photos that have no labels in it, or five slices that none of that seed's has. Arms: none (random weights), masked
(hidden blocks restored), images (views of whole patches told apart), grey, semantic, both (the two losses of regions).
All arms have the same network, steps, batches and patches. Rows of several --learning-rate stand side by side.
"""

import argparse
import json
import time
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import torch
from rows import add, commit, parse, read

from fastseg.data import open_volume
from fastseg.methods.config_file import load_config, parse_config
from fastseg.methods.inference import predictor, tiling_of, trained_network
from fastseg.methods.registry import train
from fastseg.metrics import count_confusion
from fastseg.predict import predict_blocks
from fastseg.train.checkpoint import RunFolder

RESULTS = Path(__file__).parents[1] / "results" / "experiments" / "region_contrast.csv"
COLUMNS = (
    "data",
    "arm",
    "labels",
    "seed",
    "dice",
    "deviation",
    "pretrain_seconds",
    "seconds",
    "alive",
    "cosine",
)
COLUMNS += ("pretrain_steps", "pretrain_learning_rate", "steps", "learning_rate", "width", "commit")
ARMS = {
    "none": None,
    "masked": {"pretext": "masked"},
    "images": {"pretext": "images"},
    "grey": {"semantic_weight": 0.0},
    "semantic": {"grey_weight": 0.0},
    "both": {},
}


def reduced(image, times):
    rows, columns = (n // times * times for n in image.shape)
    blocks = image[:rows, :columns].reshape(rows // times, times, columns // times, times)
    return blocks.mean((1, 3))


def prepare_kidney(source, folder):
    """One image and one label image for each photo."""
    for number in range(1, 7):
        image = imageio.imread(source / "em_kidney_gbm" / f"photo{number}_image.png")
        label = imageio.imread(source / "em_kidney_gbm" / f"photo{number}_gbm.png")
        imageio.imwrite(folder / f"image_{number - 1:02}.png", np.uint8(np.rint(reduced(image, 4))))
        imageio.imwrite(folder / f"label_{number - 1:02}.png", np.uint8(reduced(label > 0, 4) >= 0.5))


def prepare_vnc(source, folder):
    """One image for each slice, and one label image for each of the first stack."""
    number = 0
    for name in ("stack1_z00-14.h5", "stack2_unlabelled.h5"):
        with h5py.File(source / "em_vnc" / name) as file:
            for z in range(len(file["raw"])):
                imageio.imwrite(
                    folder / f"image_{number:02}.png", np.uint8(np.rint(reduced(file["raw"][z], 2)))
                )
                if "membrane" in file:
                    label = np.uint8(reduced(file["membrane"][z] > 0, 2) >= 0.5)
                    imageio.imwrite(folder / f"label_{number:02}.png", label)
                number += 1


def kidney_split(seed, count):
    """Numbers of the images to label, and of those to test on."""
    order = [(i + 2 * seed) % 6 for i in range(6)]
    return order[:count], order[count:]


def vnc_split(seed, count):
    """The slice to label is at least two away from those tested on."""
    return [3 * seed][:count], [10, 11, 12, 13, 14]


# How to prepare a set, how to split it, and how many labelled images there are.
SETS = {
    "kidney": (prepare_kidney, kidney_split, (0.25, 1, 4)),
    "vnc": (prepare_vnc, vnc_split, (0.0625, 0.25, 1)),
}


def prepared(name, options):
    folder = options.folder / name / "images"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        SETS[name][0](options.root, folder)
        (folder / "done").touch()
    return folder


def common(output, seed, options, train_entries):
    return {
        "method": "region_contrast",
        "output": str(output),
        "seed": seed,
        "data": {"root": "/", "train": train_entries, "patch": [options.patch] * 2},
        "network": {"width": options.width, "pooling": [2, 2, 2, 2]},
        "train": {"batch": options.batch, "validate_every": 10_000, "checkpoint_every": 10_000},
    }


def pretrained(name, arm, seed, options):
    """The run of an arm's pretraining, its seconds and what it says of itself."""
    if ARMS[arm] is None:
        return None, 0, {}
    output = options.folder / name / f"{arm}_{seed}"
    values = common(output, seed, options, [{"raw": str(prepared(name, options) / "image_*.png")}])
    values["region_contrast"] = {**ARMS[arm], "picture_every": 200}
    values["train"] |= {
        "steps": options.pretrain_steps,
        "learning_rate": options.pretrain_learning_rate,
        "augment": {"gamma": 0.3, "blur": 1.0, "noise": 0.05},
    }
    began = time.perf_counter()
    run = train(parse_config(values, arm), resume=True, quiet=options.quiet)
    stated = json.loads(Path(run.file("pretraining.json")).read_text())
    return run.path, time.perf_counter() - began, stated


def finetuned(name, arm, seed, labels, weights, options):
    """Dice of each test image."""
    folder = prepared(name, options)
    labelled, tests = SETS[name][1](seed, max(int(labels), 1))
    entries = []
    for number in labelled:
        entry = {
            "raw": str(folder / f"image_{number:02}.png"),
            "labels": str(folder / f"label_{number:02}.png"),
        }
        if labels < 1:
            height, width = (round(n * labels**0.5) for n in imageio.imread(entry["raw"]).shape)
            entry["region"] = {"y": [0, height], "x": [0, width]}
        entries.append(entry)
    values = common(
        options.folder / name / f"{arm}_{seed}_{labels}_{options.learning_rate}", seed, options, entries
    )
    if weights is None:
        values["method"] = "supervised"
        values["data"]["normalize"] = "percentile"
    else:
        values["region_contrast"] = {"stage": "finetune"}
        values["network"]["weights"] = weights
    values["train"] |= {
        "steps": options.steps,
        "batch": options.batch // 2,
        "learning_rate": options.learning_rate,
        "augment": {"gamma": 0.3},
    }
    values["loss"] = {"pos_weight": [options.pos_weight]}
    run = train(parse_config(values, arm), resume=True, quiet=options.quiet)
    return [dice(run, folder, number) for number in tests]


def dice(run: RunFolder, folder, number):
    config = load_config(run.file("config.yaml"))
    volume = open_volume(str(folder / f"image_{number:02}.png"))
    device = torch.device("cpu")
    network = trained_network(config, run.load_for_prediction("newest"), [volume], device)
    predict = predictor(network, volume, config, device)
    mask = np.zeros(volume.shape, bool)
    for start, stop, values in predict_blocks(
        volume, predict, tiling_of(config, predict, volume, device), classes=1
    ):
        mask[tuple(map(slice, start, stop))] = values[0].numpy() >= config.predict.threshold
    return count_confusion(mask, imageio.imread(folder / f"label_{number:02}.png")[None] > 0).dice


def run_set(name, options):
    key = ("data", "arm", "labels", "seed", "learning_rate")
    done = {tuple(row[column] for column in key) for row in read(options.results)}
    rate = str(options.learning_rate)
    for seed in options.seeds:
        for arm in options.arms:
            counts = SETS[name][2][: options.counts]
            missing = [n for n in counts if (name, arm, str(n), str(seed), rate) not in done]
            if not missing:
                continue
            weights, pretrain_seconds, stated = pretrained(name, arm, seed, options)
            for labels in missing:
                began = time.perf_counter()
                scores = finetuned(name, arm, seed, labels, weights, options)
                row = {
                    "data": name,
                    "arm": arm,
                    "labels": labels,
                    "seed": seed,
                    "dice": round(float(np.mean(scores)), 4),
                    "deviation": round(float(np.std(scores)), 4),
                    "pretrain_seconds": round(pretrain_seconds),
                    "seconds": round(time.perf_counter() - began),
                    "alive": stated.get("alive") or "",
                    "cosine": "" if stated.get("cosine") is None else round(stated["cosine"], 3),
                    "pretrain_steps": options.pretrain_steps if weights else 0,
                    "pretrain_learning_rate": options.pretrain_learning_rate if weights else "",
                    "steps": options.steps,
                    "learning_rate": options.learning_rate,
                    "width": options.width,
                    "commit": commit(),
                }
                add(options.results, row, COLUMNS)
                print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--counts", type=int, default=3, help="of labels, the fewest first (%(default)s)")
    parser.add_argument("--pretrain-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=400, help="of training with labels (%(default)s)")
    parser.add_argument("--pretrain-learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--learning-rate", type=float, default=1e-2, help="of training with labels (%(default)s)"
    )
    parser.add_argument("--pos-weight", type=float, default=3.0, help="of the foreground (%(default)s)")
    parser.add_argument("--width", type=int, default=8, help="of the U-Net, of four levels (%(default)s)")
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument(
        "--batch", type=int, default=8, help="of pretraining, twice that of training with labels"
    )
    options = parse(parser, "region_contrast", RESULTS)
    if options is None:
        return
    for name in options.data:
        run_set(name, options)


if __name__ == "__main__":
    main()
