# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast with a bank, beside what one writes in PyTorch today: features against a memory bank, PatchNCE of
many images at once (groups), and raw patches by their squared difference (neg_mse).

    python benchmarks/bench_region_contrast_bank.py --threads 1 --case groups --save table.md

`eager` holds the matrix of similarities, `compile` is the same under torch.compile. `tiles` goes through it in tiles
with PyTorch's own operations and recomputes them backward, as Inf-CL (Cheng et al. 2024, arXiv 2410.17243) is
described.
"""

import torch
import torch.nn.functional as F
from harness import TOLERANCE, Case, Op, main

import fastseg

TEMPERATURE = {"bank": 0.1, "groups": 0.07, "neg_mse": 1.0}
TILE = 1024
PLACES = 256  # of an image, in the cases of groups


def case(rows, candidates, size, dtype, variant):
    shape = (rows, candidates, size)
    return Case(" x ".join(map(str, shape)), shape, dtype, variant, huge=rows * candidates > 2**26)


CASES = [
    *(case(256, 16384, 128, dtype, "bank") for dtype in (torch.float32, torch.bfloat16)),
    *(case(4096, n, 128, torch.bfloat16, "bank") for n in (8192, 65536)),
    *(case(2048, 2048, size, torch.float32, "groups") for size in (64, 256)),
    *(case(n, n, 256, torch.bfloat16, "groups") for n in (2048, 16384)),
    *(case(10, 90, 7500, dtype, "neg_mse") for dtype in (torch.float32, torch.bfloat16)),
    case(64, 1024, 7500, torch.float32, "neg_mse"),
]
CONTESTANTS = ("fused", "eager", "compile", "tiles")


def make_inputs(case, device):
    """Anchors, of which alone the gradient is asked for, the bank, ids and groups of both. Anchor i has the positive i
    of the bank and, without groups, those that are a multiple of M further on."""
    torch.manual_seed(0)
    rows, candidates, size = case.shape
    anchors = torch.randn(rows, size, device=device)
    of_rows, of_bank = (torch.arange(n, device=device) for n in (rows, candidates))
    bank = anchors[of_bank % rows] + torch.randn(candidates, size, device=device)
    groups = (of_rows // PLACES, of_bank // PLACES) if case.variant == "groups" else ()
    return anchors.to(case.dtype).requires_grad_(), bank.to(case.dtype), of_rows, of_bank % rows, *groups


def similarities(anchors, bank, similarity, temperature):
    """s / T in float32 or float64; neg_mse without the cube of differences."""
    if similarity == "cosine":
        z = F.normalize(anchors, dim=1) @ F.normalize(bank, dim=1).T
        return (z if z.dtype == torch.float64 else z.float()) / temperature
    if anchors.dtype != torch.float64:
        anchors, bank = anchors.float(), bank.float()
    squares = anchors.square().sum(1)[:, None] + bank.square().sum(1)[None]
    return (2 * anchors @ bank.T - squares) / (anchors.shape[1] * temperature)


def pairs(ids, bank_ids, groups=None, bank_groups=None):
    """Which are positives, and which are in the denominator: None for all."""
    positive = ids[:, None] == bank_ids[None]
    return positive, None if groups is None else positive | (groups[:, None] == bank_groups[None])


def masked(z, taking_part):
    return z if taking_part is None else z.masked_fill(~taking_part, -torch.inf)


def dense(options, anchors, bank, *labels):
    z = similarities(anchors, bank, *options)
    positive, taking_part = pairs(*labels)
    log_sum = masked(z, taking_part).logsumexp(1)
    return (log_sum - (z * positive).sum(1) / positive.sum(1)).mean()


class Tiled(torch.autograd.Function):
    @staticmethod
    def tiles(anchors, bank, *labels):
        for i in range(0, len(anchors), TILE):
            rows = slice(i, i + TILE)
            for j in range(0, len(bank), TILE):
                columns = slice(j, j + TILE)
                of_tile = [part[columns if k % 2 else rows] for k, part in enumerate(labels)]
                yield rows, anchors[rows], bank[columns], *pairs(*of_tile)

    @staticmethod
    def forward(ctx, options, *tensors):
        ctx.options = options
        real = torch.promote_types(tensors[0].dtype, torch.float32)
        log_sum, total, count = tensors[0].new_zeros(3, len(tensors[0]), dtype=real)
        log_sum -= torch.inf
        for rows, anchors, bank, positive, taking_part in Tiled.tiles(*tensors):
            z = similarities(anchors, bank, *ctx.options)
            log_sum[rows] = torch.logaddexp(log_sum[rows], masked(z, taking_part).logsumexp(1))
            total[rows] += (z * positive).sum(1)
            count[rows] += positive.sum(1)
        ctx.save_for_backward(*tensors, log_sum, count)
        return (log_sum - total / count).mean()

    @staticmethod
    def backward(ctx, grad):
        *tensors, log_sum, count = ctx.saved_tensors
        gradient = torch.zeros_like(tensors[0], dtype=log_sum.dtype)
        for rows, anchors, bank, positive, taking_part in Tiled.tiles(*tensors):
            with torch.enable_grad():
                leaf = anchors.detach().requires_grad_()
                z = similarities(leaf, bank, *ctx.options)
            share = (masked(z.detach(), taking_part) - log_sum[rows, None]).exp_()
            share = (share - positive / count[rows, None]) * (grad / len(log_sum))
            gradient[rows] += torch.autograd.grad(z, leaf, share)[0]
        return None, gradient.to(tensors[0].dtype), *[None] * (len(tensors) - 1)


def options_of(case):
    return "neg_mse" if case.variant == "neg_mse" else "cosine", TEMPERATURE[case.variant]


def make(contestant, case):
    similarity, temperature = options = options_of(case)
    if contestant == "fused":

        def fused(anchors, bank, ids, bank_ids, groups=None, bank_groups=None):
            return fastseg.region_contrast(
                anchors,
                bank,
                anchor_ids=ids,
                bank_ids=bank_ids,
                anchor_groups=groups,
                bank_groups=bank_groups,
                temperature=temperature,
                similarity=similarity,
                impl="fused",
            )

        return fused
    function = Tiled.apply if contestant == "tiles" else dense
    if contestant == "compile":
        function = torch.compile(dense, fullgraph=True)
    return lambda *inputs: function(options, *inputs)


def expected(case, inputs):
    """In float64, in tiles, which need no memory for the matrix."""
    exact = inputs[0].detach().double().requires_grad_()
    loss = Tiled.apply(options_of(case), exact, inputs[1].double(), *inputs[2:])
    (gradient,) = torch.autograd.grad(loss, exact)
    return [loss.detach(), gradient]


def bytes_moved(case, inputs):
    """Read forward; read, and the gradient written, backward."""
    read = sum(tensor.nbytes for tensor in inputs)
    return read, read + inputs[0].nbytes


def flops(case):
    """The similarities; those again and the gradient of the anchors. Of groups, only of pairs that have one."""
    rows, candidates, size = case.shape
    products = 2 * rows * (PLACES if case.variant == "groups" else candidates) * size
    return products, 2 * products


# Rounding normalised rows to bfloat16, as eager code does, costs 1.3 % of the largest gradient at T = 0.07.
OP = Op(
    "region_contrast_bank",
    CASES,
    CONTESTANTS,
    make,
    make_inputs,
    expected,
    bytes_moved,
    TOLERANCE | {torch.bfloat16: 3e-2},
    flops,
)

if __name__ == "__main__":
    main([OP])
