# SPDX-License-Identifier: BSD-3-Clause
"""PatchNCE: what is translated at a place resembles what was there, more than what was elsewhere in the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastseg.ops.region_contrast import region_contrast


class PatchNCE(nn.Module):
    """InfoNCE between the vectors of one image at the same places, before and after it is translated.

    With q_i the query and k_i the key of place i of an image, T the temperature, s the cosine::

        loss_i = log sum_j exp(s(q_i, k_j) / T) - s(q_i, k_i) / T        j over the places of the same image

    The positive of a query is the key of its place; its negatives are the other keys of its image. The loss is the mean
    over places and images. Keys are detached: the gradient goes to the queries alone.

    Args:
        temperature: T, finite and above 0.
        impl: of `region_contrast`: "auto", "fused" or "reference".

    Called with queries and keys (B, P, D), of one shape and of floating dtype, not normalised. Returns the loss,
    float32, or float64 for float64 input.

    Edge rules: P = 1, or B = 0, has nothing to tell apart: loss and gradient 0. A vector shorter than 1e-12 has
    similarity 0 to all. Vectors all alike: log P.

    Raises: ValueError for shapes that differ or are not (B, P, D), and for the temperature; TypeError and ValueError of
    `region_contrast` for dtypes and devices.

    Numerics, cost: as `region_contrast`, once for each image with P rows on either side: about 6 P^2 D multiplications
    and additions there and back, as no gradient of the keys is made, and never the P x P matrix.

    Source: Park et al. 2020, "Contrastive Learning for Unpaired Image-to-Image Translation", equation 3. Their code
    fills the diagonal of the negatives with exp(-10 / T), 1e-62 at 0.07, which is left out here.
    """

    def __init__(self, *, temperature: float = 0.07, impl: str = "auto") -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {temperature}")
        self.temperature, self.impl = float(temperature), impl

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        if queries.ndim != 3 or queries.shape != keys.shape:
            raise ValueError(
                "queries and keys must be (B, P, D) of one shape, "
                f"got {tuple(queries.shape)} and {tuple(keys.shape)}"
            )
        if not len(queries):
            return queries.sum(dtype=torch.promote_types(queries.dtype, torch.float32))
        ids = torch.arange(queries.shape[1], device=queries.device)
        # Groups say the same of the whole batch at once, but the op goes over the pairs across images too.
        losses = [
            region_contrast(
                mine, others, anchor_ids=ids, bank_ids=ids, temperature=self.temperature, impl=self.impl
            )
            for mine, others in zip(queries, keys.detach(), strict=True)
        ]
        return torch.stack(losses).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature!r}, impl={self.impl!r}"
