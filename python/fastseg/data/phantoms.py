# SPDX-License-Identifier: BSD-3-Clause
"""A synthetic stack of neuronal somata as a two-photon microscope would see them, with its truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastseg.data.outputs import ArraySpec, open_output


class Phantom(NamedTuple):
    """raw (z, y, x) uint16, instances (z, y, x) uint16 ids from 1, voxel_size in micrometres (z, y, x)."""

    raw: np.ndarray
    instances: np.ndarray
    voxel_size: tuple[float, float, float]


def make_phantom(
    shape: tuple[int, int, int] = (64, 128, 128),
    *,
    seed: int = 0,
    voxel_size: tuple[float, float, float] = (2.0, 1.0, 1.0),
    somata_per_volume: float = 5e-5,
    radius: tuple[float, float] = (5.0, 9.0),
    brightness: tuple[float, float] = (0.4, 1.0),
    point_spread: tuple[float, float, float] = (2.5, 0.8, 0.8),
    background: float = 0.25,
    photons: float = 60.0,
) -> Phantom:
    """Somata of varied size, shape and brightness over an uneven background, blurred and noisy.

    radius, point_spread (standard deviations) in micrometres; somata_per_volume per cubic micrometre;
    brightness and background relative to the brightest soma; photons at that brightness (shot noise).
    Thin bright processes, which are not foreground, keep a threshold from solving it. Same seed, same phantom.
    """
    rng = np.random.default_rng(seed)
    size = np.asarray(shape) * voxel_size
    instances = np.zeros(shape, np.uint16)
    light = np.zeros(shape, np.float32)
    centres: list[np.ndarray] = []
    reach: list[float] = []
    wanted = max(1, round(somata_per_volume * float(np.prod(size))))
    for _ in range(50 * wanted):  # rejection sampling: a crowded volume ends with fewer somata
        if len(centres) == wanted:
            break
        radii = rng.uniform(*radius) * rng.uniform(0.75, 1.25, 3)
        centre = rng.uniform(0, 1, 3) * size
        if all(
            np.linalg.norm(centre - c) > 0.9 * (r + radii.max()) for c, r in zip(centres, reach, strict=True)
        ):
            centres.append(centre)
            reach.append(float(radii.max()))
            _add_soma(
                instances, light, centre, radii, len(centres), rng.uniform(*brightness), voxel_size, rng
            )
    for _ in range(2 * wanted):
        _add_process(light, size, rng.uniform(*brightness), voxel_size, rng)

    spread = np.asarray(point_spread) / voxel_size
    image = gaussian_blur(light, spread)
    image += background * _uneven(shape, size, voxel_size, rng)
    shot = rng.poisson(np.maximum(image, 0) * photons) / photons
    read_noise = rng.normal(0, 0.02, shape)
    raw = np.clip(np.round(200 + 3000 * (shot + read_noise)), 0, 65535).astype(np.uint16)
    return Phantom(raw, instances, voxel_size)


def write_phantoms(path: str, shape: tuple[int, int, int], seeds: Mapping[str, int]) -> None:
    """A phantom of each seed in one file, .h5 or .zarr: ``<name>/raw`` and ``<name>/somata``, the instances."""
    arrays, specs = {}, {}
    for name, seed in seeds.items():
        phantom = make_phantom(shape, seed=seed)
        for dataset, array in (("raw", phantom.raw), ("somata", phantom.instances)):
            arrays[f"{name}/{dataset}"] = array
            chunks = (16, 64, 64)
            specs[f"{name}/{dataset}"] = ArraySpec(shape, array.dtype, chunks, voxel_size=phantom.voxel_size)
    with open_output(path, specs) as output:
        output.write((0, 0, 0), shape, arrays)


def gaussian_blur(volume: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Blur with a Gaussian of the given deviation in voxels per axis, mirrored at the border (float32)."""
    pad = [int(np.ceil(4 * d)) for d in deviation]
    padded = np.pad(volume, [(p, p) for p in pad], mode="symmetric")
    spectrum = np.fft.rfftn(padded)
    for axis, (n, d) in enumerate(zip(padded.shape, deviation, strict=True)):
        frequency = np.fft.rfftfreq(n) if axis == volume.ndim - 1 else np.fft.fftfreq(n)
        gain = np.exp(-2 * (np.pi * d * frequency) ** 2)
        spectrum *= gain.reshape([-1 if a == axis else 1 for a in range(volume.ndim)])
    blurred = np.fft.irfftn(spectrum, padded.shape, axes=range(volume.ndim))
    inner = tuple(slice(p, p + n) for p, n in zip(pad, volume.shape, strict=True))
    return blurred[inner].astype(np.float32)


def _add_soma(
    instances: np.ndarray,
    light: np.ndarray,
    centre: np.ndarray,
    radii: np.ndarray,
    number: int,
    brightness: float,
    voxel_size: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    """A turned ellipsoid with a wavy surface and a darker nucleus, in micrometres around ``centre``."""
    low = np.maximum(np.floor((centre - 1.4 * radii.max()) / voxel_size).astype(int), 0)
    high = np.minimum(np.ceil((centre + 1.4 * radii.max()) / voxel_size).astype(int) + 1, light.shape)
    if (low >= high).any():
        return
    axes = [(np.arange(a, b) + 0.5) * v - c for a, b, v, c in zip(low, high, voxel_size, centre, strict=True)]
    offset = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    along = offset @ turn / radii
    distance = np.linalg.norm(along, axis=-1)
    direction = along / np.maximum(distance, 1e-6)[..., None]
    wave = sum(0.08 * np.sin(direction @ rng.normal(0, 3, 3) + rng.uniform(0, 6.3)) for _ in range(3))
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    inside = (distance < 1 + wave) & (instances[box] == 0)
    instances[box][inside] = number
    light[box][inside] = brightness * np.where(distance[inside] < 0.5, 0.75, 1.0)


def _add_process(
    light: np.ndarray,
    size: np.ndarray,
    brightness: float,
    voxel_size: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    """A thin, gently curved neurite of one voxel's width."""
    position = rng.uniform(0, 1, 3) * size
    heading = rng.normal(size=3)
    for _ in range(int(rng.integers(60, 160))):
        heading += rng.normal(0, 0.15, 3)
        heading /= np.linalg.norm(heading)
        position = position + heading
        voxel = tuple((position / voxel_size).astype(int))
        if all(0 <= v < n for v, n in zip(voxel, light.shape, strict=True)):
            light[voxel] = max(light[voxel], brightness)


def _uneven(
    shape: tuple[int, int, int],
    size: np.ndarray,
    voxel_size: tuple[float, float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """A smooth positive field of mean 1: a slope and hills a quarter of the volume wide."""
    hills = gaussian_blur(rng.normal(size=shape).astype(np.float32), size / 8 / voxel_size)
    hills /= max(float(hills.std()), 1e-9)
    slope = np.linspace(-0.5, 0.5, shape[2], dtype=np.float32) * rng.uniform(-1, 1)
    field = np.maximum(1 + 0.3 * hills + slope, 0.1)
    return field / field.mean()
