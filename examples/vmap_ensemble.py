# SPDX-License-Identifier: BSD-3-Clause
"""torch.func.vmap over the ops: the losses of an ensemble, and gradients for several outputs, in one call.

Where samples do not mix (region_pool, region_stats, soft_region_pool, patch_entropy, extract_patches, and
masked_weighted_bce with reduction="none") the mapped axis joins the batch: one launch. A loss of a whole batch is
called member by member. Prints the largest difference from a loop, of values and of gradients.
"""

import torch
from torch.func import vmap

import fastseg


def main(members: int = 4) -> dict[str, float]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(members, 2, 1, 16, 16, generator=draw).requires_grad_()
    target = torch.rand(2, 1, 16, 16, generator=draw) > 0.5
    mask = torch.randint(0, 3, target.shape, generator=draw, dtype=torch.uint8)
    regions = torch.randint(0, 6, (2, 16, 16), generator=draw)

    def losses(of_member: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = fastseg.masked_weighted_bce(of_member, target, mask, pseudo_weight=0.5)
        return loss, fastseg.region_pool(of_member, regions, 6)

    at_once = vmap(losses)(logits)
    looped = [torch.stack(part) for part in zip(*map(losses, logits), strict=True)]
    found = {}
    for name, one, other in zip(("loss", "means"), at_once, looped, strict=True):
        gradients = [
            torch.autograd.grad(value.square().sum(), logits, retain_graph=True)[0] for value in (one, other)
        ]
        found[f"difference of {name}"] = (one - other).abs().max().item()
        found[f"difference of gradients of {name}"] = (gradients[0] - gradients[1]).abs().max().item()

    # The Jacobian of the means of all regions, from one backward call over the unit vectors.
    means = fastseg.region_pool(logits[0], regions, 6)
    units = torch.eye(means.numel()).view(-1, *means.shape)
    (jacobian,) = torch.autograd.grad(means, logits, units, is_grads_batched=True)
    found["sum of the Jacobian"] = (
        jacobian.sum().item()
    )  # every region's weights sum to 1: 2 images times 6 regions
    return found


if __name__ == "__main__":
    print(main())
