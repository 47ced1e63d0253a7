# SPDX-License-Identifier: BSD-3-Clause
"""fit with tasks of a few numbers: what a step does, what resuming restores, what validation decides."""

from __future__ import annotations

import copy
import json
import math
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastseg.errors import InputError, Interrupted
from fastseg.train.best import Best, Chooser
from fastseg.train.checkpoint import RunFolder, load_checkpoint
from fastseg.train.config import TrainConfig
from fastseg.train.log import TrainingLog
from fastseg.train.memory import explaining_out_of_memory
from fastseg.train.ranks import Ranks
from fastseg.train.task import Task
from fastseg.train.trainer import fit
from tests.train.test_kill import assert_same
from tests.train.toys import SETTINGS, Adversaries, Toy


def train(task: Task, folder: Path, resume: bool = False, **changes: Any) -> RunFolder:
    run = RunFolder(folder)
    fit(
        task,
        TrainConfig(**(SETTINGS | changes)),
        run,
        Ranks(),
        resume=resume,
        extra={"config": {}},
        quiet=True,
    )
    return run


def rows(run: RunFolder, name: str = "log.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(run.file(name)).open()]


@pytest.mark.parametrize("changes", [{}, {"precision": "fp16"}, {"precision": "bf16", "ema": 0.9}])
def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path: Path, changes: dict) -> None:
    whole = train(Toy(), tmp_path / "whole", **changes)
    with pytest.raises(Interrupted, match=r"SIGUSR1; the checkpoint of step 6 is written"):
        train(Toy(asked_at=5), tmp_path / "cut", **changes)
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(99)
    task = Toy()
    cut = train(task, tmp_path / "cut", resume=True, **changes)
    assert task.seen == list(range(6, 12))
    assert rows(whole) == rows(cut)
    assert_same(whole.load(), cut.load())


def test_log_rows_past_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    log = TrainingLog(run, 0)
    log.write([{"step": step, "loss": 1.0} for step in range(6)])
    for done in (1, 3, 5):
        log.write_validation({"step": done, "dice": 1.0})
    log.close()
    TrainingLog(run, 3).close()
    assert [row["step"] for row in rows(run)] == [0, 1, 2]
    assert [row["step"] for row in rows(run, "validation.jsonl")] == [1, 3]


def test_signals_are_the_caller_s_again_afterwards(tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)]
    train(Toy(), tmp_path)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_fp16_scales_and_keeps_the_scale(tmp_path: Path) -> None:
    class Steep(Toy):
        def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            # Gradients of some hundred thousand do not survive float16 at any scale above 1/4.
            return (self.network(batch) * (3e4 if step < 4 else 1e-6)).float().square().mean(), {}

    task = Steep()
    before = copy.deepcopy(task.network.state_dict())
    run = train(task, tmp_path, precision="fp16", steps=4, clip_norm=None)
    state = run.load()
    assert state["scaler"]["scale"] < 2**12
    assert torch.equal(state["network"]["0.weight"], before["0.weight"]), (
        "a step was taken with inf in its gradient"
    )


def test_fp16_clips_the_gradient_itself_and_not_the_scaled_one(tmp_path: Path) -> None:
    plain, scaled = (
        [row["gradient_norm"] for row in rows(train(Toy(), tmp_path / precision, precision=precision))]
        for precision in ("fp32", "fp16")
    )
    assert scaled[0] is None, "the gradient overflows in the first step, which JSON has no number for"
    assert scaled[1:] == pytest.approx(plain[1:], rel=0.05)


