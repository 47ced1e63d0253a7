# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast, as SupCon without a bank, beside what one writes in PyTorch today.

    python benchmarks/bench_region_contrast.py --threads 2 --case "8192 x 128 float32" --save table.md

`eager` is the loss over the whole matrix of similarities, `compile` the same under torch.compile. `tiles` goes through
the matrix in tiles with PyTorch's own operations and recomputes them backward, as Inf-CL (Cheng et al. 2024,
arXiv 2410.17243) is described: the log-sum-exp tile by tile, nothing of the matrix kept.
"""

import torch
import torch.nn.functional as F
from harness import Case, Op, main

import fastseg

TEMPERATURE = 0.1
TILE = 1024
MOST_DENSE = 32768  # rows; the matrix and its copies take 4 N^2 bytes each
ROWS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def case(rows, size, dtype):
    return Case(f"{rows} x {size}", (rows, size), dtype, huge=rows > 8192)  # minutes on a CPU


CASES = [
    *(case(rows, 128, torch.float32) for rows in ROWS),
    *(case(rows, 128, torch.bfloat16) for rows in ROWS),
    *(case(rows, size, torch.bfloat16) for size in (64, 256) for rows in (512, 4096, 16384, 65536)),
]
CONTESTANTS = ("fused", "eager", "compile", "tiles")


def make_inputs(case, device):
    """Features, and ids of which four rows have the same."""
    torch.manual_seed(0)
    rows = case.shape[0]
    features = torch.randn(case.shape, device=device).to(case.dtype).requires_grad_()
    return features, torch.arange(rows, device=device) % (rows // 4)


def dense(features, ids):
    features = F.normalize(features, dim=1)
    z = features @ features.T / TEMPERATURE
    own = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    positive = (ids[:, None] == ids[None]) & ~own
    log_share = z - torch.logsumexp(z.masked_fill(own, -torch.inf), 1, keepdim=True)
    return -((log_share * positive).sum(1) / positive.sum(1)).mean()


class Tiled(torch.autograd.Function):
    """The loss of normalised rows."""

    @staticmethod
    def tile(rows, ids, i, j):
        z = rows[i : i + TILE] @ rows[j : j + TILE].T
        z = (z if z.dtype == torch.float64 else z.float()) / TEMPERATURE
        same = ids[i : i + TILE, None] == ids[None, j : j + TILE]
        if i == j:
            z.fill_diagonal_(-torch.inf)
            same.fill_diagonal_(False)
        return z, same

    @staticmethod
    def forward(ctx, rows, ids):
        starts = range(0, len(ids), TILE)
        log_sums, losses, counts = [], [], []
        for i in starts:
            log_sum, total, count = None, 0, 0
            for j in starts:
                z, same = Tiled.tile(rows, ids, i, j)
                part = z.logsumexp(1)
                log_sum = part if log_sum is None else torch.logaddexp(log_sum, part)
                total, count = total + z.masked_fill(~same, 0).sum(1), count + same.sum(1)
            losses.append(log_sum - total / count)
            log_sums.append(log_sum)
            counts.append(count)
        ctx.save_for_backward(rows, ids, torch.cat(log_sums), torch.cat(counts))
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx, grad):
        rows, ids, log_sum, count = ctx.saved_tensors
        gradient = torch.zeros_like(rows, dtype=log_sum.dtype)
        starts = range(0, len(ids), TILE)
        for i in starts:
            for j in starts:
                z, same = Tiled.tile(rows, ids, i, j)
                g = (z - log_sum[i : i + TILE, None]).exp_() - same / count[i : i + TILE, None]
                g = (g * (grad / (TEMPERATURE * len(ids)))).to(rows.dtype)
                gradient[i : i + TILE] += g @ rows[j : j + TILE]
                gradient[j : j + TILE] += g.T @ rows[i : i + TILE]
        return gradient.to(rows.dtype), None


def make(contestant, case):
    if contestant in ("eager", "compile") and case.shape[0] > MOST_DENSE:
        raise ImportError(f"the matrix of {case.shape[0]} rows is left out")
    if contestant == "compile" and case.shape[1] != 128:
        raise ImportError("compiled for 128 columns only")
    if contestant == "fused":
        return lambda features, ids: fastseg.region_contrast(
            features, anchor_ids=ids, temperature=TEMPERATURE, impl="fused"
        )
    if contestant == "tiles":
        return lambda features, ids: Tiled.apply(F.normalize(features, dim=1), ids)
    return torch.compile(dense, fullgraph=True) if contestant == "compile" else dense


def expected(case, inputs):
    """In float64, in tiles where the matrix would be large."""
    features, ids = inputs
    exact = features.detach().double().requires_grad_()
    loss = dense(exact, ids) if case.shape[0] <= 4096 else Tiled.apply(F.normalize(exact, dim=1), ids)
    (gradient,) = torch.autograd.grad(loss, exact)
    return [loss.detach(), gradient]


def bytes_moved(case, inputs):
    """Read forward; read, and written for the gradient, backward. Arithmetic is the floor here, not these."""
    read = sum(tensor.nbytes for tensor in inputs)
    return read, read + inputs[0].nbytes


def flops(case):
    """The similarities; those again and the gradient. That of a bank would be as much once more."""
    rows, size = case.shape
    return 2 * rows * rows * size, 4 * rows * rows * size


OP = Op("region_contrast", CASES, CONTESTANTS, make, make_inputs, expected, bytes_moved, flops=flops)

if __name__ == "__main__":
    main([OP])
