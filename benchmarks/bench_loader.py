# SPDX-License-Identifier: BSD-3-Clause
"""Loading alone, beside the peers: patches with labels, scaled and flipped, from gzip HDF5 and from Zarr.

    python benchmarks/bench_loader.py --source train.h5:/raw --labels train.h5:/mito --peer-python PEERS/bin/python

Thirty-two volumes are written once: turned and shifted copies of --source, or smooth noise. Each contestant runs in a
process of its own, one after the other, round by round, with two workers: batches are drawn until the queues are
warm, then those of some seconds are counted. docs/loading.md has the table.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from loader_peers import LABEL, PEERS, RAW, version

PATCH, BATCH, CHUNKS, VOLUMES = (32, 96, 96), 2, (32, 64, 64), 32
SHAPE = (128, 448, 640)
CACHE = (
    128 << 20
)  # a twentieth of the volumes: of those that are larger than memory little is in a cache either
OURS = {"fastseg": 4, "fastseg, 8 patches of a block": 8, "fastseg, every patch by itself": 1}


def write_hdf5(folder, source, labels):
    """v0.h5 .. v31.h5 with /raw and /label, uint8, compressed as h5py does by default."""
    import h5py

    raw, label = _content(source, labels)
    rng = np.random.default_rng(0)
    for number in range(VOLUMES):
        shift = tuple(int(rng.integers(n)) for n in raw.shape)
        flips = tuple(axis for axis in range(3) if number >> axis & 1)
        with h5py.File(folder / f"v{number}.h5", "w") as file:
            for name, array in ((RAW, raw), (LABEL, label)):
                moved = np.flip(np.roll(array, shift, (0, 1, 2)), flips)
                file.create_dataset(name, data=moved, chunks=CHUNKS, compression="gzip")


def write_zarr(folder):
    """The same in v0.zarr .. v31.zarr, compressed as zarr-python does by default."""
    import h5py
    import zarr

    for number in range(VOLUMES):
        group = zarr.open_group(folder / f"v{number}.zarr", mode="w")
        with h5py.File(folder / f"v{number}.h5") as file:
            for name in (RAW, LABEL):
                group.create_array(name, data=file[name][:], chunks=CHUNKS)


def _content(source, labels):
    if source is not None:
        from fastseg.data import open_volume

        return open_volume(source)[:][0].astype("u1"), (open_volume(labels)[:][0] > 0).astype("u1")
    return smooth_noise(SHAPE)


def smooth_noise(shape):
    """Grey levels about as hard to compress as a micrograph's, and blobs as their labels."""
    from fastseg.data.phantoms import gaussian_blur

    rng = np.random.default_rng(0)
    smooth = gaussian_blur(rng.normal(size=shape).astype("f4"), np.array([4.0, 4.0, 4.0]))
    smooth /= smooth.std()
    raw = np.clip(128 + 30 * smooth + rng.normal(0, 12, shape), 0, 255).astype("u1")
    return raw, (smooth > 1.6).astype("u1")


def ours(files, patch, batch, workers, patches_per_block):
    import torch

    from fastseg.data import AnnotatedVolume, open_volume
    from fastseg.data.annotations import LabelIndex
    from fastseg.data.augment import Augmentation, augment
    from fastseg.data.intensity import Intensity
    from fastseg.data.loader import PatchLoader
    from fastseg.data.patches import PatchSampler, Sampling

    torch.set_num_threads(
        1
    )  # as in the peers' workers: threads of torch that wait take the cores from the readers
    volumes = [
        AnnotatedVolume(open_volume(f"{file}:/{RAW}"), open_volume(f"{file}:/{LABEL}")) for file in files
    ]
    anywhere = LabelIndex(np.zeros((1, 3), np.int64), np.zeros((1, 3), np.int64), 1, 0, 1)
    sampler = PatchSampler(
        volumes,
        [anywhere] * len(volumes),
        patch,
        Sampling(1, 0, 0),
        0,
        batch=batch,
        patches_per_block=patches_per_block,
    )
    intensities = [Intensity((127.0,), (1 / 64,))] * len(volumes)
    loader = PatchLoader(volumes, intensities, sampler, threads=workers, cache_bytes=CACHE)
    flips = Augmentation(symmetry="plane", contrast=0, brightness=0)
    for loaded in loader.batches(0, 10**9):
        image, target, _ = augment(loaded.to(torch.device("cpu")), flips, patch, 0)
        yield image, target


