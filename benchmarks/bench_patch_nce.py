# SPDX-License-Identifier: BSD-3-Clause
"""PatchNCE, beside the same in plain PyTorch.

    OMP_NUM_THREADS=1 python benchmarks/bench_patch_nce.py --threads 1

Queries and keys (B, P, D) of B images, to the loss and the gradient of the queries; 256 places and dimensions are those
of CUT, which does this for five layers in a step. ``eager`` holds the matrix of similarities of each image,
``compile`` is the same under torch.compile, ``grouped`` gives all images to the op at once, as groups.
"""

import torch
from harness import TOLERANCE, Case, Op, main
from torch.nn import functional as F

import fastseg
from fastseg.nn import PatchNCE

TEMPERATURE = 0.07

# shape: (B, P, D)
CASES = [
    Case("image", (1, 256, 256), torch.float32),
    Case("images", (8, 256, 256), torch.float32),
    Case("places", (1, 4096, 256), torch.float32),
]
CONTESTANTS = ["fused", "reference", "eager", "compile", "grouped"]


def eager(queries, keys):
    cosine = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).mT / TEMPERATURE
    right = torch.arange(queries.shape[1], device=queries.device).expand(len(queries), -1)
    return F.cross_entropy(cosine.flatten(0, 1), right.flatten())


def grouped(queries, keys):
    images, places, _ = queries.shape
    ids = torch.arange(images * places, device=queries.device)
    options = {"anchor_ids": ids, "bank_ids": ids, "temperature": TEMPERATURE}
    groups = {"anchor_groups": ids // places, "bank_groups": ids // places}
    return fastseg.region_contrast(queries.flatten(0, 1), keys.flatten(0, 1), **options, **groups)


def make_inputs(case, device):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, *case.shape, device=device, dtype=case.dtype)
    return queries.requires_grad_(), queries.detach() + keys


def make(contestant, case):
    if contestant == "compile":
        return torch.compile(eager, fullgraph=True)
    own = {"eager": eager, "grouped": grouped}
    return own.get(contestant) or PatchNCE(temperature=TEMPERATURE, impl=contestant)


def expected(case, inputs):
    queries = inputs[0].detach().double().requires_grad_()
    loss = eager(queries, inputs[1].double())
    return [loss.detach(), torch.autograd.grad(loss, queries)[0]]


def bytes_moved(case, inputs):
    """Both read forward; read again and the gradient written backward."""
    read = sum(tensor.nbytes for tensor in inputs)
    return read, read + inputs[0].nbytes


def flops(case):
    """The similarities; those again and the gradient of the queries."""
    images, places, size = case.shape
    products = 2 * images * places * places * size
    return products, 2 * products


# Plain PyTorch takes the difference of two logarithms: 1e-5 in float32 is what it just misses.
OP = Op(
    "patch_nce",
    CASES,
    CONTESTANTS,
    make,
    make_inputs,
    expected,
    bytes_moved,
    TOLERANCE | {torch.float32: 3e-5},
    flops,
)

if __name__ == "__main__":
    main([OP])
