# SPDX-License-Identifier: BSD-3-Clause
"""Calls every op with arguments of any kind, at both doors: a result or a named error, never a crash. argv: a seed.

No tensor of freed storage here: torch crashes where it prints one to say that an argument is of a wrong type."""

import contextlib
import random
import sys
import warnings

import torch

from fastseg import _C

warnings.simplefilter("ignore")
random.seed(int(sys.argv[1]))
base = torch.rand(2, 3, 5, 6)
odd = [
    None,
    3,
    "text",
    [1.0],
    base.numpy(),
    base,
    base.double(),
    base.half(),
    base.bfloat16(),
    base.long(),
    base.bool(),
    base.int(),
    base.to(torch.complex64),
    base.to(torch.float8_e4m3fn),
    base.to_sparse(),
    base.to("meta"),
    torch._neg_view(base),
    base.to(torch.complex64).conj().imag,
    base[:, :1].expand(2, 3, 5, 6),
    base[:, :, ::2, ::3],
    base.flip(3),
    base.permute(0, 3, 1, 2),
    base[:0],
    base[:, :0],
    base[:, :, :0],
    base[..., :0],
    base[0],
    base[0, 0, 0, 0],
    torch._efficientzerotensor((2, 3, 5, 6)),
    torch.nn.Parameter(base),
    base.as_subclass(type("Subclass", (torch.Tensor,), {})),
    torch.quantize_per_tensor(base, 0.1, 0, torch.quint8),
    base.to_mkldnn(),
    torch.zeros(2, 5, 6, dtype=torch.int64),
    torch.zeros(2, 5, 6, dtype=torch.uint16),
    torch.zeros((1,) * 12),
    torch.zeros(2, 4, 2, dtype=torch.int64),
    torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]),
]
numbers = [0, 1, 2, 5, -1, 2**31 - 1, 2**31, 2**32 + 1, 2**63 - 1, 2**64, 0.5, float("nan"), True, None]
numbers += [[1, 1], [2, 2], [], [0, 0]]
arguments = {
    "masked_bce": "TTOOOff",
    "masked_bce_backward": "TTTOOOOf",
    "region_pool": "TTnn",
    "region_pool_backward": "TnnOOOOOOOOO",
    "soft_region_pool": "TOTnn",
    "soft_region_pool_backward": "TOTnnTTTOOOnnn",
    "patch_entropy": "TOllnnn",
    "patch_entropy_backward": "OOTOOllnnn",
    "patch_entropy_crops": "TTl",
    "patch_entropy_crops_backward": "TTl",
    "patch_entropy_sample": "TTTnlnnff",
    "region_contrast": "TOTOOOOfnnnnn",
    "region_contrast_backward": "TTOTOOOOTTOfnnnnnn",
}


def pick(kind):
    if kind == "T":
        return base if random.random() < 0.3 else random.choice(odd)
    if kind == "O":
        return None if random.random() < 0.5 else random.choice(odd)
    if kind == "l":
        sizes = [[1, 1], [2, 2], [2, 3], [5, 6], [2], [2**33, 1]]
        return random.choice(sizes if random.random() < 0.8 else numbers)
    small = random.choice([0, 1, 2, 3]) if random.random() < 0.7 else random.choice(numbers)
    return small


told = done = 0
named = (TypeError, ValueError, RuntimeError, NotImplementedError, OverflowError, MemoryError)
for _ in range(4000):
    name = random.choice(list(arguments))
    inputs = [pick(kind) for kind in arguments[name]]
    big = any(n > 2**20 for i in inputs for n in (i if isinstance(i, list) else [i]) if isinstance(n, int))
    if (
        name
        in ("region_pool", "patch_entropy_sample", "patch_entropy_crops_backward", "region_pool_backward")
        and big
    ):
        continue  # a table of gigabytes may be had, which is right and slow
    shown = [type(i).__name__ if isinstance(i, torch.Tensor) else i for i in inputs]
    print(name, shown, file=sys.stderr, flush=True)
    try:
        getattr(_C, name)(*inputs)
        done += 1
    except named:
        told += 1
    with contextlib.suppress(Exception):  # torch and fake kernels have words of their own
        getattr(torch.ops.fastseg, name)(*inputs)
print(told, done)
