# SPDX-License-Identifier: BSD-3-Clause
"""The states of all global random generators of a process, in a form that a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """States of torch on the CPU and on ``device``, of numpy and of Python."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - what a method or a library may draw from
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (name, keys.tolist(), *rest),
        "python": random.getstate(),
    }


def restore_random(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])


def seed_random(*numbers: int) -> None:
    """Seed all of them from a few numbers, for a process that has no state to go on with."""
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(numbers).generate_state(3, np.uint32)
    torch.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))  # noqa: NPY002
    random.seed(int(python_seed))
