# SPDX-License-Identifier: BSD-3-Clause
"""extract_patches copies what it says, and its gradient goes back there."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseg import extract_patches

from .patch_entropy_cases import DEVICES, devices, implementations

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.int16, torch.int64, torch.bool]


def make_volume(shape, dtype, device="cpu", seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=draw).to(dtype).to(device)


def plain(volume, corners, patch):
    result = torch.zeros(*corners.shape[:2], volume.shape[1], *patch, dtype=volume.dtype)
    for b in range(corners.shape[0]):
        for i, corner in enumerate(corners[b].tolist()):
            if all(0 <= at <= n - p for at, n, p in zip(corner, volume.shape[2:], patch, strict=True)):
                cut = tuple(slice(at, at + p) for at, p in zip(corner, patch, strict=True))
                result[b, i] = volume[(b, slice(None), *cut)]
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 3, 6, 7, 40), (2, 3, 16)), ((1, 2, 9, 10), (4, 3)), ((3, 1, 12), (5,))]
)
@implementations
def test_definition_as_a_loop(impl, device, shape, patch, dtype):
    volume = make_volume(shape, dtype, device)
    draw = torch.Generator().manual_seed(3)
    corners = torch.stack(
        [
            torch.randint(-2, n - p + 3, (shape[0], 20), generator=draw)
            for n, p in zip(shape[2:], patch, strict=True)
        ],
        -1,
    )
    corners[:, 0] = 0
    corners[:, 1] = torch.tensor(shape[2:]) - torch.tensor(patch)
    corners[:, 2] = 2**33
    found = extract_patches(volume, corners.to(device), patch, impl=impl)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found.cpu(), plain(volume.cpu(), corners, patch))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded", "part"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.complex128])
@devices
def test_any_strides(device, dtype, layout):
    volume = make_volume((2, 3, 8, 9), dtype, device)
    volume = {
        "channels_last": lambda: volume.to(memory_format=torch.channels_last),
        "transposed": lambda: volume.transpose(2, 3),
        "expanded": lambda: volume[:, :1].expand(-1, 3, -1, -1),
        "part": lambda: volume[:, :, :, ::2],
    }[layout]()
    corners = torch.tensor([[[0, 0], [1, 1]], [[3, 0], [4, 1]]], device=device)
    found = extract_patches(volume, corners, (4, 4), impl="fused")
    assert torch.equal(found.cpu(), plain(volume.cpu(), corners.cpu(), (4, 4)))


@implementations
def test_axes_of_corners(impl, device):
    volume = make_volume((2, 3, 9, 9), torch.float32, device)
    corners = torch.randint(0, 4, (2, 4, 5, 2), device=device)
    found = extract_patches(volume, corners.int(), 5, impl=impl)
    assert found.shape == (2, 4, 5, 3, 5, 5)
    assert torch.equal(found.flatten(1, 2), extract_patches(volume, corners.flatten(1, 2), 5, impl=impl))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("number", [3, 300])
@implementations
def test_gradient(impl, device, number, dtype):
    """Integers, so that sums are exact in any order; patches overlap, some stick out."""
    volume = make_volume((2, 2, 5, 6, 9), torch.float64)
    corners = torch.randint(-1, 5, (2, number, 3), generator=torch.Generator().manual_seed(1))
    weights = torch.randint(
        -1, 2, (2, number, 2, 2, 3, 4), generator=torch.Generator().manual_seed(2)
    ).double()
    expected = torch.zeros_like(volume)
    for b in range(2):
        for i, (z, y, x) in enumerate(corners[b].tolist()):
            if min(z, y, x) >= 0 and z <= 3 and y <= 3 and x <= 5:
                expected[b, :, z : z + 2, y : y + 3, x : x + 4] += weights[b, i]
    leaf = volume.to(device, dtype).requires_grad_()
    patches = extract_patches(leaf, corners.to(device), (2, 3, 4), impl=impl)
    (gradient,) = torch.autograd.grad((patches * weights.to(device, dtype)).sum(), leaf)
    assert torch.equal(gradient.cpu().double(), expected)


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_nothing_to_cut(impl):
    volume = torch.randn(2, 3, 6, 6, requires_grad=True)
    patches = extract_patches(volume, torch.zeros(2, 0, 2, dtype=torch.long), 3, impl=impl)
    assert patches.shape == (2, 0, 3, 3, 3)
    assert (torch.autograd.grad(patches.sum(), volume)[0] == 0).all()


@given(st.data())
def test_fused_is_the_reference(data):
    axes = data.draw(st.integers(1, 3))
    spatial = [data.draw(st.integers(1, 20)) for _ in range(axes)]
    patch = [data.draw(st.integers(1, n)) for n in spatial]
    shape = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), *spatial)
    volume = make_volume(shape, torch.float64, seed=data.draw(st.integers(0, 9))).requires_grad_()
    corners = torch.randint(-1, 6, (shape[0], data.draw(st.integers(0, 5)), axes))
    results = []
    for impl in ("fused", "reference"):
        patches = extract_patches(volume, corners, patch, impl=impl)
        results.append((patches, *torch.autograd.grad((patches * patches).sum(), volume)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_more_than_2_31_elements(device):
    volume = torch.zeros(1, 2, 1025, 1024, 1024, dtype=torch.uint8, device=device)
    volume[0, 1, -1, -1, -1] = 7
    corners = torch.tensor([[[1021, 1020, 1020]]], device=device)
    assert extract_patches(volume, corners, 4, impl="fused")[0, 0, 1, -1, -1, -1].item() == 7
