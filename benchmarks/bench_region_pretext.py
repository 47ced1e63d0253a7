# SPDX-License-Identifier: BSD-3-Clause
"""The loss of region contrast pretraining, beside the same in plain PyTorch: it runs by itself, as it is no op.

    OMP_NUM_THREADS=1 python benchmarks/bench_region_pretext.py

Two views, each of an embedding (B, 32, *S), assignment logits (B, 16, *S) and a grey image (B, 1, *S), to the loss and
the gradients of embedding and logits; what the network does is not in it. The plain one pools by einsum and holds all
pairs in one matrix. Gradients of 64 MiB come fresh from the system every time, page by page, unless the allocator is
told to keep them; for what the losses themselves take:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 OMP_NUM_THREADS=1 \\
        python benchmarks/bench_region_pretext.py --no-memory
"""

import region_pretext_plain as plain
import torch
from harness import Case, Op, main

from fastseg.nn import RegionPretext, RegionView

REGIONS, DIMENSIONS = 16, 32

# shape: (B, *S)
CASES = [
    Case("volume", (1, 32, 128, 128), torch.float32),
    Case("volume", (1, 32, 128, 128), torch.bfloat16),
    Case("slices", (4, 256, 256), torch.float32),
]
CONTESTANTS = ["fused", "reference", "plain"]


def make_inputs(case, device):
    torch.manual_seed(0)
    batch, *spatial = case.shape
    inputs = []
    for _ in range(2):
        for channels in (REGIONS, DIMENSIONS):
            tensor = torch.randn(batch, channels, *spatial, device=device, dtype=case.dtype)
            inputs.append(tensor.requires_grad_())
        inputs.append(torch.rand(batch, 1, *spatial, device=device))
    return tuple(inputs)


def make(contestant, case):
    if contestant == "plain":
        return lambda *t: plain.loss([[v.float() for v in t[:3]], [v.float() for v in t[3:]]])
    criterion = RegionPretext(impl=contestant, least_share=0.0)

    def function(*t):
        views = (RegionView(regions, embedding, grey) for regions, embedding, grey in (t[:3], t[3:]))
        return criterion(*views).loss

    return function


def expected(case, inputs):
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    loss = plain.loss([exact[:3], exact[3:]])
    return [loss.detach(), *torch.autograd.grad(loss, [t for t in exact if t.requires_grad])]


def bytes_moved(case, inputs):
    """Read forward; read again, and gradients of logits and embedding written, backward."""
    read = sum(tensor.nbytes for tensor in inputs)
    return read, read + sum(tensor.nbytes for tensor in inputs if tensor.requires_grad)


if __name__ == "__main__":
    main([Op("region_pretext", CASES, CONTESTANTS, make, make_inputs, expected, bytes_moved)])
