# SPDX-License-Identifier: BSD-3-Clause
"""The memory that loading takes does not depend on the size of the volume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

# Loads batches and prints how much the high-water mark of resident memory grew beyond what the imports take, MiB.
LOAD = """
import sys, torch, numpy as np
from pathlib import Path
from fastseg.data import AnnotatedVolume, open_volume
from fastseg.data.annotations import LabelIndex
from fastseg.data.intensity import measure_intensity
from fastseg.data.loader import PatchLoader
from fastseg.data.patches import PatchSampler, Sampling

def status(field):
    return int(Path("/proc/self/status").read_text().split(field)[1].split()[0]) / 1024

torch.set_num_threads(1)
volume = AnnotatedVolume(open_volume(sys.argv[1] + ":/raw"), open_volume(sys.argv[1] + ":/labels"))
import imagecodecs
before = status("VmRSS:")
# Around the two corners that are written: elsewhere nothing is decoded, and the cache would stay empty.
written = np.random.default_rng(0).integers(0, (volume.shape[0], 256, 256), (4000, 3))
written[::2, 1:] = np.subtract(volume.shape[1:], 1) - written[::2, 1:]
index = LabelIndex(written, written, len(written), 0, len(written))
sampler = PatchSampler([volume], [index], (32, 96, 96), Sampling(0, 1, 0), 0, batch=2, patches_per_block=4)
intensity = measure_intensity(volume.raw, "zscore")
loader = PatchLoader([volume], [intensity], sampler, threads=2, cache_bytes=32 << 20)
held = 0
for batch in loader.batches(0, int(sys.argv[2])):
    held += int(batch.raw[0, 0, 0, 0, 0])
print(status("VmHWM:") - before, loader.memory_bytes / 2**20, loader.cache.decoded)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def make_sparse(path: Path, shape: tuple[int, int, int]) -> str:
    """A part is written, as noise; the rest are chunks that do not exist."""
    noise = np.random.default_rng(0).integers(0, 255, (shape[0], 256, 256), np.uint8)
    with h5py.File(path, "w") as file:
        for name in ("raw", "labels"):
            array = file.create_dataset(
                name, shape, "u1", chunks=(64, 64, 64), compression="gzip", compression_opts=1
            )
            array[:, :256, :256] = noise
            array[:, -256:, -256:] = noise
    return str(path)


def peak(path: str, steps: int) -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", LOAD, path, str(steps)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, stated, decoded = map(float, done.stdout.split())
    assert decoded > 100
    return grown, stated


@pytest.mark.slow
def test_peak_memory_is_the_same_for_2_and_16_gigabytes(tmp_path: Path) -> None:
    small, _ = peak(make_sparse(tmp_path / "small.h5", (512, 2048, 2048)), 300)  # 2 GiB
    large, stated = peak(make_sparse(tmp_path / "large.h5", (512, 4096, 8192)), 300)  # 16 GiB
    assert abs(large - small) < 12
    # Beside what is stated: what the intensity is measured on, a chunk for each thread, freed memory not yet reused.
    assert large < stated + 64
    print(f"peak resident memory beyond the imports in MiB: {small:.1f} and {large:.1f}, stated {stated:.1f}")


@pytest.mark.long
def test_peak_memory_stays_near_what_is_stated(tmp_path: Path) -> None:
    grown, stated = peak(make_sparse(tmp_path / "v.h5", (256, 512, 1024)), 60)
    assert grown < stated + 64
