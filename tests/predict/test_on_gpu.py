# SPDX-License-Identifier: BSD-3-Clause
"""Prediction on a GPU, from file to file, is that of the CPU; `make gpu-check` runs this."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fastseg.data.intensity import Intensity
from fastseg.data.volumes import open_volume
from fastseg.methods.inference import replayed
from fastseg.methods.networks import build_network
from fastseg.predict import Tiling, predict_to_file, probability_of
from tests.methods.test_replayed_prediction import config_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("flips", ["none", "volume"])
@pytest.mark.parametrize("skip_below", [None, 20.0])
def test_the_file_is_that_of_the_cpu(
    tmp_path: Path, dtype: str, flips: str, skip_below: float | None
) -> None:
    """Several columns and layers: planes kept of the layer before, and blocks copied while others are made."""
    array = np.random.default_rng(0).integers(0, 200, (45, 150, 140)).astype(dtype)
    array[:20, :64, :64] = 10
    np.save(tmp_path / "v.npy", array)
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1)
    tiling = Tiling((16, 32, 32), 0.5, 3, block_voxels=1 << 18, skip_below=skip_below)
    found = {}
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        predict = probability_of(network.to(device), Intensity((100.0,), (0.02,)), device=device, flips=flips)
        path = tmp_path / f"{name}.h5"
        predict_to_file(open_volume(tmp_path / "v.npy"), predict, str(path), tiling, classes=2, device=device)
        with h5py.File(path) as file:
            found[name] = file["probability"][:].astype(np.float32)
    np.testing.assert_allclose(found["cuda"], found["cpu"], atol=2e-3)


@pytest.mark.parametrize("flips", ["none", "plane"])
def test_replayed_windows_are_those_without_a_graph(flips: str) -> None:
    config, device = config_of("auto"), torch.device("cuda")
    network = build_network(config, 1).to(device).eval()
    predict = probability_of(network, Intensity((100.0,), (0.02,)), device=device, flips=flips)
    said: list[str] = []
    graphed = replayed(predict, network, 4, config, device, said.append)
    for number, count in enumerate([4] * 6 + [3, 4]):
        raw = torch.full((count, 1, 8, 16, 16), 20 * number, dtype=torch.uint8, device=device)
        raw += torch.arange(16, dtype=torch.uint8, device=device)
        torch.testing.assert_close(graphed(raw), predict(raw), rtol=0, atol=1e-3)
    assert said == []
