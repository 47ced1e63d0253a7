# SPDX-License-Identifier: BSD-3-Clause
"""The experiment of Boserup & Selvan: nuclei without labels, beside thresholds and clusters.

    python benchmarks/experiments/patch_contrast.py run --data monuseg dsb2018 qcanet --root FOLDER
    python benchmarks/experiments/patch_contrast.py show

FOLDER holds he_monuseg/ and he_dsb2018/ (NAME.png, NAME_instances.tif) and fl3d_qcanet/ (8_cell_raw.tif,
8_cell_nuclei.tif). In the order of their names every third image, from the first, is for validation, the others are
for testing; of the single volume the left half in x is for validation, the right half for testing. No arm but those
that say so sees a label. The network is trained on all images without labels, as the method is meant to be used.

Arms. unlabelled: the channel and the checkpoint chosen without labels. labelled: of the same checkpoint, the channel
with the highest Dice in validation. ceiling: the channel of "unlabelled", cut at the one threshold that is best on the
test images' labels instead of at a half: what that map could give at most. grey: the one threshold of the grey level
that is best in validation. otsu: Otsu's threshold of each image's haematoxylin (of its intensity, in fluorescence).
kmeans: the darkest of three clusters of each image's colours (the brightest of two of its intensities). The Dice is
that of each test image, its mean and its deviation over images; "_raw" is without openings and closings. Every finished
run is a row of the results.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import tifffile
import torch
from rows import add, commit, read
from scipy.cluster.vq import kmeans2

from fastseg.data import open_volume
from fastseg.methods.config_file import load_config, parse_config
from fastseg.methods.inference import tiling_of
from fastseg.methods.patch_contrast.labelled import maps_predictor
from fastseg.methods.registry import build_network, train
from fastseg.metrics import count_confusion
from fastseg.morphology import apply_steps
from fastseg.predict import predict_blocks

RESULTS = Path(__file__).parents[1] / "results" / "experiments" / "patch_contrast.csv"
COLUMNS = (
    "data",
    "arm",
    "seed",
    "dice",
    "deviation",
    "dice_raw",
    "deviation_raw",
    "channel",
    "step",
    "seconds",
)
COLUMNS += ("images", "commit")
THRESHOLDS = np.arange(0.02, 1.0, 0.02)
ARMS = ("unlabelled", "labelled", "ceiling")


@dataclass
class Image:
    """intensities (z, y, x, C) in [0, 1], truth (z, y, x)."""

    path: Path
    values: np.ndarray
    truth: np.ndarray
    validation: bool


def tissue(folder):
    images = []
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        truth = tifffile.imread(path.with_name(f"{path.stem}_instances.tif")) > 0
        values = imageio.imread(path)[None, ..., :3] / 255
        images.append(Image(path, values, truth[None], number % 3 == 0))
    return images


def embryo(folder):
    path = folder / "8_cell_raw.tif"
    values = tifffile.imread(path).astype(float)[..., None]
    return [Image(path, values / values.max(), tifffile.imread(folder / "8_cell_nuclei.tif") > 0, False)]


SETS = {
    "monuseg": ("he_monuseg", tissue, {"patch": [200, 200], "appearance": "dark"}),
    # Nuclei of half the size: the paper's disks of 3 would take away the smaller ones.
    "dsb2018": (
        "he_dsb2018",
        tissue,
        {"patch": [200, 200], "appearance": "dark", "morphology": [["open", 1], ["close", 1]]},
    ),
    "qcanet": (
        "fl3d_qcanet",
        embryo,
        {
            "patch": [24, 64, 64],
            "appearance": "bright",
            "morphology": [["open", [1, 2, 2]], ["close", [1, 2, 2]]],
        },
    ),
}


def halves(image):
    """(validation, test): index of the voxels of an image of each kind, None where it has none."""
    if len(image.values) == 1:
        everything = (slice(None), slice(None), slice(None))
        return (everything, None) if image.validation else (None, everything)
    middle = image.values.shape[2] // 2
    return (
        (slice(None), slice(None), slice(0, middle)),
        (slice(None), slice(None), slice(middle, None)),
    )


def score(images, masks, part):
    """Dice of each image's validation (0) or test part (1)."""
    scores = []
    for image, mask in zip(images, masks, strict=True):
        index = halves(image)[part]
        if index is not None:
            scores.append(count_confusion(mask[index], image.truth[index]).dice)
    return scores


def configure(name, seed, options):
    folder, _, settings = SETS[name]
    volumetric = len(settings["patch"]) == 3
    raw = "8_cell_raw.tif" if volumetric else "*.png"
    values = {
        "method": "patch_contrast",
        "output": str(options.folder / name / f"seed_{seed}"),
        "seed": seed,
        "data": {"root": str(options.root / folder), "train": [{"raw": raw}], "patch": settings["patch"]},
        "patch_contrast": {
            "appearance": settings["appearance"],
            "stop_window": 10,
            "picture_every": 20,
            "sample_steps": 2,
        },
        "train": {
            "batch": 2 if volumetric else options.batch,
            "learning_rate": 1e-3,
            "steps": options.steps,
            "validate_every": 10,
            "checkpoint_every": 10,
        },
    }
    if "morphology" in settings:
        values["predict"] = {"morphology": settings["morphology"]}
    if volumetric:
        values["network"] = {"dilations": [[1, 1, 1], [1, 2, 2], [1, 3, 3], [2, 5, 5]]}
        values["patch_contrast"] |= {"patch_size": [8, 24, 24], "stride": [4, 8, 8], "contrast": "negative"}
    return parse_config(values, name)


