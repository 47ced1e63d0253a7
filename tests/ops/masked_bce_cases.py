# SPDX-License-Identifier: BSD-3-Clause
"""Random arguments for the tests of masked_weighted_bce, and the implementations they run."""

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
implementations = pytest.mark.parametrize(
    ("impl", "device"), [(impl, device) for device in DEVICES for impl in ("fused", "reference")]
)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def make_case(shape, dtype, target, mask, weight, pos_weight, layout, device="cpu", seed=0):
    """Random arguments of masked_weighted_bce."""
    draw = torch.Generator().manual_seed(seed)
    shared = (shape[0], 1, *shape[2:])
    target_values = torch.rand(shape, generator=draw)
    if target != "soft":
        target_values = (target_values > 0.5).to(
            {"bool": torch.bool, "uint8": torch.uint8}.get(target, target)
        )
    case = {"logits": (4 * torch.randn(shape, generator=draw)).to(dtype), "target": target_values}
    if mask:
        codes = torch.randint(0, 4, shape if mask == "full" else shared, generator=draw)
        case["mask"] = codes.bool() if mask == "bool" else codes.to(torch.uint8)
    if weight:
        values = torch.rand(shape if weight == "full" else shared, generator=draw)
        case["weight"] = values.to(torch.float64 if weight == "full" else torch.bfloat16)
    if pos_weight:
        case["pos_weight"] = torch.rand(shape[1], generator=draw) + 0.5
    for name in ("logits", "target") if layout == "target differs" else case:
        if layout == "channels_last" and len(shape) > 3 and name != "pos_weight":
            case[name] = case[name].to(memory_format=CHANNELS_LAST[len(shape)])
        elif layout == "strided" and name != "pos_weight":
            case[name] = (
                torch.stack([case[name], case[name]], -1)[..., 0].transpose(0, 1).contiguous().transpose(0, 1)
            )
    if layout == "target differs" and len(shape) > 3:
        case["target"] = case["target"].to(memory_format=CHANNELS_LAST[len(shape)])
    return {name: value.to(device) for name, value in case.items()}