def test_a_step_is_adamw_on_one_cycle_with_clipping_and_an_average(tmp_path: Path) -> None:
    class Plain(Toy):
        def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            return self.network(batch).square().mean() * 50, {}

    def plain() -> Plain:
        torch.manual_seed(2)
        return Plain(network=nn.Linear(4, 1))

    run = train(plain(), tmp_path, ema=0.7, clip_norm=0.1, weight_decay=0.2, checkpoint_every=1)
    task = plain()
    network = task.network
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=12, pct_start=0.2)
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    for n, batch in enumerate(task.batches(0, 12), 1):
        optimizer.zero_grad()
        loss, _ = task.loss(batch, 0)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        assert rows(run)[n - 1] == {
            "step": n - 1,
            "learning_rate": pytest.approx(schedule.get_last_lr()[0]),
            "loss": pytest.approx(loss.item()),
            "gradient_norm": pytest.approx(norm.item()),
        }
        optimizer.step()
        schedule.step()
        decay = min(0.7, (1 + n) / (10 + n))
        for name, p in network.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    state = run.load()
    for name, p in network.named_parameters():
        torch.testing.assert_close(state["network"][name], p.detach())
        torch.testing.assert_close(state["average"]["average"][name], average[name])
    predicting = run.load_for_prediction("newest")["network"]
    assert all(torch.equal(predicting[n], state["average"]["average"][n]) for n in average)


def test_validation_sees_the_average_and_training_goes_on_without_it(tmp_path: Path) -> None:
    seen = []
    task = Toy()
    task.measures = lambda: seen.append(task.network[0].weight.detach().clone()) or {"dice": 0.5}
    run = train(task, tmp_path / "a", ema=0.9, validate_every=6)
    state = run.load()
    assert len(seen) == 2
    assert torch.equal(seen[-1], state["average"]["average"]["0.weight"])
    assert not torch.equal(seen[-1], state["network"]["0.weight"])
    assert rows(run) == rows(train(Toy(), tmp_path / "b", ema=0.9))


def test_the_best_is_kept_and_training_stops_without_gain(tmp_path: Path) -> None:
    values = iter([0.5, 0.6, 0.62, 0.63, 0.61, 0.7])
    task = Toy(measures=lambda: {"dice": next(values), "loss": 1.0})
    run = train(task, tmp_path, validate_every=2, checkpoint_every=50, stop={"patience": 3, "gain": 0.05})
    # 0.6 is the last gain above 0.05; 0.63 is the best all the same.
    assert [row["dice"] for row in rows(run, "validation.jsonl")] == [0.5, 0.6, 0.62, 0.63, 0.61]
    assert [row["step"] for row in rows(run, "validation.jsonl")] == [2, 4, 6, 8, 10]
    assert run.checkpoints()[-1][0] == 10
    best = load_checkpoint(run.best)
    assert (best["step"], best["measures"]["dice"]) == (8, 0.63)
    assert [run.load_for_prediction(which)["step"] for which in ("best", "newest")] == [8, 10]

    again = Toy()
    train(again, tmp_path, resume=True, validate_every=2, stop={"patience": 3, "gain": 0.05})
    assert again.seen == []


def test_a_chooser_decides_in_place_of_validation(tmp_path: Path) -> None:
    class ByDistance(Chooser):
        measure, every = "distance", 3

        def __init__(self) -> None:
            self.values = iter([3.0, 1.0, 2.0, 1.5])

        def measures(self) -> dict[str, float]:
            assert not task.network.training
            return {"distance": next(self.values)}

    dice = iter([0.9, 0.1, 0.2])
    task, run = Toy(measures=lambda: {"dice": next(dice)}), RunFolder(tmp_path)
    settings = TrainConfig(**(SETTINGS | {"validate_every": 4}))
    fit(task, settings, run, Ranks(), chooser=ByDistance(), extra={"config": {}}, quiet=True)
    assert rows(run, "validation.jsonl") == [
        {"step": 3, "distance": 3.0},
        {"step": 4, "dice": 0.9},
        {"step": 6, "distance": 1.0},
        {"step": 8, "dice": 0.1},
        {"step": 9, "distance": 2.0},
        {"step": 12, "dice": 0.2, "distance": 1.5},
    ]
    assert load_checkpoint(run.best)["step"] == 6


