# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast: supervised and multi-positive contrastive loss between rows, such as the features of regions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg.ops import region_contrast_autograd
from fastseg.ops.checks import FLOATS, as_int
from fastseg.ops.dispatch import use_fused
from fastseg.ops.reference.region_contrast import region_contrast_reference
from fastseg.ops.region_contrast_checks import (
    DENOMINATORS,
    REDUCTIONS,
    SIMILARITIES,
    check_tensors,
    check_types,
)


class ContrastRows(NamedTuple):
    """What `region_contrast_rows` finds for each anchor, each (M,); only the loss has a gradient."""

    loss: Tensor
    positives: Tensor
    similarity: Tensor
    log_denominator: Tensor


def region_contrast(
    anchors: Tensor,
    bank: Tensor | None = None,
    *,
    anchor_ids: Tensor,
    bank_ids: Tensor | None = None,
    anchor_groups: Tensor | None = None,
    bank_groups: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    similarity: str = "cosine",
    denominator: str = "all",
    reduction: str = "mean",
    self_offset: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Contrastive loss with any number of positives per anchor, in memory that does not hold the pairs.

    For anchor i with positives P(i) (equal ids) and negatives N(i) (other ids), a row and itself left out::

        loss_i = 1/|P(i)| * sum_{p in P(i)} (logsumexp_{q in D(i)} s_iq / T  -  s_ip / T)
        D(i) = P(i) + N(i) for denominator="all", N(i) for "negatives"

    SupCon (its L_out) and InfoNCE are denominator="all"; the loss of Boserup & Selvan is "negatives" with
    "neg_mse" and T = 1, row losses times numbers of positives (`region_contrast_rows`).

    Args:
        anchors: (M, D), float32, float64, bfloat16 or float16; D from 1 up.
        bank: (N, D), the candidates; None: the anchors themselves, each compared with all others. Of two
            floating dtypes the wider is taken for both.
        anchor_ids: (M,), integer. Rows of equal ids are positives of one another; a row of negative id takes no
            part, as anchor or as candidate.
        bank_ids: (N,), integer, with `bank`.
        anchor_groups: (M,), integer: negatives are only those of the same group, such as the same image.
            Positives are those of equal ids in whatever group: give ids that differ between groups if
            positives should not cross them.
        bank_groups: (N,), integer, with `bank` and `anchor_groups`.
        temperature: T, finite and above 0, or a tensor with no axes, which may require a gradient and whose
            value is not looked at.
        similarity: "cosine" (<a, b> / |a| |b|), "dot" (<a, b>) or "neg_mse" (-mean((a - b)^2)).
        denominator: "all" or "negatives".
        reduction: "mean" over the rows that have a loss, "sum", or "none".
        self_offset: with `bank`: anchor i is row i + self_offset of the bank and not compared with it, as where
            the bank is gathered from several processes. None: all of the bank are candidates.
        impl: "auto" (the fused kernel where there is one, else the reference), "fused" or "reference".

    Returns:
        The loss, or the losses (M,) for "none"; float64 for float64 input, else float32.

    Edge rules:
        A row without a positive, without a candidate in its denominator, or of negative id, has loss and
        gradient 0 and does not count in the mean; no such row at all gives loss 0. Values of rows that take no
        part never matter, NaN or not; NaN in others spreads. "cosine": a row shorter than 1e-12 has similarity
        0 to all, and gradient 0.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or option. A second gradient:
            NotImplementedError, except with impl="reference".

    Numerics:
        float32 sums (float64 for float64); on a GPU float32 products use three TF32 products where torch allows
        TF32 (torch.backends.cuda.matmul). The log-sum-exp is shifted by its largest term and the loss taken relative
        to the positives, so a single positive far above the negatives keeps all digits of its tiny loss and
        gradient. "neg_mse" expands the square: s is exact to a few roundings of the mean squares of the values;
        subtract a common offset first if that is large. Repeatable to the last bit on a given machine.

    Cost:
        2 M N D multiplications and additions forward and 6 backward (8 on a GPU); without a bank 1 and 3 (2
        and 4 on a GPU); up to 65,536 pairs the CPU keeps the products and saves one of the backward pass. Memory: a
        tile per thread and O(M + N); a float32 copy of 16-bit input on the CPU, a
        sorted copy of the rows on a GPU beyond 4096 x 4096 pairs.

    Source:
        Khosla et al. 2020, "Supervised Contrastive Learning", equation 2, for "all"; Boserup & Selvan 2023,
        "Efficient Self-Supervision using Patch-based Contrastive Learning", for "negatives".
    """
    tensors = (anchors, bank, anchor_ids, bank_ids, anchor_groups, bank_groups)
    options = (temperature, similarity, denominator)
    return run(tensors, self_offset, reduction, *options, impl, region_contrast_autograd.region_contrast)[0]


def region_contrast_rows(
    anchors: Tensor,
    bank: Tensor | None = None,
    *,
    anchor_ids: Tensor,
    bank_ids: Tensor | None = None,
    anchor_groups: Tensor | None = None,
    bank_groups: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    similarity: str = "cosine",
    denominator: str = "all",
    self_offset: int | None = None,
    impl: str = "auto",
) -> ContrastRows:
    """`region_contrast` row by row, with what other sums and means over pairs are made of, from the same pass.

    Arguments are those of `region_contrast`.

    Returns:
        ContrastRows(loss, positives, similarity, log_denominator), each (M,). loss: as for reduction="none".
        positives: how many, int64. similarity: the mean of s over the positives, 0 where there are none.
        log_denominator: log sum exp(s / T) over the denominator, -inf for rows without a loss. All but the loss
        are detached. loss * positives is the sum over positive pairs instead of their mean.
    """
    tensors = (anchors, bank, anchor_ids, bank_ids, anchor_groups, bank_groups)
    loss, stats, _ = run(tensors, self_offset, "none", temperature, similarity, denominator, impl)
    positives, mean, log_denominator = stats[0], stats[1], stats[2]
    with torch.no_grad():
        number = temperature.to(mean.dtype) if isinstance(temperature, Tensor) else temperature
        return ContrastRows(loss, positives.long(), mean * number, log_denominator)


def run(
    tensors: tuple[Any, Any, Any, Any, Any, Any],
    self_offset,
    reduction,
    temperature=0.1,
    similarity="cosine",
    denominator="all",
    impl="auto",
    op=region_contrast_autograd.region_contrast.whole,
) -> Any:
    """The loss; and by the whole `op` (3 or more, M): positives, their mean s / T, log of the denominator for reduction
    "none"; and how many rows have a loss."""
    check_types(*tensors, temperature, self_offset, similarity, denominator, reduction)
    (anchors, bank), labels = tensors[:2], tensors[2:]
    if bank is not None and bank.dtype != anchors.dtype and bank.dtype in FLOATS and anchors.dtype in FLOATS:
        dtype = torch.promote_types(anchors.dtype, bank.dtype)
        anchors, bank = anchors.to(dtype), bank.to(dtype)
    tensor = temperature if isinstance(temperature, Tensor) else None
    self_offset = None if self_offset is None else as_int("self_offset", self_offset)
    fused = use_fused("region_contrast", impl, anchors)
    if fused and anchors.is_cuda and anchors.dtype == torch.float64:
        if impl == "fused":
            raise ValueError('impl="fused": region_contrast has no float64 kernel for a GPU; use impl="auto"')
        fused = False
    if not fused:
        check_tensors(anchors, bank, *labels, tensor, self_offset=self_offset)
        losses, stats = region_contrast_reference(
            anchors, bank, *labels, temperature, self_offset, similarity, denominator
        )
        count = stats[3].sum()
        if reduction == "none":
            return losses, stats.detach(), count
        return losses.sum() / (count.clamp(min=1) if reduction == "mean" else 1), stats.detach(), count
    loss, *others = op(
        anchors,
        bank,
        *labels,
        tensor,
        1.0 if tensor is not None else float(temperature),
        self_offset,
        SIMILARITIES[similarity],
        DENOMINATORS[denominator],
        REDUCTIONS[reduction],
        tensor is not None and tensor.requires_grad,
    )
    if not others or reduction != "none":
        return loss, *others[:2]
    positives, mean, excess = others[0][:3]
    log_denominator = mean + excess
    if denominator == "all":
        log_denominator = log_denominator + positives.clamp(min=1).log()
    return loss, torch.stack([positives, mean, log_denominator]).detach(), others[1]
