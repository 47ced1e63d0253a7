# SPDX-License-Identifier: BSD-3-Clause
"""Patches of Zarr and N5: fastseg's own readers beside tensorstore and zarr-python, in one run.

    python benchmarks/bench_formats.py

A volume of smooth noise is written once for each compression. Each reader then reads patches at the same random places
from a pool of 1, 2 and 16 threads, from a cache that holds the whole volume and is warm, or with none: patches per
second, and CPU time per patch, which a busy machine disturbs less. Every reader's first patches are compared with the
volume. docs/volumes.md has the table.
"""

import argparse
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tensorstore as ts
import zarr
from bench_loader import smooth_noise
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from fastseg.data import open_volume
from fastseg.data.cache import ChunkCache

SHAPE, CHUNKS, SHARDS, PATCH = (128, 512, 512), (32, 64, 64), (64, 256, 256), (32, 96, 96)
THREADS = (1, 2, 16)
CACHE = 1 << 30  # more than the volume
STORES = {
    "Zarr, gzip": (GzipCodec(level=5), None),
    "Zarr, zstd": (ZstdCodec(level=0), None),
    "Zarr, blosc (lz4)": (BloscCodec(cname="lz4", typesize=1), None),
    "Zarr, zstd, shards": (ZstdCodec(level=0), SHARDS),
    "N5, gzip": ({"type": "gzip"}, None),
}


def path_of(folder, name):
    plain = "".join(c if c.isalnum() else "_" for c in name.lower())
    return folder / f"{plain}.{'n5' if name.startswith('N5') else 'zarr'}"


def write(path, codec, shards, volume):
    if path.suffix == ".zarr":
        options = {"compressors": codec, "chunks": CHUNKS, "shards": shards}
        zarr.create_array(path, data=volume, **options)
        return
    metadata = {
        "dimensions": SHAPE[::-1],
        "blockSize": CHUNKS[::-1],
        "dataType": "uint8",
        "compression": codec,
        "axes": ["x", "y", "z"],
    }
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    ts.open(spec, create=True).result()[...].write(volume.T).result()


def ours(path, cached, threads):
    cache = ChunkCache(CACHE if cached else 0)
    volume = open_volume(str(path)).with_cache(cache)
    return lambda start: volume.read(start, np.add(start, PATCH).tolist())[0]


def tensorstore(path, cached, threads):
    spec = {
        "driver": "n5" if path.suffix == ".n5" else "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "recheck_cached_data": "open",
        "recheck_cached_metadata": "open",
        "context": {
            "cache_pool": {"total_bytes_limit": CACHE if cached else 0},
            "data_copy_concurrency": {"limit": threads},
        },
    }
    array = ts.open(spec, read=True).result()
    array = array.T if path.suffix == ".n5" else array
    return lambda start: array[tuple(map(slice, start, np.add(start, PATCH)))].read(order="C").result()


def zarr_python(path, cached, threads):
    if cached or path.suffix == ".n5":
        return None  # has no cache of chunks, and version 3 does not read N5
    zarr.config.set({"threading.max_workers": threads, "async.concurrency": max(threads, 10)})
    array = zarr.open_array(path, mode="r")
    return lambda start: array[tuple(map(slice, start, np.add(start, PATCH)))]


READERS = {"fastseg": ours, "tensorstore": tensorstore, "zarr-python": zarr_python}


def measure(read, threads, seconds):
    rng = np.random.default_rng(0)
    places = rng.integers(np.subtract(SHAPE, PATCH) + 1, size=(4096, 3)).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, places[:64]))
        begin, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begin < seconds:
            some = places[64 + count % 3000 :][: 4 * threads]
            list(pool.map(read, some))
            count += len(some)
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return count / wall, 1e6 * cpu / count


def warm(read):
    for start in np.ndindex(*(-(-n // p) for n, p in zip(SHAPE, PATCH, strict=True))):
        read([min(i * p, n - p) for i, p, n in zip(start, PATCH, SHAPE, strict=True)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/bench_formats"), help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="counted for each figure")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    volume = smooth_noise(SHAPE)[0]
    peers = ", ".join(f"{name} {version(name)}" for name in ("fastseg", "tensorstore", "zarr"))
    print(f"{platform.processor() or platform.machine()}; {peers}; patches {PATCH}, chunks {CHUNKS}\n")
    heads = [f"{n} thread{'s' * (n > 1)}" for n in THREADS]
    print(f"| patches/s (CPU us per patch) | cache | reader | {' | '.join(heads)} |")
    print("|---|---|---|" + "---|" * len(THREADS))
    for name, (codec, shards) in STORES.items():
        path = path_of(options.folder, name)
        if not path.exists():
            write(path, codec, shards, volume)
        for cached in (False, True):
            for reader, make in READERS.items():
                cells = []
                for threads in THREADS:
                    read = make(path, cached, threads)
                    if read is None:
                        continue
                    for start in ([0, 0, 0], [17, 100, 301], np.subtract(SHAPE, PATCH).tolist()):
                        box = tuple(map(slice, start, np.add(start, PATCH)))
                        if not np.array_equal(read(start), volume[box]):
                            raise SystemExit(f"{reader} reads {name} wrongly at {start}")
                    if cached:
                        warm(read)
                    rate, cpu = measure(read, threads, options.seconds)
                    cells.append(f"{rate:.0f} ({cpu:.0f})")
                if cells:
                    print(
                        f"| {name} | {'yes' if cached else 'no'} | {reader} | {' | '.join(cells)} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
