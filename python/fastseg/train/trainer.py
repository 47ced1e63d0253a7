# SPDX-License-Identifier: BSD-3-Clause
"""The training loop. A method says what a batch and a loss are; this says when, how fast and how safely."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastseg.errors import InputError
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import TrainConfig
from fastseg.train.log import Progress, TrainingLog

# Losses stay on the device for so many steps before they are read back together.
_STEPS_BETWEEN_READBACKS = 10


class Task(Protocol):
    """What a method gives to ``fit``."""

    network: nn.Module

    def batches(self, first: int, last: int) -> Iterator[Any]:
        """The batches of steps first .. last - 1; must depend on the step alone, not on what was drawn before."""

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and scalars to log. Runs under autocast."""


def fit(
    task: Task,
    settings: TrainConfig,
    run: RunFolder,
    device: torch.device,
    *,
    resume: bool = False,
    extra: dict[str, Any] | None = None,
    quiet: bool = False,
) -> None:
    """Train ``task.network`` for ``settings.steps`` steps with AdamW on a one-cycle schedule.

    ``extra`` is kept in every checkpoint. With ``resume`` the newest checkpoint's network, optimizer, schedule
    and random states are restored, so that the steps after it give the same losses as without the break.
    """
    network = task.network
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    # OneCycleLR divides by zero where the warm-up is a single step, as in a trial run of five steps.
    steps = max(settings.steps, 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps, pct_start=max(settings.warmup, 1.5 / steps)
    )
    first = 0
    if resume and run.checkpoints():
        state = run.load(device)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        _restore_random(state["random"])
        first = state["step"]

    def checkpoint(step: int) -> None:
        run.save(
            step,
            {
                "step": step,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "random": _random_states(),
                **(extra or {}),
            },
        )

    log = TrainingLog(run, first)
    progress = Progress(first, settings.steps, settings.batch, quiet)
    precision = autocast_dtype(settings.precision, device)
    waiting: list[tuple[int, float, dict[str, Tensor]]] = []

    def flush() -> None:
        rows = [
            {"step": step, "learning_rate": rate, **{k: float(v) for k, v in scalars.items()}}
            for step, rate, scalars in waiting
        ]
        waiting.clear()
        bad = next((row for row in rows if not math.isfinite(row["loss"])), None)
        log.write([row for row in rows if bad is None or row["step"] < bad["step"]])
        if bad is not None:
            raise InputError(
                f"the loss became {bad['loss']} at step {bad['step']}: lower train.learning_rate "
                f"({settings.learning_rate}) or set train.precision: fp32; earlier checkpoints are kept"
            )
        if rows:
            progress.show(rows[-1]["step"] + 1, rows[-1]["loss"])

    network.train()
    try:
        for step, batch in enumerate(task.batches(first, settings.steps), first):
            with torch.autocast(device.type, precision, enabled=precision is not None):
                loss, scalars = task.loss(batch, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.clip_norm is not None:
                norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                scalars = {**scalars, "gradient_norm": norm.detach()}
            rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            waiting.append((step, rate, {"loss": loss.detach(), **scalars}))
            done = step + 1
            if len(waiting) == _STEPS_BETWEEN_READBACKS or done == settings.steps:
                flush()
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                flush()
                checkpoint(done)
    finally:
        progress.close()
        log.close()


def choose_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device if there is one, otherwise the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"train.device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for float32; ``auto`` takes bfloat16 where the device multiplies in it natively."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = device.type == "cpu" and (
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def _random_states() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
