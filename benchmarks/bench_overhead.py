# SPDX-License-Identifier: BSD-3-Clause
"""What the host spends on a forward and a backward of tiny inputs, beside what the least one can do in PyTorch costs.

python benchmarks/bench_overhead.py --device cuda --json host_time.json
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import fastseg

WARM_UP, ROUNDS, CALLS = 30, 15, 20


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.sum()

    @staticmethod
    def backward(ctx, grad):
        return grad.expand(1, 1, 8, 8, 8)


@torch.library.custom_op("fastseg_overhead::total", mutates_args=())
def total(values: torch.Tensor) -> torch.Tensor:
    return values.sum()


@total.register_fake
def _(values):
    return values.new_empty(())


total.register_autograd(lambda ctx, grad: grad.expand(1, 1, 8, 8, 8), setup_context=lambda *_, **__: None)


def calls(device):
    """(name, door, function without arguments that ends in one number)."""
    values = torch.rand(1, 1, 8, 8, 8, device=device).requires_grad_()
    target = torch.zeros(1, 1, 8, 8, 8, device=device)
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.int64, device=device)
    assignment = torch.rand(1, 2, 8, 8, 8, device=device)
    rows, ids = torch.rand(8, 16, device=device).requires_grad_(), torch.arange(8, device=device) // 2
    yield "a.sum()", "torch", lambda: values.sum()
    yield "autograd.Function", "Python", lambda: Identity.apply(values)
    yield "an op with register_autograd", "torch.library", lambda: total(values)
    yield (
        "F.binary_cross_entropy_with_logits",
        "torch",
        lambda: F.binary_cross_entropy_with_logits(values, target),
    )
    yield "masked_weighted_bce", "public", lambda: fastseg.masked_weighted_bce(values, target)
    yield "region_pool", "public", lambda: fastseg.region_pool(values, labels, 2).sum()
    yield "soft_region_pool", "public", lambda: fastseg.soft_region_pool(values, assignment).mean.sum()
    yield "patch_entropy", "public", lambda: fastseg.patch_entropy(values, 4, 4).entropy.sum()
    yield "region_contrast", "public", lambda: fastseg.region_contrast(rows, anchor_ids=ids)


def host_seconds(function, wait):
    """Median over rounds of the time until CALLS steps are queued; the GPU is done with them before the next."""
    found = []
    for number in range(WARM_UP + ROUNDS):
        wait()
        begin = time.perf_counter()
        for _ in range(CALLS if number >= WARM_UP else 1):
            function().backward()
        found.append((time.perf_counter() - begin) / CALLS)
    return statistics.median(found[WARM_UP:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="a file for the rows: name, door, what, us")
    options = parser.parse_args()
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    rows = []
    for name, door, function in calls(options.device):
        microseconds = round(1e6 * host_seconds(function, wait), 1)
        rows.append({"name": name, "door": door, "what": "forward + backward", "us": microseconds})
        print(f"{name:40} {door:14} {microseconds:8.1f} us", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
