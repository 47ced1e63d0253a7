# SPDX-License-Identifier: BSD-3-Clause
"""Steps as CUDA graphs, by a stand-in that refuses what a capture refuses: the same numbers, or a line saying why."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastseg.errors import Interrupted
from fastseg.train import graph, stepper, task
from fastseg.train.config import TrainConfig
from fastseg.train.graph import WARM_UP, Graphed
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from fastseg.train.task import Task, Update, adamw_update
from tests.train.recorded_graphs import RecordedGraphs
from tests.train.test_kill import assert_same
from tests.train.test_trainer import rows, train
from tests.train.toys import SETTINGS


class Sample(NamedTuple):
    image: Tensor
    noise: Tensor
    weight: float


class Toy(Task):
    """Regression with batch norm and dropout, on noise that the host draws."""

    eager_because = None

    def __init__(self, asked_at: int | None = None) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.asked_at, self.sizes, self.weight = asked_at, {}, lambda step: 1.0

    def batches(self, first: int, last: int) -> Iterator[Tensor]:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            yield torch.randn(self.sizes.get(step, 6), 4, generator=generator)

    def inputs(self, batch: Tensor, step: int) -> Sample:
        if step == self.asked_at:
            signal.raise_signal(signal.SIGUSR1)
        return Sample(batch, torch.tensor(random.random()), self.weight(step))

    def loss(self, batch: Sample, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.network(batch.image) - batch.image.sum(1, keepdim=True) - batch.noise
        return batch.weight * error.square().mean(), {"noise": batch.noise}


def falling(optimizer: torch.optim.Optimizer, settings: TrainConfig) -> torch.optim.lr_scheduler.LRScheduler:
    for group in optimizer.param_groups:  # as one_cycle has left them
        group |= {"betas": (0.9, 0.999), "lr": 0.01, "initial_lr": 0.01}
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))


class Game(Toy):
    """Two updates a step, one through the other's network, of what is made once for both."""

    def __init__(self, schedule: Callable[..., Any] = falling) -> None:
        self.schedule = schedule
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.ModuleDict({"maker": nn.Linear(4, 4), "judge": nn.Linear(4, 1)})

    def shared(self, batch: Sample, step: int) -> Tensor:
        return self.network["maker"](batch.image)

    def updates(self, settings: TrainConfig) -> list[Update]:
        def judge(made: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            return self.network["judge"](made.detach()).square().mean(), {"seen": made.detach().mean()}

        def maker(made: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            return (self.network["judge"](made) - 1).square().mean(), {}

        updates: list[Update] = []
        for name, loss in {"judge": judge, "maker": maker}.items():
            update = adamw_update(name, self.network[name], loss, settings)
            updates.append(replace(update, schedule=self.schedule(update.optimizer, settings)))
        return updates


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    """A machine whose device captures, with the optimizers of such a device."""
    stand_in = RecordedGraphs()
    monkeypatch.setattr(stepper, "graphs_of", lambda device: stand_in)

    def options(parameters: object, *, capturable: bool = True) -> dict[str, bool]:
        return {"fused": True, "capturable": True} if capturable else {"fused": True}

    monkeypatch.setattr(task, "optimizer_options", options)
    return stand_in


def without_graphs(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    """``run`` on the same device and optimizers, with not a step captured."""
    with monkeypatch.context() as patch:
        patch.setattr(graph, "WARM_UP", 1 << 30)
        return run()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "fp16"},
        {"precision": "bf16", "ema": 0.9, "clip_norm": None},
    ],
)
@pytest.mark.parametrize("kind", [Toy, Game])
def test_replayed_steps_are_those_of_python_to_the_bit(
    tmp_path: Path, graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch, kind: type[Toy], changes: dict
) -> None:
    replayed = train(kind(), tmp_path / "graph", graph="on", **changes)
    assert (graphs.captures, graphs.replays) == (1, 12 - WARM_UP)
    eager = without_graphs(monkeypatch, lambda: train(kind(), tmp_path / "eager", graph="on", **changes))
    assert graphs.captures == 1
    assert rows(replayed) == rows(eager)
    assert len({row["loss"] for row in rows(replayed)}) == 12
    assert_same(replayed.load(), eager.load())
    monkeypatch.undo()  # the usual optimizer on its usual numbers, within rounding
    plain = train(kind(), tmp_path / "plain", graph="off", **changes)
    if changes.get("precision") != "fp16":
        for mine, theirs in zip(rows(replayed), rows(plain), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-2 if changes else 1e-4)


