# SPDX-License-Identifier: BSD-3-Clause
"""Host time of a call of every op on tiny inputs, through both doors, beside what torch itself costs.

    python benchmarks/bench_overhead.py [--device cuda] [--json FILE]

Tenth percentiles of the thread's own time (on a GPU: medians of the time that passes) over rounds in which the
contestants take turns, so that a busy machine meets all of them alike. The yardstick of an op is a
torch.autograd.Function in Python that takes and saves as many tensors and returns as many results as the op has.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch

import fastseg
from fastseg.ops import doors

ROUNDS, CALLS = 40, 25
YARDSTICKS = {  # the plain Function of each op
    "masked_weighted_bce": "3 in 2 out",
    "region_pool": "2 in 2 out",
    "region_stats": "2 in 7 out",
    "soft_region_pool": "2 in 3 out",
    "patch_entropy": "1 in 2 out",
    "extract_patches": "2 in 1 out",
    "region_contrast": "2 in 4 out",
}


def plain_function(outputs: int) -> Callable[..., tuple[torch.Tensor, ...]]:
    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.save_for_backward(*inputs)
            return tuple(torch.empty((), device=inputs[0].device) for _ in range(outputs))

        @staticmethod
        def backward(ctx, *grads):
            first, *others = ctx.saved_tensors
            return torch.empty_like(first), *(None for _ in others)

    return Plain.apply


@torch.library.custom_op("fastseg_bench::like", mutates_args=())
def like(values: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(values)


like.register_autograd(lambda ctx, grad: torch.empty_like(grad))


def contestants(device: str) -> list[tuple[str, str, Callable[[], torch.Tensor], torch.Tensor]]:
    """Name, door, what gives a tensor with a gradient, and in which tensor."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    logits, features, parts, rows = values(1, 1, 8, 8), values(1, 4, 8, 8), values(1, 3, 8, 8), values(16, 8)
    target, mask = (torch.rand(1, 1, 8, 8, device=device) > 0.5).byte(), torch.ones_like(logits).byte()
    regions = torch.randint(0, 4, (1, 8, 8), device=device)
    ids = torch.arange(16, device=device) // 4
    corners = torch.zeros(1, 2, 2, dtype=torch.int64, device=device)
    soft = target.float()
    inputs = {
        "1 in 1 out": (logits,),
        "2 in 1 out": (features, corners),
        "1 in 2 out": (logits,),
        "3 in 2 out": (logits, target, mask),
        "2 in 2 out": (features, regions),
        "2 in 7 out": (features, regions),
        "2 in 3 out": (features, parts),
        "2 in 4 out": (rows, ids),
    }
    plain = {name: plain_function(int(name.split()[2])) for name in inputs}
    yardsticks: list[tuple[str, Callable[[], torch.Tensor], torch.Tensor]] = [
        ("a.sum()", lambda: logits.sum(), logits),
        ("F.binary_cross_entropy_with_logits", lambda: bce(logits, soft), logits),
        ("torch.library op", lambda: like(logits), logits),
        *(
            (name, lambda name=name, given=given: plain[name](*given)[0], given[0])
            for name, given in inputs.items()
        ),
    ]
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    calls: dict[str, tuple[Callable[[], torch.Tensor], torch.Tensor]] = {
        "masked_weighted_bce": (lambda: fastseg.masked_weighted_bce(logits, target, mask), logits),
        "region_pool": (lambda: fastseg.region_pool(features, regions, 4), features),
        "region_stats": (lambda: fastseg.region_stats(features, regions, 4).mean, features),
        "soft_region_pool": (lambda: fastseg.soft_region_pool(features, parts).mean, features),
        "patch_entropy": (lambda: fastseg.patch_entropy(logits, 4, 4, from_logits=True).entropy, logits),
        "extract_patches": (lambda: fastseg.extract_patches(features, corners, 4), features),
        "region_contrast": (lambda: fastseg.region_contrast(rows, anchor_ids=ids), rows),
    }
    found = [(name, "", call, leaf) for name, call, leaf in yardsticks]
    return found + [(name, door, *call) for name, call in calls.items() for door in ("eager", "library")]


def measure(device: str) -> list[dict[str, object]]:
    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    now, rank = (time.thread_time, 0.1) if device == "cpu" else (time.perf_counter, 0.5)
    found = contestants(device)
    times: dict[tuple[int, str], list[float]] = {}
    for round_ in range(ROUNDS + 3):
        for number, (_, door, call, leaf) in enumerate(found):
            with doors.force_library(door == "library"):
                upstream = torch.ones_like(call())
                for what in ("forward", "forward + backward"):
                    wait()
                    begin = now()
                    for _ in range(CALLS):
                        loss = call()
                        if what != "forward":
                            loss.backward(upstream)
                            leaf.grad = None
                    spent = now() - begin
                    if round_ >= 3:  # the first ones warm up
                        times.setdefault((number, what), []).append(spent / CALLS * 1e6)
    return [
        {
            "name": found[number][0],
            "door": found[number][1],
            "what": what,
            "us": sorted(spent)[int(rank * len(spent))],
        }
        for (number, what), spent in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.device)
    steps = {
        row["name"]: float(row["us"]) for row in rows if row["what"] != "forward" and row["door"] != "library"
    }
    print(
        f"{'us':36}{'door':9}{'forward':>9}{'+ backward':>12}   over a plain autograd.Function, and over F.bce"
    )
    for forward, both in zip(rows[::2], rows[1::2], strict=True):
        line = f"{forward['name']:36}{forward['door']:9}{forward['us']:9.1f}{both['us']:12.1f}"
        if forward["door"]:
            plain = steps[YARDSTICKS[forward["name"]]]
            line += f"{both['us'] / plain:10.2f} of {YARDSTICKS[forward['name']]}"
            line += f"{both['us'] / steps['F.binary_cross_entropy_with_logits']:8.2f}"
        print(line)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