def test_best_of_a_measure_of_which_less_is_better(tmp_path: Path) -> None:
    values = iter([3.0, 2.0, 2.5])
    run = train(Toy(measures=lambda: {"loss": next(values)}), tmp_path, validate_every=4, measure="loss")
    assert load_checkpoint(run.best)["step"] == 8
    values = iter([3.0])
    with pytest.raises(InputError, match=r"train\.measure must be one of loss, got 'dice'"):
        train(Toy(measures=lambda: {"loss": next(values)}), tmp_path / "other", validate_every=4)


def test_nan_is_never_best() -> None:
    best = Best(lower=True)
    assert not best.take(math.nan, 1)
    assert best.take(2.0, 2)
    assert not best.take(math.nan, 3)
    assert (best.value, best.step, best.without_gain) == (2.0, 2, 1)


@pytest.mark.parametrize(("lower", "sign"), [(False, 1.0), (True, -1.0)])
def test_a_small_gain_is_best_but_no_reason_to_go_on(lower: bool, sign: float) -> None:
    best = Best(lower=lower, gain=0.1)
    taken = [best.take(sign * value, step) for step, value in enumerate([1.0, 1.05, 1.09, 1.2, 1.2])]
    assert taken == [True, True, True, True, False]
    assert (best.value, best.step, best.without_gain) == (sign * 1.2, 3, 1)
    best.take(sign * 1.29, 5)
    assert (best.step, best.without_gain) == (5, 2)


def test_a_fresh_run_forgets_the_best_of_one_that_left_no_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_best({"step": 7})
    train(Toy(), tmp_path)
    assert not Path(run.best).exists()


def test_two_updates_train_each_their_own_and_a_loss_without_gradient_skips(tmp_path: Path) -> None:
    task = Adversaries()
    run = train(task, tmp_path, steps=3, clip_norm=None)
    hand = Adversaries()
    updates = hand.updates(TrainConfig(**(SETTINGS | {"steps": 3})))
    for step, batch in enumerate(hand.batches(0, 3)):
        for update in updates:
            hand.network.zero_grad()
            loss, _ = update.loss(batch, step)
            if loss.requires_grad:
                loss.backward()
                update.optimizer.step()
            update.schedule.step()
    assert_same(task.network.state_dict(), hand.network.state_dict())
    first = rows(run)[0]
    assert first["loss"] == pytest.approx(first["judge_loss"] + first["maker_loss"])
    assert first["judge_seen"] == 1.0
    assert set(run.load()["updates"]) == {"judge", "maker"}


def test_running_out_of_memory_says_what_to_lower() -> None:
    sizes = {"train.batch": 8, "data.patch": [64, 64, 64], "network.width": 64, "train.precision": "fp32"}
    pattern = (
        r"^out of memory in main memory \(.*\), with train\.batch 8, data\.patch \[64, 64, 64\], network\.width 64, "
        r"train\.precision fp32: lower train\.batch, data\.patch or network\.width, or set train\.precision: bf16$"
    )
    for fail in (lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50)):
        with pytest.raises(InputError, match=pattern), explaining_out_of_memory(Ranks(), sizes):
            fail()
    with (
        pytest.raises(InputError, match=r"asked for 2\.50 GiB\), with .* shared out over 4 processes: lower"),
        explaining_out_of_memory(Ranks(0, 4), sizes),
    ):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total of 4 GiB"
        )
    with pytest.raises(RuntimeError, match="another"), explaining_out_of_memory(Ranks(), sizes):
        raise RuntimeError("another")


def test_compiled_training_is_the_same_within_rounding(tmp_path: Path) -> None:
    class Smooth(Toy):
        def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            return self.network(batch).square().mean(), {}

    def smooth() -> Smooth:
        torch.manual_seed(4)
        return Smooth(network=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)))

    eager = rows(train(smooth(), tmp_path / "eager"))
    task = smooth()
    run = train(task, tmp_path / "compiled", compile=True)
    assert task.network._compiled_call_impl is not None
    for one, two in zip(eager, rows(run), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    smooth().network.load_state_dict(run.load()["network"])