@pytest.mark.parametrize("changes", [{}, {"precision": "fp16"}])
def test_interrupted_and_resumed_is_the_same_to_the_bit(
    tmp_path: Path, graphs: RecordedGraphs, changes: dict
) -> None:
    whole = train(Toy(), tmp_path / "whole", graph="on", **changes)
    with pytest.raises(Interrupted):
        train(Toy(asked_at=5), tmp_path / "cut", graph="on", **changes)
    cut = train(Toy(), tmp_path / "cut", resume=True, graph="on", **changes)
    assert graphs.captures == 3
    assert rows(whole) == rows(cut)
    assert_same(whole.load(), cut.load())


def test_a_run_goes_on_with_a_graph_and_without(tmp_path: Path, graphs: RecordedGraphs) -> None:
    """A checkpoint holds what was computed, not by which kernels."""
    whole = train(Toy(), tmp_path / "whole", graph="on")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "optimizer_options", lambda parameters, **_: {})
        with pytest.raises(Interrupted):
            train(Toy(asked_at=5), tmp_path / "cut", graph="off")
    cut = train(Toy(), tmp_path / "cut", resume=True, graph="on")
    assert graphs.captures == 2
    assert [row["loss"] for row in rows(cut)] == pytest.approx([row["loss"] for row in rows(whole)], rel=1e-4)
    group = cut.load()["updates"]["network"]["optimizer"]["param_groups"][0]
    assert isinstance(group["lr"], float)
    assert group["fused"]


