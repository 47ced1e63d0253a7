# SPDX-License-Identifier: BSD-3-Clause
"""The definition of sample_patches, in int64 arithmetic, so that it is the same to the last bit everywhere."""

import math

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox(key: Tensor, counter: list[Tensor]) -> list[Tensor]:
    """Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011). An int64 key; words are int64 in [0, 2**32)."""
    c0, c1, c2, c3 = counter
    low, high = key & _LOW, (key >> 32) & _LOW
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2**64
        c0, c1, c2, c3 = (
            ((second >> 32) & _LOW) ^ c1 ^ low,
            second & _LOW,
            ((first >> 32) & _LOW) ^ c3 ^ high,
            first & _LOW,
        )
        low, high = (low + 0x9E3779B9) & _LOW, (high + 0xBB67AE85) & _LOW
    return [c0, c1, c2, c3]


def multiply_high(high: Tensor, low: Tensor, factor: Tensor) -> Tensor:
    """((high * 2**32 + low) * factor) >> 64, for a factor below 2**63."""
    factor_high, factor_low = factor >> 32, factor & _LOW
    across, down = low * factor_high, high * factor_low  # modulo 2**64
    middle = ((low * factor_low >> 32) & _LOW) + (across & _LOW) + (down & _LOW)
    return high * factor_high + ((across >> 32) & _LOW) + ((down >> 32) & _LOW) + (middle >> 32)


def _random(seed: Tensor, item: Tensor, purpose: int) -> list[Tensor]:
    """Words for every (row, item)."""
    rows = torch.arange(item.shape[0], device=item.device)[:, None]
    zero = torch.zeros_like(item)
    return philox(seed.reshape(()), [item & _LOW, (item >> 32) & _LOW, zero + rows, zero + purpose])


def _weights(entropy: Tensor, strategy: str, floor: float, threshold: float) -> Tensor:
    bits = entropy.double()
    share = (bits <= threshold).double() if strategy == "threshold" else (1 - bits).clamp(floor, 1)
    return torch.where(bits.isnan(), 0, (share.nan_to_num(0) * 2**31 + 0.5).floor().long())


def _draw(weights: Tensor, n: int, replacement: bool, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Windows (rows, n), -1 behind the last, and how many there are."""
    rows, windows = weights.shape
    draws = torch.arange(n, device=weights.device).expand(rows, n)
    high, low, *_ = _random(seed, draws, 0)
    if replacement:
        sums = weights.cumsum(1)
        total = sums[:, -1:]
        index = torch.searchsorted(sums, multiply_high(high, low, total), right=True)
        index = torch.where(total > 0, index, -1)
        return index, (index >= 0).sum(1)
    index, weights = torch.full((rows, n), -1, device=weights.device), weights.clone()
    for draw in range(n):
        sums = weights.cumsum(1)
        total = sums[:, -1:]
        target = multiply_high(high[:, draw : draw + 1], low[:, draw : draw + 1], total)
        found = torch.searchsorted(sums, target, right=True).clamp(max=windows - 1)
        index[:, draw : draw + 1] = torch.where(total > 0, found, -1)
        weights.scatter_(1, found, 0)
    return index, (index >= 0).sum(1)


def _first(entropy: Tensor, n: int, highest: bool) -> tuple[Tensor, Tensor]:
    """The windows of lowest or highest entropy, of equal ones the first; -1 behind the last that is not NaN."""
    values = -entropy if highest else entropy
    order = torch.sort(values, dim=1, stable=True).indices  # NaN last, -0 and 0 alike
    count = (~entropy.isnan()).sum(1).clamp(max=n)
    index = torch.full((len(entropy), n), -1, device=entropy.device)
    kept = min(n, entropy.shape[1])
    index[:, :kept] = order[:, :kept]
    places = torch.arange(n, device=entropy.device)
    return torch.where(places < count[:, None], index, -1), count


def sample_patches_reference(
    entropy: Tensor,
    confidence: Tensor,
    seed: Tensor,
    n: int,
    stride: list[int],
    strategy: str,
    replacement: bool,
    floor: float,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index, corners, parity and count, as sample_patches returns them."""
    batch, channels, *windows = confidence.shape
    flat = (batch * channels, math.prod(windows))
    entropy, confidence = entropy.expand_as(confidence).reshape(flat), confidence.reshape(flat)
    if confidence.shape[1] == 0:
        index = torch.full((batch * channels, n), -1, device=entropy.device)
        count = torch.zeros(batch * channels, dtype=torch.long, device=entropy.device)
    elif strategy in ("lowest", "highest"):
        index, count = _first(entropy, n, strategy == "highest")
    else:
        index, count = _draw(_weights(entropy, strategy, floor, threshold), n, replacement, seed)
    drawn, safe = index >= 0, index.clamp(min=0)
    parity = torch.zeros_like(drawn)
    if confidence.shape[1] > 0:
        chance = confidence.gather(1, safe).double().nan_to_num(0).clamp(0, 1)
        parity = drawn & (_random(seed, safe, 1)[0] < (chance * 2**32 + 0.5).floor().long())
    corners: list[Tensor] = []
    left = safe
    for size, step in zip(reversed(windows), reversed(stride), strict=True):
        corners.insert(0, torch.where(drawn, left % max(size, 1) * step, -1))
        left = left // max(size, 1)
    shape = (batch, channels, n)
    return (
        index.view(shape),
        torch.stack(corners, -1).view(*shape, len(stride)),
        parity.view(shape),
        count.view(batch, channels),
    )
