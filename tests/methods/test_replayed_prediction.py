# SPDX-License-Identifier: BSD-3-Clause
"""Prediction as a CUDA graph, by the stand-in that refuses what a capture refuses: the file that it is without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastseg.data.volumes import open_volume
from fastseg.methods import inference
from fastseg.methods.config import config_type
from fastseg.methods.inference import replayed, segment
from fastseg.methods.networks import build_network
from fastseg.train.config import Config
from fastseg.train.graph import WARM_UP
from fastseg.train.ranks import Ranks
from tests.train.recorded_graphs import RecordedGraphs

SHAPE, WINDOWS = (20, 44, 40), 4 * 5 * 4
CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    stand_in = RecordedGraphs()
    monkeypatch.setattr(inference, "graphs_of", lambda device: stand_in)
    return stand_in


def config_of(graph: str, **predict: Any) -> Config:
    settings = {"overlap": 0.5, "batch": 3, **predict}
    return config_type().model_validate(
        {
            "output": "run",
            "data": {"train": [{"raw": "volume.npy", "labels": "volume.npy"}], "patch": [8, 16, 16]},
            "network": {"width": 2, "pooling": [2]},
            "train": {"graph": graph, "precision": "fp32", "device": "cpu"},
            "predict": settings,
        }
    )


def predicted(folder: Path, graph: str, **settings: Any) -> np.ndarray:
    config = config_of(graph, **settings)
    torch.manual_seed(0)
    network = build_network(config, 1).eval()
    path = folder / f"{graph}.h5"
    segment(open_volume(folder / "volume.npy"), network, config, str(path), Ranks(), quiet=True)
    with h5py.File(path) as file:
        found: np.ndarray = file["probability"][:]
    return found


@pytest.mark.parametrize("settings", [{}, {"flips": "plane"}, {"skip_below": 20}, {"batch": 1}])
def test_the_file_is_that_without_a_graph(
    tmp_path: Path, graphs: RecordedGraphs, settings: dict[str, Any]
) -> None:
    array = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
    array[:, :20, :20] = 10
    np.save(tmp_path / "volume.npy", array)
    with_graph = predicted(tmp_path, "on", **settings)
    assert graphs.captures == 1
    if "skip_below" not in settings:
        full = WINDOWS // settings.get("batch", 3)
        assert graphs.replays == full - WARM_UP  # the last batch is not full
    assert np.array_equal(with_graph, predicted(tmp_path, "off", **settings))
    assert graphs.captures == 1
    assert with_graph.std() > 0


class Doubling(nn.Module):
    """Twice the input, and what a test has it do before."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.before = lambda raw: None

    @torch.inference_mode()
    def forward(self, raw: Tensor) -> Tensor:
        self.before(raw)
        return raw * self.factor


def batches(network: Doubling, sizes: list[int]) -> list[str]:
    """What is said while batches of such sizes are predicted, rightly."""
    said: list[str] = []
    predict = replayed(network, network, 4, config_of("on"), CPU, said.append)
    for number, size in enumerate(sizes):
        raw = torch.full((size, 1, 2, 2, 2), float(number))
        assert torch.equal(predict(raw), 2 * raw)
    return said


def test_what_waits_for_the_device_runs_on_as_it_is(graphs: RecordedGraphs) -> None:
    network = Doubling()
    network.before = lambda raw: raw.sum().item()
    said = batches(network, [4] * 6)
    assert (graphs.captures, len(said)) == (0, 1)
    assert said[0].startswith("windows are not replayed as a CUDA graph (train.graph): the capture failed: ")


def test_out_of_memory_in_a_capture_runs_on(graphs: RecordedGraphs) -> None:
    graphs.memory = 0
    assert batches(Doubling(), [4] * 6)[0].endswith("the capture failed: out of memory")


def test_a_graph_makes_room_for_a_last_batch(graphs: RecordedGraphs) -> None:
    network, short = Doubling(), [True]

    def before(raw: Tensor) -> None:
        if len(raw) == 3 and short:
            short.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    network.before = before
    said = batches(network, [4] * 6 + [3, 4])
    assert (graphs.captures, graphs.replays) == (1, 6 - WARM_UP)
    assert said == ["windows are not replayed as a CUDA graph (train.graph): its memory is needed"]
    network.before = lambda raw: short.append(True) or before(raw)  # and none is left even so
    with pytest.raises(torch.OutOfMemoryError):
        batches(network, [4] * 6 + [3])


def test_a_cpu_has_none_and_says_so_where_asked() -> None:
    network = Doubling()
    assert batches(network, [1, 4, 4]) == [
        "windows are not replayed as a CUDA graph (train.graph): cpu has no CUDA graphs"
    ]
    for graph in ("auto", "off"):
        assert replayed(network, network, 4, config_of(graph), CPU) is network
