# SPDX-License-Identifier: BSD-3-Clause
"""The experiment of Castelli et al.: how few annotated slices a dense 3D segmentation needs.

    python benchmarks/experiments/sparse_2d3d.py run --data phantoms
    python benchmarks/experiments/sparse_2d3d.py run --data lucchi --root FOLDER_OF_TRAIN_H5
    python benchmarks/experiments/sparse_2d3d.py show

Three arms learn the same annotated slices: (i) the 2D network alone, (ii) the 3D network on annotations and the
2D network's pseudo-labels, (iii) the 3D network on the annotations alone, as many steps as (ii). Each seed has
slices of its own, evenly spaced. Every finished run is a row of the results; the same call goes on after a kill, and
several calls with other --seeds or --slices may work side by side. ``show`` writes the table and the plot.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from rows import add, commit, read

from fastseg.commands.infer import evaluate_run, predict_run, prediction_path
from fastseg.data import open_volume
from fastseg.data.outputs import ArraySpec, open_output
from fastseg.data.phantoms import write_phantoms
from fastseg.methods.config_file import load_config
from fastseg.methods.registry import train
from fastseg.surfaces import average_surface_distance, section_dice
from fastseg.train.checkpoint import RunFolder

RESULTS = Path(__file__).parents[1] / "results" / "experiments" / "sparse_2d3d.csv"
ARMS = {"2d": "2D network", "pseudo": "3D + pseudo-labels", "sparse": "3D, slices only"}
COLUMNS = ("data", "slices", "seed", "arm", "dice", "precision", "recall", "surface_distance", "xz_dice")
COLUMNS += ("true_positive", "false_positive", "false_negative", "true_negative", "commit")
# Where within its share of the depth each slice lies, by seed.
OFFSETS = (0.5, 0.25, 0.75)
PHANTOM = (64, 128, 128)


@dataclass(frozen=True)
class Data:
    """A set: how deep the part is that slices are taken from, the voxel (z, y, x), and the configuration."""

    depth: int
    voxel_size: tuple[float, float, float]
    unit: str
    config: dict


def phantoms(seed, full):
    volumes = {
        part: {"raw": f"phantoms_{seed}.h5:/{part}/raw", "labels": f"phantoms_{seed}.h5:/{part}/somata"}
        for part in ("train", "test")
    }
    return Data(
        64,
        (2.0, 1.0, 1.0),
        "um",
        {
            "data": {"train": [volumes["train"]], "test": [volumes["test"]], "patch": [16, 64, 64]},
            "network": {"width": 8 if full else 4, "pooling": [[1, 2, 2], 2, 2]},
            "sparse_2d3d": {"patch": [96, 96], "steps": 2000 if full else 400, "batch": 4},
            "train": {"steps": 4000 if full else 400, "learning_rate": 5e-3},
        },
    )


def lucchi(seed, full):
    """Without ``full`` 2 x 2 pixels of each slice are one: what the networks see of a mitochondrion in as few steps."""
    volume = {"raw": "train.h5:/raw", "labels": "train.h5:/mito"}
    return Data(
        96,
        (5.0, 5.0, 5.0) if full else (5.0, 10.0, 10.0),
        "nm",
        {
            "data": {
                "train": [{**volume, "region": {"z": [0, 96]}}],
                "test": [{**volume, "region": {"z": [100, 128]}}],
                "patch": [32, 96, 96] if full else [16, 64, 64],
            },
            "network": {"width": 16 if full else 8, "pooling": [2, 2, 2]},
            "sparse_2d3d": {"patch": [128, 128] if full else [96, 96], "steps": 4000 if full else 800},
            "train": {"steps": 10_000 if full else 400, "learning_rate": 3e-3},
            "predict": {"overlap": 0.25},
        },
    )


SETS = {"phantoms": phantoms, "lucchi": lucchi}


def annotated(count, depth, seed):
    """``count`` slices, one in each of as many equal parts."""
    return [int((i + OFFSETS[seed % len(OFFSETS)]) * depth / count) for i in range(count)]


def bin_lucchi(source, path):
    """train.h5 with 2 x 2 pixels of each slice as one: their mean, and the label of at least half of them."""
    volumes = {name: open_volume(f"{source}:/{name}") for name in ("raw", "mito")}
    arrays = {}
    for name, volume in volumes.items():
        depth, height, width = volume.shape
        pixels = volume[:][0].reshape(depth, height // 2, 2, width // 2, 2).mean((2, 4), dtype="f4")
        arrays[name] = (pixels.round() if name == "raw" else pixels >= 0.5).astype("u1")
    specs = {
        name: ArraySpec(array.shape, "u1", (16, 64, 64), voxel_size=(0.005, 0.01, 0.01))
        for name, array in arrays.items()
    }
    with open_output(path, specs) as output:
        output.write((0, 0, 0), arrays["raw"].shape, arrays)


def configure(name, count, seed, options):
    """The configuration file of a place in the experiment."""
    data = SETS[name](seed, options.full)
    folder = options.folder / name / f"slices_{count}_seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    values = {**data.config, "method": "sparse_2d3d", "output": str(folder / "run"), "seed": seed}
    root = options.root if name == "lucchi" and options.full else folder.parent
    values["data"] = {**values["data"], "root": str(root)}
    first = {
        **values["data"]["train"][0],
        "annotated": {"axis": "z", "slices": annotated(count, data.depth, seed)},
    }
    values["data"]["train"] = [first]
    values["train"] = {"checkpoint_every": 200, "batch": 2, **values["train"]}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    phantoms_file = folder.parent / f"phantoms_{seed}.h5"
    if name == "phantoms" and not phantoms_file.exists():
        write_phantoms(str(phantoms_file), PHANTOM, {"train": 100 + 2 * seed, "test": 101 + 2 * seed})
    if name == "lucchi" and not options.full and not (folder.parent / "train.h5").exists():
        bin_lucchi(options.root / "train.h5", folder.parent / "train.h5")
    return path, data


def run_arms(name, count, seed, options, done):
    path, data = configure(name, count, seed, options)
    config = load_config(path)
    alone = ["method=supervised", "sparse_2d3d={}", f"output={config.output}_sparse"]
    jobs = {
        "2d": (f"{config.output}/slices", lambda: train(config, resume=True, quiet=True)),
        "pseudo": (config.output, lambda: None),  # trained with the one before
        "sparse": (
            f"{config.output}_sparse",
            lambda: train(load_config(path, alone), resume=True, quiet=True),
        ),
    }
    for arm, (run, learn) in jobs.items():
        if (name, str(count), str(seed), arm) in done:
            continue
        learn()
        predict_run(run, quiet=True)
        row = {
            "data": name,
            "slices": count,
            "seed": seed,
            "arm": arm,
            **score(run, data),
            "commit": commit(),
        }
        add(options.results, row, COLUMNS)
        print(row, flush=True)


def score(run, data):
    """Voxel counts, the mean distance of the surfaces, and the Dice of the sections across the slices."""
    results, _ = evaluate_run(run)
    config = load_config(Path(run) / "config.yaml")
    test = config.data.test[0]
    truth = open_volume(Path(config.data.root) / test.labels)
    low, high = test.region.z or (0, truth.shape[0])
    truth = truth[low:high][0]
    found = open_volume(f"{prediction_path(RunFolder(run), 0)}:/segmentation")[:][0]
    (counts,) = results.values()
    return {
        **{
            key: value if isinstance(value, int) else round(value, 5)
            for key, value in counts.as_dict().items()
        },
        "surface_distance": round(average_surface_distance(found, truth, data.voxel_size), 4),
        "xz_dice": round(section_dice(found, truth, axis=1), 5),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--data", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--root", type=Path, help="the folder of train.h5, for lucchi")
    parser.add_argument("--slices", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--full", action="store_true", help="networks and steps for a GPU")
    parser.add_argument("--threads", type=int, help="of torch, by default all cores")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/experiments/sparse_2d3d"), help="(%(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--plot", type=Path, help="with show: the PNG to draw")
    options = parser.parse_args()
    if options.what == "show":
        from sparse_2d3d_report import draw, table

        print(table(read(options.results)))
        if options.plot:
            draw(read(options.results), options.plot)
        return
    if "lucchi" in options.data and options.root is None:
        parser.error("--data lucchi needs --root, the folder of train.h5")
    options.root = options.root and options.root.resolve()
    options.folder = options.folder.resolve()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.data:
        for seed in options.seeds:
            for count in options.slices:
                done = {(r["data"], r["slices"], r["seed"], r["arm"]) for r in read(options.results)}
                run_arms(name, count, seed, options, done)


if __name__ == "__main__":
    main()
