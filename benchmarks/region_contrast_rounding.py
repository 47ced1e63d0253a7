# SPDX-License-Identifier: BSD-3-Clause
"""What rounding of the rows does to region_contrast on a GPU: the choices of kernels/triton, worked out in float64.

    python benchmarks/region_contrast_rounding.py

Errors of the loss and, relative to the largest value, of the gradient, against float64 on the same rows. Everything but
the rounding under test is exact, so no GPU is needed.
"""

import torch
from torch import Tensor

ROWS, SIZE = 2048, 128


def to_tf32(values: Tensor) -> Tensor:
    """float32 with 10 bits behind the point, rounded to nearest as cvt.rna does."""
    bits = values.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


def tf32(a: Tensor, b: Tensor) -> Tensor:
    return to_tf32(a) @ to_tf32(b).T


def tf32x3(a: Tensor, b: Tensor) -> Tensor:
    (high_a, low_a), (high_b, low_b) = ((to_tf32(x), to_tf32(x - to_tf32(x))) for x in (a, b))
    return high_a @ high_b.T + high_a @ low_b.T + low_a @ high_b.T


def exact(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.T


def normalised(rows: Tensor, rounded: bool) -> Tensor:
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows.bfloat16().double() if rounded else rows


def loss_and_gradient(rows, ids, temperature, products, rounded):
    """The loss and its gradient by the closed form, all products by `products`, coefficients exact."""
    n = normalised(rows, rounded)
    z = products(n, n) / temperature
    z.fill_diagonal_(-torch.inf)
    positive = (ids[:, None] == ids[None]).fill_diagonal_(False)
    count = positive.sum(1, keepdim=True)
    log_sum = z.logsumexp(1, keepdim=True)
    loss = (log_sum - torch.where(positive, z, 0).sum(1, keepdim=True) / count).mean()
    c = ((z - log_sum).exp() - positive / count) / (len(rows) * temperature)
    total = products(c + c.T, n.T.contiguous())
    total = total - (total * n).sum(1, keepdim=True) * n
    return loss, total / rows.norm(dim=1, keepdim=True)


def main() -> None:
    torch.manual_seed(0)
    centres = torch.randn(ROWS // 4, SIZE).repeat(4, 1)
    ids = torch.arange(ROWS) % (ROWS // 4)
    rows = (centres + 0.5 * torch.randn(ROWS, SIZE)).bfloat16().double()
    wide = (centres + 0.5 * torch.randn(ROWS, SIZE)).double()
    print(f"{'rows':34} {'T':>5} {'loss':>9} {'gradient':>9}")
    for temperature in (0.1, 0.05):
        for name, values, products, rounded in (
            ("bfloat16 as they are", rows, exact, False),
            ("bfloat16, normalised and rounded", rows, exact, True),
            ("float32, one TF32 product", wide, tf32, False),
            ("float32, three TF32 products", wide, tf32x3, False),
        ):
            truth = loss_and_gradient(values, ids, temperature, exact, False)
            found = loss_and_gradient(values, ids, temperature, products, rounded)
            loss = abs(found[0] / truth[0] - 1).item()
            gradient = ((found[1] - truth[1]).abs().max() / truth[1].abs().max()).item()
            print(f"{name:34} {temperature:5} {loss:9.1e} {gradient:9.1e}")


if __name__ == "__main__":
    main()
