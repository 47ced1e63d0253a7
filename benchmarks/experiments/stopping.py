# SPDX-License-Identifier: BSD-3-Clause
"""The stop by morphology on a sparse annotation: what it takes beside the last step and beside the best one.

    python benchmarks/experiments/stopping.py run --root FOLDER --threads 1
    python benchmarks/experiments/stopping.py show

FOLDER holds em_lucchi/train.h5, with raw and mito (mitochondria), whose 2 x 2 pixels of each slice are made one. Of its
128 slices, 0 to 75 are learnt from by ``sparse_2d3d``, a few of them annotated; 80 to 95 are the target that the rule
looks at, images alone; 100 to 127 are the test. The target is not what was learnt from, as a network shows the shapes
of its own labels there (the 3D network those of its pseudo-labels), and not the test, so that no rule has seen what it
is scored on. Mitochondria reach across the four slices between, 20 nm.

Networks: 2d, and pseudo, the 3D network with the pseudo-labels of the 2D network's last step: whichever look a rule
takes, the 3D network learns the same. Each is looked at --looks times, and every rule judges the same predictions:

    solidity, area_ratio, object_count   nearest to that of the annotated slices
    slice                                the best Dice of one more annotated slice, in the middle of the target

A row has the Dice and IoU of the test at the look that a rule takes, at the last one, and at the best one, which only
the labels of the test can tell, and their steps.
"""

import argparse
from pathlib import Path

from looks import RecordingChooser, looks_of
from rows import add, commit, parse, read
from sparse_2d3d import annotated, bin_lucchi, lucchi

from fastseg.methods.config_file import parse_config
from fastseg.methods.registry import train
from fastseg.methods.supervised import training as supervised

RESULTS = Path(__file__).parents[1] / "results" / "experiments" / "stopping.csv"
NETWORKS = ("2d", "pseudo")
PROPERTIES = ("solidity", "area_ratio", "object_count")
RULES = (*PROPERTIES, "slice")
MOMENTS = ("stop", "last", "best")
COLUMNS = ("slices", "seed", "network", "rule")
COLUMNS += tuple(f"{measure}_{moment}" for measure in ("dice", "iou", "step") for moment in MOMENTS)
COLUMNS += ("looks", "commit")
# Slices of the stack, [first, last), and the one of the target that is annotated for the rule ``slice``.
PARTS = {"train": [0, 76], "target": [80, 96], "test": [100, 128]}
ONE_MORE = 88


def configured(count, seed, options):
    """The configuration of ``sparse_2d3d``'s experiment, with these parts and a target to look at."""
    values = lucchi(seed, full=False).config
    volume = {key: values["data"]["test"][0][key] for key in ("raw", "labels")}
    train_part, target, test = ({**volume, "region": {"z": z}} for z in PARTS.values())
    learnt = annotated(count, PARTS["train"][1], seed)
    values |= {
        "method": "sparse_2d3d",
        "output": str(options.folder / f"slices_{count}_seed_{seed}"),
        "seed": seed,
        "data": {
            **values["data"],
            "root": str(options.folder),
            "train": [{**train_part, "annotated": {"axis": "z", "slices": learnt}}],
            # Labels of one slice, for target_dice, which does not decide.
            "target": [{**target, "annotated": {"axis": "z", "slices": [ONE_MORE]}}],
            "test": [test],
        },
        "train": {
            **values["train"],
            "batch": 2,
            "checkpoint_every": 200,
            "stop": {"rule": "morphology", "property": PROPERTIES[0]},
        },
        "predict": {**values["predict"], "checkpoint": "newest"},
    }
    return parse_config(values, f"{count} slices, seed {seed}")


def taken(looks, rule):
    """The look that a rule takes, the earliest of equals."""
    if rule == "slice":
        return max(looks, key=lambda look: look["target_dice"])
    return min(looks, key=lambda look: look[f"{rule}_distance"])


def rows_of(looks):
    """What each rule takes of the looks at one training, beside the last and the best of them."""
    best = max(looks, key=lambda look: look["test_dice"])
    for rule in RULES:
        row = {"rule": rule, "looks": len(looks)}
        for moment, look in zip(MOMENTS, (taken(looks, rule), looks[-1], best), strict=True):
            row |= {f"{name}_{moment}": round(look[f"test_{name}"], 4) for name in ("dice", "iou")}
            row[f"step_{moment}"] = look["step"]
        yield row


def run_place(count, seed, options, done):
    run = train(configured(count, seed, options), resume=True, quiet=options.quiet)
    for network, folder in {"2d": run.file("slices"), "pseudo": run.path}.items():
        for row in rows_of(looks_of(folder)):
            if (str(count), str(seed), network, row["rule"]) not in done:
                row = {"slices": count, "seed": seed, "network": network, **row, "commit": options.commit}
                add(options.results, row, COLUMNS)
                print(row, flush=True)


def run_all(options):
    supervised.morphology_chooser = RecordingChooser
    RecordingChooser.looks, RecordingChooser.properties = options.looks, PROPERTIES
    options.commit = commit()  # of what is loaded, whatever is committed while it runs
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "train.h5").exists():
        bin_lucchi(options.root / "em_lucchi" / "train.h5", options.folder / "train.h5")
    for seed in options.seeds:
        for count in options.slices:
            done = {tuple(row[c] for c in COLUMNS[:4]) for row in read(options.results)}
            places = {(str(count), str(seed), network, rule) for network in NETWORKS for rule in RULES}
            if not places <= done:
                run_place(count, seed, options, done)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, nargs="+", default=[4, 8], help="annotated (%(default)s)")
    parser.add_argument("--looks", type=int, default=10, help="at each network (%(default)s)")
    options = parse(parser, "stopping", RESULTS)
    if options is not None:
        run_all(options)


if __name__ == "__main__":
    main()
