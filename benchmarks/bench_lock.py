# SPDX-License-Identifier: BSD-3-Clause
"""How much of a patch's CPU time is spent under Python's lock, which bounds how the loader scales with threads.

    python benchmarks/bench_lock.py

Counted, not sampled: `lock_released.c`, preloaded, adds up the CPU time of a thread between giving the lock away and
taking it back; all else of the thread's CPU time is under the lock (so is half of what the counter itself costs). Needs
a Python with a shared libpython. Patches of 32x96x96 with labels come from random places of 128x512x512 voxels in
chunks of 32x64x64, into the loader's buffers by its own `_fill`: from no cache, or from a warm one.
Then patches per second on 1 and 2 threads, and, to show that nothing else serialises, on 1 and 16 threads where
decoding a chunk sleeps as well. docs/loading.md has the table.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from bench_loader import smooth_noise

from fastseg.data import AnnotatedVolume, open_volume
from fastseg.data.annotations import LabelIndex
from fastseg.data.intensity import Intensity
from fastseg.data.loader import PatchLoader
from fastseg.data.native_codecs import ChunkLayout
from fastseg.data.patches import PatchSampler, Sampling

SHAPE, CHUNKS, PATCH = (128, 512, 512), (32, 64, 64), (32, 96, 96)
CACHE = 1 << 30  # more than the volume
SLEEP = 0.03  # seconds that the slow codec sleeps over a chunk


def write_hdf5(path, raw, label, dtype, **options):
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset(
            "raw", data=raw.astype(dtype) * (257 if dtype == "u2" else 1), chunks=CHUNKS, **options
        )
        file.create_dataset("label", data=label, chunks=CHUNKS, compression="gzip")


def write_zarr(path, raw, label, codec):
    import zarr

    group = zarr.open_group(path, mode="w")
    for name, data in (("raw", raw), ("label", label)):
        group.create_array(name, data=data, chunks=CHUNKS, compressors=codec)


def volumes(folder):
    """{name: path}, written where they are not there."""
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    writers = {
        "HDF5, gzip": ("gzip.h5", write_hdf5, ["u1"], {"compression": "gzip"}),
        "HDF5, gzip and shuffle, uint16": (
            "wide.h5",
            write_hdf5,
            ["u2"],
            {"compression": "gzip", "shuffle": True},
        ),
        "Zarr, gzip": ("gzip.zarr", write_zarr, [GzipCodec(level=5)], {}),
        "Zarr, zstd": ("zstd.zarr", write_zarr, [ZstdCodec(level=0)], {}),
        "Zarr, blosc (lz4)": ("blosc.zarr", write_zarr, [BloscCodec(cname="lz4", typesize=1)], {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if any(not (folder / file).exists() for file, *_ in writers.values()):
        raw, label = smooth_noise(SHAPE)
        for file, write, arguments, options in writers.values():
            write(folder / file, raw, label, *arguments, **options)
    return {name: folder / file for name, (file, *_) in writers.items()}


def loader_of(path, threads, cache_bytes, per_block):
    volume = AnnotatedVolume(open_volume(f"{path}:/raw"), open_volume(f"{path}:/label"))
    anywhere = LabelIndex(np.zeros((1, 3), np.int64), np.zeros((1, 3), np.int64), 1, 0, 1)
    options = {"batch": 2, "patches_per_block": per_block}
    sampler = PatchSampler([volume], [anywhere], PATCH, Sampling(1, 0, 0), 0, **options)
    return PatchLoader(
        [volume], [Intensity((127.0,), (1 / 64,))], sampler, threads=threads, cache_bytes=cache_bytes
    )


def share(path, cached, per_block, patches, released_ns):
    """CPU us of a patch, and the part of it under the lock."""
    loader = loader_of(path, 1, CACHE if cached else 0, per_block)
    buffer = loader.ring.take()
    for patch in range(300 if cached else 20):
        loader._fill(buffer, patch % 2, *divmod(patch, 2))
    cpu, released = time.thread_time_ns(), released_ns()
    for patch in range(1000, 1000 + patches):
        loader._fill(buffer, patch % 2, *divmod(patch, 2))
    cpu, released = time.thread_time_ns() - cpu, released_ns() - released
    return cpu / patches / 1e3, 1 - released / cpu


def rate(path, threads, seconds, sleep=0.0):
    loader = loader_of(path, threads, 0, 4)
    if sleep:
        for volume in (loader.volumes[0].raw, loader.volumes[0].labels):
            reader = volume.source.chunk_reader()
            # Python decodes, slowly.
            reader.stored = ChunkLayout("slow " + reader.name, reader.dtype, reader.chunks)
            reader.fetch = asleep(reader.fetch, sleep)
    batches = loader.batches(0, 10**9)
    for _ in range(threads + 1):
        next(batches)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        next(batches)
        count += 2
    return count / (time.perf_counter() - begin)


def asleep(fetch, seconds):
    def slow(index):
        time.sleep(seconds)
        return fetch(index)

    return slow


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/bench_lock"), help="(%(default)s)")
    parser.add_argument("--patches", type=int, default=100, help="counted for each share")
    parser.add_argument("--seconds", type=float, default=4.0, help="counted for each rate")
    options = parser.parse_args()
    paths = volumes(options.folder)
    if "LD_PRELOAD" not in os.environ:
        library = options.folder / "lock_released.so"
        source = Path(__file__).with_name("lock_released.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
        os.environ["LD_PRELOAD"] = str(library.resolve())
        os.execv(sys.executable, [sys.executable, *sys.argv])
    released_ns = ctypes.PyDLL(os.environ["LD_PRELOAD"]).released_ns
    released_ns.restype = ctypes.c_longlong
    print("| | cache | patches_per_block | CPU us per patch | under the lock |\n|---|---|---|---|---|")
    for name, path in paths.items():
        for cached, per_block in ((False, 1), (False, 4), (True, 4)):
            cpu, held = share(path, cached, per_block, options.patches * (1 + 2 * cached), released_ns)
            if held == 1:
                raise SystemExit("this Python calls its own PyEval_SaveThread: it has no shared libpython")
            print(
                f"| {name} | {'yes' if cached else 'no'} | {per_block} | {cpu:.0f} | {held:.1%} |", flush=True
            )
    print("\n| patches/s, no cache | 1 thread | 2 threads | |\n|---|---|---|---|")
    for name, path in paths.items():
        one, two = (rate(path, threads, options.seconds) for threads in (1, 2))
        print(f"| {name} | {one:.0f} | {two:.0f} | {two / one:.2f}x |", flush=True)
    one, many = (rate(paths["HDF5, gzip"], threads, 2 * options.seconds, SLEEP) for threads in (1, 16))
    print(
        f"\n{SLEEP * 1e3:.0f} ms of sleep a chunk: {one:.2f} patches/s on 1 thread, {many:.2f} on 16: {many / one:.1f}x"
    )


if __name__ == "__main__":
    main()
