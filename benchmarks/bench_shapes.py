# SPDX-License-Identifier: BSD-3-Clause
"""The shapes of objects, as train.stop: morphology measures them, beside scikit-image and a hull per object.

    python benchmarks/bench_shapes.py --labels train.h5:/mito

One thread, in turns, medians. All label the same components with connected-components-3d; ours and the hull per object
must agree to rounding before either is timed, scikit-image counts pixel centres and is within 0.05 of them on average.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch
from measure import device_name
from table import commit

from fastseg.shapes import object_values

SHAPE = (64, 256, 256)
SMALLEST = 10
CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])


# Packages of the extra `train` are imported where they are used: run.py reads this file on machines without them.
def ours(mask):
    return object_values(mask, "solidity", smallest=SMALLEST)


def scikit_image(mask):
    import cc3d
    from skimage.measure import regionprops_table

    values = []
    for plane in cc3d.connected_components(mask, connectivity=26):
        table = regionprops_table(plane.astype(np.int64), properties=("area", "solidity"))
        values.append(table["solidity"][table["area"] > SMALLEST])
    return np.concatenate(values)


def hull_per_object(mask):
    import cc3d
    from scipy.spatial import ConvexHull

    values = []
    for plane in cc3d.connected_components(mask, connectivity=26):
        places = np.argwhere(plane)
        labels = plane[tuple(places.T)]
        for label in np.unique(labels):
            pixels = places[labels == label]
            if len(pixels) > SMALLEST:
                corners = (pixels[:, None] + CORNERS).reshape(-1, 2)
                values.append(len(pixels) / ConvexHull(corners).volume)
    return np.array(values)


CONTESTANTS = {"fastseg": ours, "scikit-image": scikit_image, "hull per object": hull_per_object}


def load(labels):
    if labels is not None:
        from fastseg.data import open_volume

        return open_volume(labels)[:][0] > 0
    from fastseg.data.phantoms import make_phantom

    return make_phantom(SHAPE).instances > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", help="a volume of labels, by default a phantom's")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mask = load(options.labels)
    found = {name: function(mask) for name, function in CONTESTANTS.items()}
    means = {name: values.mean() for name, values in found.items()}
    if not np.allclose(np.sort(found["fastseg"]), np.sort(found["hull per object"]), rtol=1e-12):
        sys.exit("fastseg and the hull per object differ")
    if abs(means["fastseg"] - means["scikit-image"]) > 0.05:
        sys.exit(f"the means differ: {means}")
    times = {name: [] for name in CONTESTANTS}
    for _ in range(options.rounds):
        for name, function in CONTESTANTS.items():
            begin = time.perf_counter()
            function(mask)
            times[name].append(time.perf_counter() - begin)
    shape = "x".join(map(str, mask.shape))
    print(
        f"{device_name('cpu')}, 1 thread, commit {commit()}; mask {shape}, {len(found['fastseg'])} sections\n"
    )
    print("| | mean solidity | s | fastseg is faster by |\n|---|---|---|---|")
    first = statistics.median(times["fastseg"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {name} | {means[name]:.4f} | {median:.3f} | {median / first:.1f}x |")


if __name__ == "__main__":
    main()