def run_one(name, files, options):
    """What a contestant's own process prints: its patches per second, or why there are none."""
    try:
        job = (files, PATCH, BATCH, options.workers)
        if name in OURS:
            import fastseg

            batches, found = ours(*job, OURS[name]), fastseg.__version__
        else:
            batches, found = PEERS[name](*job), version(name)
        warm_until = time.perf_counter() + options.seconds / 3
        for raw, label in itertools.takewhile(lambda _: time.perf_counter() < warm_until, batches):
            shapes = (BATCH, 1, *PATCH)
            if tuple(raw.shape) != shapes or tuple(label.shape) != shapes or raw.element_size() != 4:
                raise ValueError(f"gives {tuple(raw.shape)} {raw.dtype} and {tuple(label.shape)}")
        begin, count = time.perf_counter(), 0
        for _ in batches:
            count += BATCH
            if time.perf_counter() - begin > options.seconds:
                break
        return {"rate": count / (time.perf_counter() - begin), "version": found}
    except (ImportError, ValueError) as error:
        return {"reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="raw volume, by default made on the spot")
    parser.add_argument("--labels", help="its labels")
    parser.add_argument("--folder", type=Path, default=Path("build/bench_loader"), help="(%(default)s)")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="0: only write the volumes")
    parser.add_argument("--seconds", type=float, default=6.0, help="counted in each round")
    parser.add_argument(
        "--rounds-file", type=Path, help="add the rounds of earlier runs in this file, and these to it"
    )
    parser.add_argument("--format", choices=("h5", "zarr"), nargs="+", default=["h5", "zarr"])
    parser.add_argument("--contestant", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--write-zarr", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        files = [str(options.folder / f"v{i}.{options.format[0]}") for i in range(VOLUMES)]
        print(json.dumps(run_one(options.one, files, options)))
        sys.stdout.flush()
        # Workers of a loader that is left in the middle may take their time.
        import os

        os._exit(0)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.write_zarr:
        return write_zarr(options.folder)
    if not (options.folder / f"v{VOLUMES - 1}.h5").exists():
        write_hdf5(options.folder, options.source, options.labels)
    if "zarr" in options.format and not (options.folder / f"v{VOLUMES - 1}.zarr").exists():
        command = [options.peer_python, __file__, "--write-zarr", "--folder", str(options.folder)]
        subprocess.run(command, check=True)
    if options.rounds == 0:
        return None
    results = {}
    if options.rounds_file and options.rounds_file.exists():
        for form, name, result in map(json.loads, options.rounds_file.read_text().splitlines()):
            results.setdefault((form, name), []).append(result)
    for _, form, name in itertools.product(range(options.rounds), options.format, options.contestant):
        python = sys.executable if name in OURS else options.peer_python
        command = [python, __file__, "--one", name, "--format", form, "--folder", str(options.folder)]
        command += ["--workers", str(options.workers), "--seconds", str(options.seconds)]
        done = subprocess.run(command, capture_output=True, text=True)
        last = done.stdout.splitlines()[-1] if done.stdout.strip() else ""
        result = (
            json.loads(last) if last.startswith("{") else {"reason": done.stderr.strip().splitlines()[-1]}
        )
        results.setdefault((form, name), []).append(result)
        print(f"# {form} {name}: {result}", flush=True)
        if options.rounds_file:
            with options.rounds_file.open("a") as file:
                file.write(json.dumps([form, name, result]) + "\n")
    print(render(results, options))
    return None


def render(results, options):
    rounds = max(map(len, results.values()))
    lines = [
        f"{platform.processor() or platform.machine()}, {options.workers} workers, {rounds} rounds of "
        f"{options.seconds:.0f} s, medians; patches {PATCH} with labels, batch {BATCH}, chunks {CHUNKS}",
        "",
        "| format | loader | version | patches/s | fastseg is faster by |",
        "|---|---|---|---|---|",
    ]
    best = {}
    for (form, name), found in results.items():
        reason = next((r["reason"] for r in found if "reason" in r), None)
        if reason is not None:
            lines.append(f"| {form} | {name} | | {reason} | |")
            continue
        rate = statistics.median(r["rate"] for r in found)
        best.setdefault(form, rate if name == "fastseg" else None)
        factor = f"{best[form] / rate:.1f}x" if best[form] and name != "fastseg" else ""
        lines.append(f"| {form} | {name} | {found[0]['version']} | {rate:.0f} | {factor} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