def learn(name, seed, images, options):
    """Train, and predict all channels of the checkpoint that was chosen without labels."""
    config = configure(name, seed, options)
    began = time.perf_counter()
    run = train(config, resume=True, quiet=options.quiet)
    seconds = time.perf_counter() - began
    config = load_config(run.file("config.yaml"))
    state = run.load_for_prediction("best")
    network = build_network(config, state["channels"])
    network.load_state_dict(state["network"])
    network.eval()
    maps = [all_channels(network, image, config) for image in images]
    channels = len(maps[0])
    steps = config.predict.morphology_steps(len(config.data.patch), config.slice_axis)

    def masks(choice, smooth, threshold=0.5):
        channel, inverted = choice % channels, choice >= channels
        found = [(m[channel] < 1 - threshold) if inverted else (m[channel] >= threshold) for m in maps]
        return [apply_steps(mask, steps) for mask in found] if smooth else found

    chosen = {
        "unlabelled": int(state["network"]["channel"]) + channels * int(state["network"]["inverted"]),
        "labelled": int(np.argmax([np.mean(score(images, masks(i, True), 0)) for i in range(2 * channels)])),
    }
    best = max(THRESHOLDS, key=lambda t: np.mean(score(images, masks(chosen["unlabelled"], True, t), 1)))
    arms = [(arm, choice, 0.5) for arm, choice in chosen.items()]
    taken = json.loads(Path(run.file("log.jsonl")).read_text().splitlines()[-1])["step"] + 1
    for arm, choice, threshold in [*arms, ("ceiling", chosen["unlabelled"], best)]:
        yield (
            arm,
            masks(choice, True, threshold),
            masks(choice, False, threshold),
            {
                "channel": choice if threshold == 0.5 else f"{choice} at {threshold:.2f}",
                "step": f"{state['step']} of {taken}",
                "seconds": round(seconds),
            },
        )


def all_channels(network, image, config):
    """(K, z, y, x) of an image, as prediction would see it."""
    volume = open_volume(str(image.path))
    predict = maps_predictor(network, volume, config, torch.device("cpu"))
    tiling = tiling_of(config, predict, volume, torch.device("cpu"))
    out = np.empty((config.patch_contrast.channels, *volume.shape), np.float32)
    for start, stop, values in predict_blocks(volume, predict, tiling, classes=len(out)):
        out[(slice(None), *map(slice, start, stop))] = values.numpy()
    return out


def baselines(name, images):
    """(arm, masks before openings and closings) of what needs no network."""
    from skimage.color import rgb2hed
    from skimage.filters import threshold_otsu

    volumetric = len(images[0].values) > 1
    grey = [image.values.mean(-1) for image in images]
    below = (lambda g, t: g > t) if volumetric else (lambda g, t: g < t)
    best = max(THRESHOLDS, key=lambda t: np.mean(score(images, [below(g, t) for g in grey], 0)))
    yield "grey", [below(g, best) for g in grey], f"{best:.2f}"
    stain = grey if volumetric else [rgb2hed(image.values)[..., 0] for image in images]
    yield "otsu", [s > threshold_otsu(s) for s in stain], ""
    clusters = []
    for image, g in zip(images, grey, strict=True):
        colours = image.values.reshape(-1, image.values.shape[-1])
        count = 2 if volumetric else 3
        _, label = kmeans2(colours, count, minit="++", rng=0)
        means = [g.reshape(-1)[label == i].mean() for i in range(count)]
        clusters.append((label == (np.argmax(means) if volumetric else np.argmin(means))).reshape(g.shape))
    yield "kmeans", clusters, ""


def record(options, name, arm, seed, images, masks, raw, more):
    smooth, rough = score(images, masks, 1), score(images, raw, 1)
    row = {
        "data": name,
        "arm": arm,
        "seed": seed,
        "dice": round(float(np.mean(smooth)), 4),
        "deviation": round(float(np.std(smooth)), 4),
        "dice_raw": round(float(np.mean(rough)), 4),
        "deviation_raw": round(float(np.std(rough)), 4),
        "images": len(smooth),
        "commit": commit(),
        **{"channel": "", "step": "", "seconds": "", **more},
    }
    add(options.results, row, COLUMNS)
    print(row, flush=True)


def run_set(name, options):
    folder, load, _ = SETS[name]
    images = load(options.root / folder)
    done = {(row["data"], row["arm"], row["seed"]) for row in read(options.results)}
    config = configure(name, 0, options)
    steps = config.predict.morphology_steps(len(config.data.patch), config.slice_axis)
    if (name, "kmeans", "") not in done:
        for arm, masks, threshold in baselines(name, images):
            if (name, arm, "") not in done:
                smooth = [apply_steps(mask, steps) for mask in masks]
                record(options, name, arm, "", images, smooth, masks, {"channel": threshold})
    for seed in options.seeds:
        if (name, ARMS[-1], str(seed)) in done:
            continue
        for arm, masks, raw, more in learn(name, seed, images, options):
            if (name, arm, str(seed)) not in done:
                record(options, name, arm, seed, images, masks, raw, more)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--data", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--root", type=Path, help="the folder of the sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="at most (%(default)s)")
    parser.add_argument("--batch", type=int, default=10, help="images, of tissue (%(default)s)")
    parser.add_argument("--threads", type=int, help="of torch, by default all cores")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/experiments/patch_contrast"), help="(%(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    options = parser.parse_args()
    if options.what == "show":
        from patch_contrast_report import table

        print(table(read(options.results)))
        return
    if options.root is None:
        parser.error("run needs --root, the folder of the sets")
    options.root, options.folder = options.root.resolve(), options.folder.resolve()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.data:
        run_set(name, options)


if __name__ == "__main__":
    main()