def test_a_batch_of_another_size_runs_as_it_is(
    tmp_path: Path, graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def toy() -> Toy:
        made = Toy()
        made.sizes = {6: 3, 11: 5}
        return made

    replayed = train(toy(), tmp_path / "graph", graph="on")
    assert (graphs.captures, graphs.replays) == (1, 12 - WARM_UP - 2)
    eager = without_graphs(monkeypatch, lambda: train(toy(), tmp_path / "eager", graph="on"))
    assert rows(replayed) == rows(eager)


def test_a_number_that_the_host_changes_is_never_the_old_one(
    tmp_path: Path, graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a ramp of pseudo-labels: eager while it rises, captured before and after it."""

    def toy() -> Toy:
        made = Toy()
        made.weight = lambda step: min(max(step - 6, 0), 4) / 4 + 1
        return made

    replayed = train(toy(), tmp_path / "graph", graph="on", steps=16)
    assert graphs.captures == 2
    eager = without_graphs(monkeypatch, lambda: train(toy(), tmp_path / "eager", graph="on", steps=16))
    assert rows(replayed) == rows(eager)


def test_betas_that_a_schedule_changes_are_not_captured(
    tmp_path: Path, graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several updates optimizers are in the graph, and their kernels take betas from the host."""
    replayed = train(Game(task.one_cycle), tmp_path / "graph", graph="on")
    assert graphs.captures == 0
    eager = without_graphs(monkeypatch, lambda: train(Game(task.one_cycle), tmp_path / "eager", graph="on"))
    assert rows(replayed) == rows(eager)


REFUSED: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "nonzero": lambda x: x.nonzero(),
    "indexing by a mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.detach().numpy(),
    "a tensor of host values": lambda x: torch.tensor([1.0]),
    "python": lambda x: random.random(),
    "a generator": lambda x: torch.rand(1, generator=torch.Generator().manual_seed(1)),
}


def lines_of(made: Toy, settings: dict, steps: int = 8) -> tuple[list[float], list[str]]:
    """The losses of some steps, and what was said."""
    said: list[str] = []
    config = TrainConfig(**(SETTINGS | {"graph": "on", "steps": 12} | settings))
    taken = Stepper(made.updates(config), config, Ranks(), made)
    taken.tell = said.append
    return [float(taken.step(batch, n)["loss"]) for n, batch in enumerate(made.batches(0, steps))], said


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_cannot_be_captured_runs_on_as_it_is(
    graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch, what: str, precision: str
) -> None:
    class Asking(Toy):
        def loss(self, batch: Sample, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            loss, scalars = super().loss(batch, step)
            if graphs.captures == 0:
                REFUSED[what](batch.image)
            return loss, scalars

    torch.manual_seed(5)
    random.seed(5)
    losses, said = lines_of(Asking(), {"precision": precision})
    assert graphs.captures == graphs.replays == 0
    assert len(said) == 1
    assert said[0].startswith("steps are not replayed as a CUDA graph (train.graph): the capture failed: ")
    if what != "python":
        torch.manual_seed(5)
        random.seed(5)
        eager, _ = without_graphs(monkeypatch, lambda: lines_of(Toy(), {"precision": precision}))
        assert losses == eager


def test_out_of_memory_in_a_capture_runs_on(graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.memory = 10
    random.seed(5)
    losses, said = lines_of(Toy(), {})
    assert said == ["steps are not replayed as a CUDA graph (train.graph): the capture failed: out of memory"]
    random.seed(5)
    assert losses == without_graphs(monkeypatch, lambda: lines_of(Toy(), {}))[0]


def test_other_mistakes_of_a_loss_are_not_hidden(graphs: RecordedGraphs) -> None:
    class Wrong(Toy):
        def loss(self, batch: Sample, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > WARM_UP:
                raise KeyError("mistake")
            return super().loss(batch, step)

    with pytest.raises(KeyError, match="mistake"):
        lines_of(Wrong(), {})


def test_why_there_is_no_graph_is_said_once(graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shy(Toy):
        eager_because = "this one looks at the clock"

    class Slow(Game):
        def updates(self, settings: TrainConfig) -> list[Update]:
            updates = super().updates(settings)
            slow = torch.optim.RMSprop(updates[0].parameters, 0.01)
            return [replace(updates[0], optimizer=slow), updates[1]]

    class Plain(Toy):
        eager_because = Task.eager_because

    expected = {Shy: "looks at the clock", Slow: "RMSprop of judge is not fused", Plain: "does not say"}
    for kind, reason in expected.items():
        _, said = lines_of(kind(), {})
        assert len(said) == 1
        assert reason in said[0]
    assert lines_of(Shy(), {"graph": "off"})[1] == []
    monkeypatch.undo()
    assert "cpu has no CUDA graphs" in lines_of(Toy(), {})[1][0]
    assert lines_of(Toy(), {"graph": "auto"})[1] == []
    assert graphs.captures == 0


def test_debugging_wants_every_kernel_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    with torch.autograd.set_detect_anomaly(True):
        assert "detect_anomaly" in str(graph.graphs_of(device))
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert "CUDA_LAUNCH_BLOCKING" in str(graph.graphs_of(device))


def graphed(function: Callable[[Any], Any], kept: list[Tensor]) -> tuple[Graphed, RecordedGraphs, list[str]]:
    stand_in, said = RecordedGraphs(), []
    return Graphed(function, stand_in, kept=lambda: kept, tell=said.append), stand_in, said


def test_weights_that_move_are_captured_anew() -> None:
    weight = nn.Parameter(torch.ones(3))
    work, stand_in, said = graphed(lambda x: x * weight, [weight])
    for _ in range(5):
        assert torch.equal(work(torch.ones(3)), weight.detach())
    old = weight.data
    weight.data = torch.full((3,), 2.0)  # as validation with averaged weights does
    for _ in range(5):
        assert torch.equal(work(torch.ones(3)), torch.full((3,), 2.0))
    assert stand_in.captures == 2
    assert old.data_ptr() != weight.data_ptr()
    assert said == []
    # Unnoticed it would be the old weights' work on CUDA; the stand-in is as strict.
    careless, _, _ = graphed(lambda x: x * weight, [])
    for _ in range(5):
        careless(torch.ones(3))
    weight.data = old
    with pytest.raises(RuntimeError, match="elsewhere"):
        careless(torch.ones(3))


def test_inputs_are_copied_and_constants_captured() -> None:
    work, stand_in, _ = graphed(lambda x: {"sum": x[0] + x[1], "name": x[2]}, [])
    for n in range(6):
        result = work((torch.full((2,), float(n)), torch.ones(2), "a"))
        assert result["sum"].tolist() == [n + 1.0] * 2
        assert result["name"] == "a"
    assert stand_in.replays == 3
    assert work((torch.ones(2), torch.ones(2), "b"))["name"] == "b"


def test_inputs_that_keep_changing_end_it() -> None:
    work, stand_in, said = graphed(lambda x: x + 1, [])
    sizes = [size for size in range(1, 12) for _ in range(WARM_UP + 2)]
    for size in sizes:
        assert torch.equal(work(torch.zeros(size)), torch.ones(size))
    assert stand_in.captures == 8
    assert said == ["its inputs keep changing"]
    never, _, said = graphed(lambda x: x + 1, [])
    for size in itertools.islice(itertools.cycle((1, 2)), 120):
        never(torch.zeros(size))
    assert said == ["its inputs have not been alike for 4 steps on end"]


def test_on_and_off_are_words_in_yaml_too() -> None:
    assert TrainConfig(graph=True).graph == "on"  # type: ignore[arg-type]
    assert TrainConfig(graph=False).graph == "off"  # type: ignore[arg-type]
    assert TrainConfig(graph="auto").graph == "auto"
