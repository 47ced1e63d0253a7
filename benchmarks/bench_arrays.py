# SPDX-License-Identifier: BSD-3-Clause
"""The loops of the data path: CPU ns per voxel in C++ and as numpy or torch did them before, in one run.

    python benchmarks/bench_arrays.py

Blocks of 2^24 voxels, more than a cache holds; blending goes tile by tile, as prediction does, and its floor is what
adding the same tiles to the same block takes, which moves the same bytes. CPU time of one thread,
the least of some rounds, in which the contestants take turns. Results are compared before anything is timed.
docs/loading.md has the table.
"""

import argparse
import platform
import time

import numcodecs
import numpy as np
import torch

from fastseg import _C
from fastseg.data.annotations import _Reservoir
from fastseg.metrics import count_confusion

BLOCK = (64, 512, 512)
VOXELS = 1 << 24
TILE = (32, 128, 128)


def confusion():
    rng = np.random.default_rng(0)
    prediction, target, codes = ((rng.random(BLOCK) < share).astype(np.uint8) for share in (0.2, 0.2, 0.9))

    def before():
        true, predicted, inside = target != 0, prediction != 0, codes == 1
        return np.bincount((true[inside] * 2 + predicted[inside]).ravel(), minlength=4)

    def now():
        found = count_confusion(prediction, target, codes == 1)
        return [found.true_negative, found.false_positive, found.false_negative, found.true_positive]

    return before, now, VOXELS, lambda a, b: np.array_equal(a, b)


def positions(blocks=16, most=100_000):
    """Of a volume that is annotated all over: 16 blocks."""
    codes = np.ones(BLOCK, np.uint8)

    def before():
        rng = np.random.default_rng(0)
        kept, kept_keys = np.empty((0, 3), np.int64), np.empty(0)
        for _ in range(blocks):
            flat = np.flatnonzero(codes != 0)
            keys = rng.random(len(flat))
            chosen = np.argpartition(keys, most)[:most]
            here = np.stack(np.unravel_index(flat[chosen], BLOCK), axis=1)
            kept, kept_keys = np.concatenate((kept, here)), np.concatenate((kept_keys, keys[chosen]))
            chosen = np.argpartition(kept_keys, most - 1)[:most]
            kept, kept_keys = kept[chosen], kept_keys[chosen]
        return kept

    def now():
        reservoir = _Reservoir(np.random.default_rng(0), most)
        for _ in range(blocks):
            reservoir.add(codes, None, (0, 0, 0))
        return reservoir.positions

    return before, now, blocks * VOXELS, lambda a, b: a.shape == b.shape


def histogram(dtype):
    values = levels(dtype)
    count = np.iinfo(dtype).max + 1

    def now():
        counts = np.zeros(count, np.int64)
        _C.count_levels(values, counts)
        return counts

    return lambda: np.bincount(values.reshape(-1), minlength=count), now, VOXELS, np.array_equal


def lookup(dtype):
    values = levels(dtype)
    table = np.random.default_rng(1).permutation(np.iinfo(dtype).max + 1).astype(dtype)
    out = np.empty_like(values)

    def now():
        _C.map_levels(values, table, out)
        return out

    return lambda: table[values], now, VOXELS, np.array_equal


def levels(dtype):
    """As of a micrograph: noise about a mean."""
    top = np.iinfo(dtype).max
    noise = np.random.default_rng(0).normal(top / 2, top / 8, BLOCK).astype(np.float32)
    return noise.clip(0, top).astype(dtype)


def blend():
    """The columns of tiles of a block at half overlap, 16 times."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(1, *TILE)).astype(np.float32))
    means = [torch.zeros((1, 64, 256, 256)) for _ in range(2)]
    summed = torch.zeros((1, 64, 256, 256))
    places = [(0, z, y, x) for z in (0, 16, 32) for y in (0, 64, 128) for x in (0, 64, 128)]
    shares = [torch.from_numpy(rng.random(n, np.float32)) for n in (TILE[0], *TILE[1:2] * 2, *TILE[2:] * 2)]
    before_z, before_y, total_y, before_x, total_x = shares
    planes = ((1 << 15) - 1) // (TILE[1] * TILE[2])  # as many as torch blends in one thread

    def parts(mean):
        for _, z, y, x in places:
            yield mean[:, z : z + TILE[0], y : y + TILE[1], x : x + TILE[2]]

    def floor():
        for part in parts(summed):
            part += values

    def before():
        for part in parts(means[0]):
            for z in range(0, TILE[0], planes):
                some = slice(z, z + planes)
                others = before_y + total_y * before_z[some, None]
                weight = torch.addcmul(1 + before_x, others[..., None], total_x).reciprocal_()
                part[:, some].lerp_(values[:, some], weight)
        return means[0]

    def now():
        for part in parts(means[1]):
            _C.blend_tile(part.numpy(), values.numpy(), *(share.numpy() for share in shares))
        return means[1]

    agree = lambda a, b: torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    return before, now, len(places) * values.numel(), agree, floor


def unshuffle(dtype):
    """Chunks of 32x64x64 numbers, whose bytes HDF5 shuffled."""
    chunk = levels(np.uint16)[:8, :128, :128].astype(dtype)
    data = chunk.reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize).T.tobytes()
    codec = numcodecs.Shuffle(chunk.itemsize)

    def repeated(undo):
        for _ in range(63):
            undo()
        return np.frombuffer(undo(), np.uint8)

    return (
        lambda: repeated(lambda: np.frombuffer(data, np.uint8).reshape(chunk.itemsize, -1).T.tobytes()),
        lambda: repeated(lambda: _C.unshuffle(data, chunk.itemsize)),
        64 * chunk.size,
        np.array_equal,
        lambda: repeated(lambda: codec.decode(data)),
    )


LOOPS = {
    "confusion of uint8, where labelled": confusion,
    "100,000 positions of 268 M labelled voxels": positions,
    "histogram of uint8": lambda: histogram(np.uint8),
    "histogram of uint16": lambda: histogram(np.uint16),
    "lookup of uint8": lambda: lookup(np.uint8),
    "lookup of uint16": lambda: lookup(np.uint16),
    "blending of tiles 32x128x128 (beside it adding alone)": blend,
    "unshuffling of uint16 (beside it numcodecs)": lambda: unshuffle(np.uint16),
    "unshuffling of float32 (beside it numcodecs)": lambda: unshuffle(np.float32),
}


def cpu_ns(function, voxels):
    begin = time.thread_time_ns()
    function()
    return (time.thread_time_ns() - begin) / voxels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", nargs="+", choices=LOOPS, default=list(LOOPS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, numpy {np.__version__}, torch {torch.__version__}\n"
    )
    print("| CPU ns per voxel | before | C++ | | beside |\n|---|---|---|---|---|")
    for name in options.loop:
        before, now, voxels, agree, *beside = LOOPS[name]()
        if not agree(before(), now()):
            raise SystemExit(f"{name}: C++ and numpy disagree")
        contestants = (before, now, *beside)
        times = [[cpu_ns(function, voxels) for function in contestants] for _ in range(options.rounds)]
        old, new, *other = map(min, zip(*times, strict=True))
        peer = f"{other[0]:.2f}" if other else ""
        print(f"| {name} | {old:.2f} | {new:.2f} | {old / new:.1f}x | {peer} |", flush=True)


if __name__ == "__main__":
    main()
