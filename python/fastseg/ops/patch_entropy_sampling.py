# SPDX-License-Identifier: BSD-3-Clause
"""sample_patches: windows drawn by their entropy, the same ones on every device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops.checks import (
    FLOATS,
    as_int,
    check_device,
    check_dtype,
    check_map,
    check_option,
    check_types,
    check_volume,
    is_number,
    real_dtype,
)
from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.patch_entropy import per_axis
from fastseg.ops.reference.patch_entropy_sampling import sample_patches_reference

_STRATEGIES = {name: int(value) for name, value in _C.SampleStrategy.__members__.items()}


class PatchSamples(NamedTuple):
    """What was drawn for every sample and channel; behind `count` stand -1, -1 and False."""

    corners: Tensor  # (B, K, n, d) int64, the first voxel of each window
    # (B, K, n) int64, the window's number in *W, last axis fastest
    index: Tensor  # type: ignore[assignment]
    parity: Tensor  # (B, K, n) bool, True: positive
    count: Tensor  # type: ignore[assignment]  # (B, K) int64


def sample_patches(
    entropy: Tensor,
    confidence: Tensor,
    n: int,
    *,
    seed: int | Tensor,
    stride: int | Sequence[int] = 1,
    strategy: str = "probabilistic",
    replacement: bool = True,
    floor: float = 1e-3,
    threshold: float | None = None,
    impl: str = "auto",
) -> PatchSamples:
    """Draw n windows for every sample and channel, and a parity for each.

    With strategy="probabilistic", window w of a row (a sample and channel) is drawn with::

        P(w) = max(1 - entropy[w], floor) / sum of the same over the row's windows
        P(parity[w] is True) = confidence[w], once per window: drawn twice, it has the same parity twice

    Args:
        entropy, confidence: (B, K or 1, *W) and (B, K, *W) with 1 to 3 axes, as `patch_entropy` gives them;
            floating. Entropies of one channel stand for all of them. At most 2**31 windows a row.
        n: windows to draw, at least 1.
        seed: an int, or one int64 number in a tensor on the device of `entropy`, which is read there: a
            captured CUDA graph draws anew when it is changed. Draws of different seeds are independent.
        stride: voxels between windows, per axis or one number for all, as given to `patch_entropy`; corners
            are window coordinates times it.
        strategy: "probabilistic"; "threshold", windows of entropy <= threshold with equal chances; "lowest" or
            "highest", the n windows of lowest or highest entropy, of equal ones those that come first.
        replacement: whether a window may be drawn again. Without, each draw is from those that are left.
            "lowest" and "highest" never repeat a window.
        floor: in [0, 1]: what makes windows of an entropy of 1 and more possible.
        threshold: bits; for strategy="threshold" only.
        impl: "auto" (the fused kernel where there is one, else the reference), "fused" or "reference".

    Returns:
        PatchSamples(corners, index, parity, count), of a size that does not depend on the values; nothing
        is read back from the device. count is n, but 0 where no window can be drawn, and without replacement
        at most the number of windows that can be. No gradient flows through any of it.

    Edge rules:
        Windows of NaN entropy are never drawn, nor are those of weight 0 (floor=0 and an entropy >= 1, or
        above the threshold). A NaN confidence gives False. Entropies below 0 count as 0 to "probabilistic".

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or option.

    Numerics:
        Weights are multiples of 2**-31, chances of parity of 2**-32, sums and draws are exact integers from
        Philox 4x32-10 keyed by the seed and counted by draw or window and row. So the same entropies and
        confidences give the same windows on every device, in the reference too, for any number of threads.
        (Entropies of two devices may differ in the last digit, and then, rarely, so does a draw.)

    Cost:
        Entropies are read once; then a search per draw. Without replacement, and for "lowest" and
        "highest", a GPU makes the n draws of a row one after the other.

    Source:
        Boserup and Selvan (2023), where "probabilistic" with replacement, n=10 and floor=1e-3 is used.
        Philox: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".
    """
    check_types({"entropy": entropy, "confidence": confidence})
    check_dtype("entropy", entropy, FLOATS)
    check_dtype("confidence", confidence, FLOATS)
    check_device("confidence", confidence, "entropy", entropy)
    check_volume("confidence", confidence, "(B, K, *W)", "axes of windows")
    check_map("entropy", entropy, "(B, 1 or K, *W)", confidence)
    n = as_int("n", n)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if n >= 2**31:
        raise ValueError(f"n must be below 2**31, got {n}")
    stride = per_axis("stride", stride, confidence.dim() - 2)
    _check_options(strategy, floor, threshold)
    seed = _seed_on(seed, entropy)
    dtype = real_dtype(entropy, confidence)
    arguments = (entropy.detach().to(dtype), confidence.detach().to(dtype), seed, n, stride)
    options = (bool(replacement), float(floor), 0.0 if threshold is None else float(threshold))
    if use_fused("patch_entropy", impl, entropy):
        results = _sample(*arguments, _STRATEGIES[strategy], *options)
    else:
        results = sample_patches_reference(*arguments, strategy, *options)
    index, corners, parity, count = results
    return PatchSamples(corners, index, parity, count)


def _check_options(strategy: str, floor: float, threshold: float | None) -> None:
    check_option("strategy", strategy, _STRATEGIES)
    for name, number in (("floor", floor), ("threshold", 0 if threshold is None else threshold)):
        if not is_number(number):
            raise TypeError(f"{name} must be a number, got {type(number).__name__}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must be in [0, 1], got {floor}")
    if (strategy == "threshold") != (threshold is not None):
        raise ValueError(
            f'threshold must be given for strategy="threshold" and no other, got {threshold!r} for {strategy!r}'
        )


def _seed_on(seed: int | Tensor, entropy: Tensor) -> Tensor:
    if isinstance(seed, Tensor):
        check_dtype("seed", seed, (torch.int64,))
        check_device("seed", seed, "entropy", entropy)
        if seed.numel() != 1:
            raise ValueError(f"seed must be one number, got a tensor {tuple(seed.shape)}")
        return seed
    number: int = as_int("seed", seed, "an int or an int64 tensor")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"seed must fit in 64 bits with sign, got {number}")
    return torch.full((), number, dtype=torch.int64, device=entropy.device)


@torch.library.register_fake("fastseg::patch_entropy_sample")
def _(entropy, confidence, seed, n, stride, strategy, replacement, floor, threshold):
    shape = (*confidence.shape[:2], n)

    def empty(shape, dtype=torch.int64):
        return entropy.new_empty(shape, dtype=dtype)

    return empty(shape), empty((*shape, len(stride))), empty(shape, torch.bool), empty(shape[:2])


_sample = open_doors("patch_entropy_sample")
