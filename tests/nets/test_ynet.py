# SPDX-License-Identifier: BSD-3-Clause
"""Attention U-Net and Y-Net: parameter counts, gates, and what reaches which part."""

from __future__ import annotations

import pytest
import torch

from fastseg.nets import AttentionUNet, AttentionYNet
from fastseg.nets.ynet import AttentionGate


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_published_networks() -> None:
    assert parameters(AttentionUNet()) == 1_985_061
    ynet = AttentionYNet()
    assert parameters(ynet) == 10_199_558
    assert parameters(ynet.encoder) + parameters(ynet.segmentation) == 7_935_045
    assert parameters(ynet.reconstruction) == 2_264_513


@pytest.mark.parametrize("gate", ["up", "skip"])
def test_gate_weights_one_side(gate: str) -> None:
    module = AttentionGate(3, gate).double()
    skip, up = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    hidden = torch.einsum("oc,bchw->bohw", module.skip.weight[:, :, 0, 0], skip)
    hidden = hidden + torch.einsum("oc,bchw->bohw", module.up.weight[:, :, 0, 0], up)
    hidden = (hidden + (module.skip.bias + module.up.bias)[:, None, None]).clamp(min=0)
    psi = torch.einsum("c,bchw->bhw", module.psi.weight[0, :, 0, 0], hidden) + module.psi.bias
    psi = (1 / (1 + torch.exp(-psi)))[:, None]
    out_skip, out_up = module(skip, up)
    torch.testing.assert_close(out_skip, skip * psi if gate == "skip" else skip)
    torch.testing.assert_close(out_up, up * psi if gate == "up" else up)


def test_reconstruction_has_no_skips_and_segmentation_has() -> None:
    torch.manual_seed(0)
    network = AttentionYNet(width=4).eval()
    features = network.encoder(torch.randn(1, 1, 32, 48))
    assert [tuple(f.shape[1:]) for f in features] == [
        (4, 32, 48), (8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)
    ]  # fmt: skip
    changed = [f + 1 for f in features[:-1]] + [features[-1]]
    assert torch.equal(network.reconstruction(features), network.reconstruction(changed))
    for level in range(4):
        some = list(features)
        some[level] = changed[level]
        assert not torch.equal(network.segmentation(features), network.segmentation(some))


@pytest.mark.parametrize("kind", [AttentionUNet, AttentionYNet])
def test_shapes_and_refusals(kind: type[torch.nn.Module]) -> None:
    network = kind(2, 3, width=2)
    outputs = network(torch.randn(2, 2, 16, 32))
    if kind is AttentionYNet:
        assert outputs[1].shape == (2, 2, 16, 32)
        outputs = outputs[0]
    assert outputs.shape == (2, 3, 16, 32)
    with pytest.raises(ValueError, match=r"multiples of 16, got \(1, 2, 24, 16\)"):
        network(torch.zeros(1, 2, 24, 16))
