# SPDX-License-Identifier: BSD-3-Clause
"""Faults planted in the ops: the fuzzer's 300 cases find each, and say how to repeat it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastseg
from tests.fuzz import ops
from tests.fuzz.__main__ import fuzz

FAULTS: list[tuple[str, Callable]] = []


def planted_in(name: str) -> Callable:
    def keep(broken: Callable) -> Callable:
        FAULTS.append((name, broken))
        return broken

    return keep


def as_if_contiguous(x: Tensor | None) -> Tensor | None:
    """What a kernel sees that does not look at strides, of elements that lie close together."""
    if x is None or x.untyped_storage().nbytes() != x.numel() * x.element_size():
        return x
    return torch.as_strided(x, x.shape, torch.empty(x.shape).stride(), 0)


@planted_in("masked_weighted_bce")
def strides_of_the_mask_are_ignored(op, x, y, mask, **rest):
    return op(x, y, as_if_contiguous(mask), **rest)


@planted_in("masked_weighted_bce")
def any_code_beyond_2_is_a_pseudo_label(op, x, y, mask, **rest):
    return op(x, y, None if mask is None else mask.clamp(max=2), **rest)


@planted_in("masked_weighted_bce")
def weights_of_pseudo_labels_are_whole_numbers(op, *a, pseudo_weight, **rest):
    return op(*a, pseudo_weight=int(pseudo_weight), **rest)


@planted_in("masked_weighted_bce")
def one_pos_weight_for_all_channels(op, *a, pos_weight, **rest):
    return op(*a, pos_weight=None if pos_weight is None else pos_weight[:1].expand_as(pos_weight), **rest)


@planted_in("masked_weighted_bce")
def gradient_is_too_large(op, x, *a, **rest):
    return op(x.detach() + 1.01 * (x - x.detach()), *a, **rest)


@planted_in("region_pool")
def the_label_that_equals_the_count_is_counted(op, x, labels, count, **rest):
    return op(x, labels.clamp(max=max(int(count) - 1, 0)), count, **rest)


@planted_in("region_pool")
def the_last_voxel_of_a_row_is_left_out(op, x, labels, count, **rest):
    labels = labels.clone()
    labels[..., 7:] = 127
    return op(x, labels, count, **rest)


@planted_in("region_pool")
def variance_of_a_sample_is_taken(op, *a, reduce, **rest):
    return op(*a, reduce=reduce, **rest) * (8 / 7 if reduce == "var" else 1)


@planted_in("soft_region_pool")
def logits_are_taken_for_probabilities(op, *a, from_logits, **rest):
    return op(*a, from_logits=False, **rest)


@planted_in("soft_region_pool")
def a_region_alone_has_no_gradient(op, x, parts, **rest):
    return op(x.detach() if parts.shape[1] == 1 else x, parts, **rest)


@planted_in("patch_entropy")
def axes_of_the_stride_are_turned_round(op, x, patch, stride, **rest):
    return op(x, patch, stride[::-1], **rest)


@planted_in("patch_entropy")
def a_window_is_valid_a_little_too_soon(op, *a, min_valid, **rest):
    return op(*a, min_valid=0.9 * min_valid, **rest)


@planted_in("extract_patches")
def corners_before_the_volume_begin_at_it(op, x, corners, *a, **rest):
    return op(x, corners.clamp(min=0), *a, **rest)


@planted_in("sample_patches")
def windows_of_nan_are_drawn(op, entropy, *a, impl, **rest):
    return op(entropy if impl == "reference" else entropy.nan_to_num(nan=0.5), *a, impl=impl, **rest)


@planted_in("sample_patches")
def seeds_are_cut_to_32_bits(op, *a, seed, impl, **rest):
    return op(*a, seed=seed if impl == "reference" else int(seed) % 2**32, impl=impl, **rest)


@planted_in("region_contrast")
def rows_of_negative_id_take_part(op, *a, anchor_ids, **rest):
    return op(*a, anchor_ids=anchor_ids.clamp(min=0), **rest)


@planted_in("region_contrast")
def the_bank_holds_no_copy_of_an_anchor(op, *a, self_offset, **rest):
    return op(*a, self_offset=None, **rest)


@planted_in("region_contrast")
def groups_are_ignored(op, *a, anchor_groups, bank_groups, **rest):
    return op(*a, **rest)


@pytest.mark.parametrize(("name", "broken"), FAULTS, ids=lambda part: getattr(part, "__name__", ""))
def test_a_planted_fault_is_found(name: str, broken: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    op, whole = getattr(ops, name.replace("weighted_", "")), getattr(fastseg, name)
    monkeypatch.setattr(fastseg, name, lambda *a, **rest: broken(whole, *a, **rest))
    with pytest.raises(AssertionError, match=rf"python -m tests.fuzz {op.__name__} --seed 0 --case \d+: "):
        fuzz(op, seed=0, cases=range(300))
