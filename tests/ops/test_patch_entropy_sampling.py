# SPDX-License-Identifier: BSD-3-Clause
"""sample_patches draws what it says, by chance and in order, and the same on every device."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseg import sample_patches
from fastseg.ops.reference.patch_entropy_sampling import multiply_high, philox

from .patch_entropy_cases import DEVICES, implementations

NAN = math.nan
FULL = 0xFFFFFFFF
KNOWN = [  # counter, key, words: the vectors published with Random123, kat_vectors, philox4x32 10
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL, FULL, FULL, FULL), -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    found = philox(torch.tensor(key), [torch.tensor(word) for word in counter])
    assert [word.item() for word in found] == list(words)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1))
def test_multiply_high(word, factor):
    parts = torch.tensor(word >> 32), torch.tensor(word & FULL), torch.tensor(factor)
    assert multiply_high(*parts).item() == word * factor >> 64


def chi_square(observed, expected):
    """Its distance from what is expected, in standard deviations of it."""
    used = expected > 0
    assert (observed[~used] == 0).all()
    statistic = ((observed[used] - expected[used]) ** 2 / expected[used]).sum().item()
    freedom = int(used.sum()) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def some_scores(shape=(1, 1, 13, 13), seed=0):
    draw = torch.Generator().manual_seed(seed)
    entropy = 1.05 * torch.rand(shape, generator=draw)
    entropy.view(-1)[::17] = NAN
    return entropy, torch.rand(shape, generator=draw)


@pytest.mark.parametrize("floor", [1e-3, 0.2])
@implementations
def test_frequencies(impl, device, floor):
    """10^5 draws from 169 windows."""
    entropy, confidence = some_scores()
    samples = sample_patches(
        entropy.to(device), confidence.to(device), 100_000, seed=11, floor=floor, impl=impl
    )
    weights = torch.where(entropy.isnan(), 0, (1 - entropy).clamp(min=floor)).flatten().double()
    observed = samples.index.cpu().flatten().bincount(minlength=169).double()
    assert abs(chi_square(observed, weights / weights.sum() * 100_000)) < 4
    assert samples.count.item() == 100_000


@implementations
def test_parity_frequencies(impl, device):
    """10^5 windows, each with its own coin, in five groups of equal confidence; a window has one parity."""
    chance = torch.tensor([0.0, 0.1, 0.5, 0.93, 1.0]).repeat(200)
    confidence = chance.expand(100, 1, 1000).to(device)
    samples = sample_patches(
        torch.zeros_like(confidence), confidence, 1000, seed=5, strategy="lowest", impl=impl
    )
    positive = samples.parity.cpu().view(100, 200, 5).double().sum((0, 1))
    assert positive[0] == 0
    assert positive[4] == 20_000
    for group in (1, 2, 3):
        p = chance[group].item()
        assert abs(positive[group] - 20_000 * p) < 4 * math.sqrt(20_000 * p * (1 - p))
    again = sample_patches(torch.zeros_like(confidence), confidence, 3000, seed=5, impl=impl)
    assert torch.equal(again.parity, samples.parity.gather(2, again.index))


@implementations
def test_without_replacement(impl, device):
    """The first of two draws by the weights; the second by those that are left; 10^4 rows."""
    weights = torch.tensor([0.5, 0.3, 0.2, 0.0])
    entropy = (1 - weights).expand(100, 100, 4).to(device)
    index = (
        sample_patches(entropy, entropy, 4, seed=3, replacement=False, floor=0, impl=impl)
        .index.cpu()
        .view(-1, 4)
    )
    assert (index[:, 3] == -1).all()
    pairs = torch.zeros(3, 3)
    for first, second in index[:, :2].tolist():
        pairs[first, second] += 1
    expected = torch.tensor(
        [[weights[i] * weights[j] / (1 - weights[i]) if i != j else 0 for j in range(3)] for i in range(3)]
    )
    assert abs(chi_square(pairs.flatten().double(), 1e4 * expected.flatten().double())) < 4
    assert (index[:, :3].sort(dim=1).values == torch.arange(3)).all()


@implementations
def test_threshold(impl, device):
    entropy = torch.tensor([0.1, 0.5, 0.50001, NAN, 0.3]).view(1, 1, -1).to(device)
    options = {"strategy": "threshold", "threshold": 0.5, "impl": impl}
    index = sample_patches(entropy, entropy, 30_000, seed=2, **options).index.cpu()
    counts = index.flatten().bincount(minlength=5)
    assert counts[[2, 3]].tolist() == [0, 0]
    assert abs(chi_square(counts[[0, 1, 4]].double(), torch.full((3,), 1e4).double())) < 4


ORDER = {  # strategy, entropies, indices of four draws
    "lowest": ("lowest", [0.5, 0.1, NAN, 0.1, 0.9], [1, 3, 0, 4]),
    "highest": ("highest", [0.5, 0.1, NAN, 0.5, 0.9], [4, 0, 3, 1]),
    "ties": ("lowest", [0.0, -0.0, 0.0, 1.0, -0.0], [0, 1, 2, 4]),
    "few": ("highest", [NAN, 0.2, NAN, NAN, math.inf], [4, 1, -1, -1]),
    "none": ("lowest", [NAN] * 5, [-1] * 4),
}


@pytest.mark.parametrize("name", ORDER)
@implementations
def test_order(name, impl, device):
    strategy, entropy, expected = ORDER[name]
    entropy = torch.tensor(entropy, device=device).view(1, 1, -1)
    samples = sample_patches(
        entropy, torch.ones_like(entropy), 4, seed=0, stride=3, strategy=strategy, impl=impl
    )
    assert samples.index.flatten().tolist() == expected
    assert samples.corners.flatten().tolist() == [3 * i if i >= 0 else -1 for i in expected]
    assert samples.parity.flatten().tolist() == [i >= 0 for i in expected]
    assert samples.count.item() == sum(i >= 0 for i in expected)


@pytest.mark.parametrize("replacement", [True, False])
@implementations
def test_nothing_to_draw(impl, device, replacement):
    entropy = torch.full((1, 2, 3, 3), NAN, device=device)
    entropy[0, 1, 2, 1] = 0.5
    samples = sample_patches(entropy, entropy, 3, seed=0, stride=2, replacement=replacement, impl=impl)
    assert samples.count.tolist() == [[0, 3 if replacement else 1]]
    assert (samples.index[0, 0] == -1).all()
    assert samples.corners[0, 1, 0].tolist() == [4, 2]
    certain = torch.ones_like(entropy)
    assert sample_patches(certain, certain, 2, seed=0, floor=0, impl=impl).count.tolist() == [[0, 0]]


@implementations
def test_corners_in_three_axes(impl, device):
    entropy = torch.ones(1, 1, 3, 4, 5, device=device)
    entropy[0, 0, 2, 1, 3] = 0
    samples = sample_patches(entropy, entropy, 1, seed=0, stride=(2, 7, 10), strategy="lowest", impl=impl)
    assert samples.index.item() == 2 * 20 + 1 * 5 + 3
    assert samples.corners.flatten().tolist() == [4, 7, 30]


@implementations
def test_seed(impl, device):
    entropy, confidence = (score.to(device) for score in some_scores((2, 2, 200)))
    draws = [sample_patches(entropy, confidence, 50, seed=seed, impl=impl) for seed in (1, 2**40 + 1, -1, 1)]
    draws.append(sample_patches(entropy, confidence, 50, seed=torch.tensor([1], device=device), impl=impl))
    for again in draws[3:]:
        assert all(torch.equal(a, b) for a, b in zip(again, draws[0], strict=True))
    for other in draws[1:3]:
        assert (other.index != draws[0].index).sum() > 150
    assert len({tuple(row) for row in draws[0].index.view(4, -1).tolist()}) == 4  # rows differ


def same(first, second):
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


SETTINGS = [
    {"strategy": strategy, "replacement": replacement, "threshold": 0.6 if strategy == "threshold" else None}
    for strategy in ("probabilistic", "threshold", "lowest", "highest")
    for replacement in (True, False)
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: f"{o['strategy']}-{o['replacement']}")
@pytest.mark.parametrize(
    ("windows", "dtype"), [((1,), torch.float32), ((13, 13), torch.float64), ((2, 3, 200), torch.float32)]
)
@pytest.mark.parametrize(("impl", "device"), [("fused", device) for device in DEVICES])
def test_the_same_windows_everywhere(impl, device, windows, dtype, options):
    """To the last bit, with ties, and with more draws than windows."""
    entropy, confidence = some_scores((1, 2, *windows), seed=8)
    entropy = ((20 * entropy).round() / 20).to(dtype)
    for n in (1, 30, 200) if len(windows) < 3 else (30,):
        expected = sample_patches(entropy, confidence, n, seed=77, stride=3, impl="reference", **options)
        found = sample_patches(
            entropy.to(device), confidence.to(device), n, seed=77, stride=3, impl=impl, **options
        )
        assert same(found, expected)


def test_one_entropy_for_all_channels():
    entropy, confidence = some_scores((2, 3, 50))
    for impl in ("fused", "reference"):
        found = sample_patches(entropy[:, :1], confidence, 20, seed=1, impl=impl)
        assert same(
            found, sample_patches(entropy[:, :1].expand(-1, 3, -1), confidence, 20, seed=1, impl=impl)
        )


@given(st.data())
def test_fused_is_the_reference(data):
    windows = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    shape = (data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3)), *windows)
    entropy, confidence = some_scores(shape, seed=data.draw(st.integers(0, 99)))
    options = dict(data.draw(st.sampled_from(SETTINGS)))
    options |= {
        "floor": data.draw(st.sampled_from([0.0, 1e-3, 1.0])),
        "seed": data.draw(st.integers(-(2**63), 2**63 - 1)),
    }
    n = data.draw(st.integers(1, 60))
    found = [sample_patches(entropy, confidence, n, impl=impl, **options) for impl in ("fused", "reference")]
    assert same(*found)
