# SPDX-License-Identifier: BSD-3-Clause
"""One call of every op, forward and backward, by the installed package: its kernels against its references.

Run by check.py in an environment of its own as `python -I -c`, so that no source tree is in reach.
"""

import platform
import sys
from pathlib import Path

import torch

import fastseg

assert Path(sys.prefix) in Path(fastseg.__file__).parents, f"another fastseg was imported: {fastseg.__file__}"

draw = torch.Generator().manual_seed(0)
volume = torch.randn(2, 3, 8, 16, 16, generator=draw)
logits = torch.randn(2, 1, 8, 16, 16, generator=draw)
codes = torch.randint(0, 3, (2, 1, 8, 16, 16), generator=draw).to(torch.uint8)
regions = torch.randint(-1, 7, (2, 8, 16, 16), generator=draw)
assignment = torch.rand(2, 4, 8, 16, 16, generator=draw)
rows, ids = torch.randn(40, 24, generator=draw), torch.randint(0, 6, (40,), generator=draw)
corners = torch.tensor([[[0, 0, 0], [2, 4, 8]], [[1, 3, 5], [4, 8, 8]]])
windows = fastseg.patch_entropy(logits.sigmoid(), 8, 4)

# Each a function of one tensor with a gradient.
OPS = {
    "masked_weighted_bce": (
        logits,
        lambda x, impl: fastseg.masked_weighted_bce(x, codes > 1, codes, impl=impl),
    ),
    "masked_weighted_bce_terms": (
        logits,
        lambda x, impl: fastseg.masked_weighted_bce_terms(x, codes > 1, codes, impl=impl),
    ),
    "region_pool": (volume, lambda x, impl: fastseg.region_pool(x, regions, 6, reduce="max", impl=impl)),
    "region_stats": (volume, lambda x, impl: fastseg.region_stats(x, regions, 6, impl=impl)),
    "soft_region_pool": (
        volume,
        lambda x, impl: fastseg.soft_region_pool(x, assignment, variance=True, impl=impl),
    ),
    "region_contrast": (rows, lambda x, impl: fastseg.region_contrast(x, anchor_ids=ids, impl=impl)),
    "region_contrast_rows": (
        rows,
        lambda x, impl: fastseg.region_contrast_rows(x, anchor_ids=ids, impl=impl),
    ),
    "patch_entropy": (logits, lambda x, impl: fastseg.patch_entropy(x, 8, 4, from_logits=True, impl=impl)),
    "extract_patches": (volume, lambda x, impl: fastseg.extract_patches(x, corners, 4, impl=impl)),
}


def results(call, tensor: torch.Tensor, impl: str) -> list[torch.Tensor]:
    """All that an op gives, and the gradient of its sum."""
    leaf = tensor.clone().requires_grad_()
    given = call(leaf, impl)
    given = [t for t in (given if isinstance(given, tuple) else (given,)) if torch.is_tensor(t)]
    sum(t.sum() for t in given if t.requires_grad).backward()
    return [*(t.detach() for t in given), leaf.grad]


for name, (tensor, call) in OPS.items():
    pairs = zip(results(call, tensor, "fused"), results(call, tensor, "reference"), strict=True)
    for fused, reference in pairs:
        torch.testing.assert_close(fused, reference, msg=lambda told, name=name: f"{name}: {told}")
drawn = [fastseg.sample_patches(*windows, 5, seed=1, impl=impl) for impl in ("fused", "reference")]
assert torch.equal(drawn[0].corners, drawn[1].corners), "sample_patches"

for name in fastseg.__all__:
    assert hasattr(fastseg, name), name
print(
    f"torch {torch.__version__}, Python {platform.python_version()}: {len(OPS) + 1} ops as their references"
)
