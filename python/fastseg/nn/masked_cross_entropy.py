# SPDX-License-Identifier: BSD-3-Clause
"""The masked cross-entropy of classes that exclude one another."""

import torch
from torch import Tensor, nn

from fastseg.ops.masked_bce import check_options
from fastseg.ops.masked_bce_across_ranks import over_all_ranks


class MaskedCrossEntropy(nn.Module):
    """The cross-entropy of C classes and a background, of which each voxel is one::

        p_c = exp(z_c) / (1 + sum_k exp(z_k))        p_0 = 1 / (1 + sum_k exp(z_k)), the background
        l = -(1 - sum_c y_c) log p_0 - sum_c pos_weight_c y_c log p_c

    The background has the logit 0 and no channel, so that one class is `MaskedWeightedBCE`, to the last term.

    pseudo_weight, a plain attribute, pos_weight (C,), a buffer, and normalize are as there, but that "voxels" divides
    by the voxels and not by those of all channels. Of a batch that is shared out over the processes of
    torch.distributed it is the mean over all of it, as of `fastseg.masked_weighted_bce_across_ranks`.

    forward: logits (B, C, *S) of a float dtype; target of that shape, bool, uint8 or float in [0, 1] with a sum over C
    of at most 1; mask (B, 1, *S) of 0 ignored, 1 labelled, 2 pseudo-labelled. The loss is float64 for float64 logits,
    else float32. What is ignored reaches neither loss nor gradient, whatever it holds; with nothing labelled both are
    0.
    Memory: three copies of the logits and a channel more, in that dtype.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        *,
        pseudo_weight: float = 1.0,
        pos_weight: Tensor | list[float] | None = None,
        normalize: str = "voxels",
    ):
        super().__init__()
        check_options(pseudo_weight, normalize, "mean")
        if pos_weight is not None and not isinstance(pos_weight, Tensor):
            pos_weight = torch.tensor(pos_weight, dtype=torch.float32)
        self.register_buffer("pos_weight", pos_weight)
        self.pseudo_weight = pseudo_weight
        self.normalize = normalize

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        if target.shape != logits.shape:
            raise ValueError(
                f"target must have the shape of logits, {tuple(logits.shape)}, got {tuple(target.shape)}"
            )
        one_channel = (len(logits), 1, *logits.shape[2:])
        if mask is None:
            mask = torch.ones(one_channel, dtype=torch.uint8, device=logits.device)
        elif mask.shape != one_channel:
            raise ValueError(f"mask must be (B, 1, *S) = {one_channel}, got {tuple(mask.shape)}")
        loss = self._of_voxels(logits, target, mask)
        sources = [mask == 1, mask == 2]
        sums = [torch.where(source, loss, 0).sum() for source in sources]
        counts = [source.sum().double() for source in sources]
        stats = torch.stack([*(part.detach().double() for part in sums), *counts, *counts])
        total, scales, ranks = over_all_ranks(stats, mask.numel(), self.pseudo_weight, self.normalize)
        own = scales[0] * sums[0]
        if self.pseudo_weight:
            own = own + scales[1] * sums[1]
        own = own * ranks  # of which DistributedDataParallel takes the mean
        return (own + (total - own).detach()).to(loss.dtype)

    def _of_voxels(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """(B, 1, *S), 0 where ignored."""
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        known = mask != 0
        # Cut out before the arithmetic: then NaN elsewhere reaches neither the loss nor the gradient.
        z = torch.where(known, logits.to(dtype), 0)
        y = torch.where(known, (target if target.is_floating_point() else target != 0).to(dtype), 0)
        log_p = torch.cat((torch.zeros_like(z[:, :1]), z), 1).log_softmax(1)
        background = (1 - y.sum(1, keepdim=True)).clamp(min=0)
        if self.pos_weight is not None:
            y = y * self.pos_weight.to(dtype).view(-1, *[1] * (logits.dim() - 2))
        loss = -background * log_p[:, :1] - (y * log_p[:, 1:]).sum(1, keepdim=True)
        return torch.where(known, loss, 0)

    def extra_repr(self) -> str:
        return f"pseudo_weight={self.pseudo_weight!r}, normalize={self.normalize!r}"
