# SPDX-License-Identifier: BSD-3-Clause
"""How the GPU kernels are launched: tiles, warps, stages, blocks, by what `make gpu-tune` measured on an architecture.

A kernel with such choices names them, with their defaults for GPUs that nobody tuned. sm_90.json beside this file holds
what was best on compute capability 9.0: {kernel: {case: {choice: value}}}. To join with

- a Triton kernel: ask choice() in the code that launches it. Whatever is kept for later launches and depends on the
  answer is kept by a function decorated with `remembered`, which forgets while another choice is tried.
- a CUDA kernel: add a line to CHOICES in cuda.py. The build makes tuning.h of it; the docstring there shows its use.

`make gpu-tune` finds out by itself which kernels a benchmark's case asks for, and tries every candidate on it: so there
must be a case of benchmarks/bench_*.py that launches the kernel, and CASES in tools/gpu_tune.py must name it.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from .cuda import tables

Values = dict[str, int | bool]

_forced: dict[tuple[str, str], Values] = {}
_asked: dict[tuple[str, str], list[Values]] | None = (
    None  # by kernel and case: the default first, then the others
)
_caches: list[Callable] = []


def remembered(function: Callable) -> Callable:
    """functools.cache, emptied whenever choices are forced."""
    cached = functools.cache(function)
    _caches.append(cached)
    return cached


def choice(
    kernel: str,
    case: str,
    architecture: int,
    default: Values,
    candidates: Mapping[str, Sequence[int | bool]],
    fits: Callable[[Values], bool] = lambda values: True,
) -> Values:
    """How to launch `kernel` on this architecture (90 for compute capability 9.0).

    `case` is what else decides: "bfloat16 128", say, for rows of 128 values. `candidates` are the values that gpu-tune
    tries for each name in `default`, in all combinations that `fits` accepts. About 2 us: keep what follows from it.
    """
    if _asked is not None:
        names = list(candidates)
        combinations = (
            dict(zip(names, values, strict=True)) for values in itertools.product(*candidates.values())
        )
        found = (default | combination for combination in combinations)
        _asked[kernel, case] = [default, *(values for values in found if values != default and fits(values))]
    values = _forced.get((kernel, case)) or _tables().get(architecture, {}).get(kernel, {}).get(case, {})
    if unknown := values.keys() - default.keys():
        raise ValueError(
            f"kernels/tuning names {sorted(unknown)} for {kernel}, {case}, not in {sorted(default)}: run make gpu-tune"
        )
    return default | values


def force(choices: Mapping[tuple[str, str], Values]) -> None:
    """These choices, by kernel and case, instead of those of the table, from now on: how a candidate is tried."""
    _forced.update(choices)
    _forget()


def release() -> None:
    """The table's again."""
    _forced.clear()
    _forget()


@contextmanager
def record() -> Iterator[dict[tuple[str, str], list[Values]]]:
    """The kernels and cases that are asked for meanwhile, each with its candidates, the default first."""
    global _asked
    _asked = {}
    _forget()
    try:
        yield _asked
    finally:
        _asked = None
        _forget()


def _forget() -> None:
    for cache in _caches:
        cache.cache_clear()


@functools.cache
def _tables() -> dict[int, dict]:
    return tables()
