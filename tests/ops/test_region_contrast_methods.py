# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast as the losses of published methods, and beside other people's code where that is installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from fastseg import region_contrast, region_contrast_rows

TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(11)


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_boserup_and_selvan(draw, impl):
    """Per anchor -sum_p s(a, p) + |P| logsumexp_q s(a, q), patches compared by their mean squared difference."""
    images, channels, size = 2, 3, 3 * 5 * 5
    positives = [torch.rand(7 + k, size, generator=draw, dtype=torch.float64) for k in range(channels)]
    negatives = [torch.rand(9 - k, size, generator=draw, dtype=torch.float64) for k in range(channels)]
    for tensor in (*positives, *negatives):
        tensor.requires_grad_()
    chosen = [torch.randint(len(p), (10,), generator=draw) for p in positives]

    def s(u, v):
        return -(u[:, None] - v[None]).square().mean(-1)

    def closed_form(anchors, p, q):
        each = -s(anchors, p).sum(1) + len(p) * torch.logsumexp(s(anchors, q), 1)
        return each.sum() / (100 * images)

    def ours(anchors, p, q):
        rows = region_contrast_rows(
            anchors,
            torch.cat([p, q]),
            anchor_ids=torch.zeros(len(anchors), dtype=torch.int64),
            bank_ids=torch.cat([torch.zeros(len(p)), torch.ones(len(q))]).long(),
            temperature=1.0,
            similarity="neg_mse",
            denominator="negatives",
            impl=impl,
        )
        return (rows.loss * rows.positives).sum() / (100 * images)

    results = []
    for loss in (closed_form, ours):
        total = 0
        for k in range(channels):
            anchors = positives[k][chosen[k]]
            others = torch.cat([positives[other] for other in range(channels) if other != k])
            total = total + loss(anchors, positives[k], negatives[k]) + loss(anchors, positives[k], others)
        results.append((total.detach(), *torch.autograd.grad(total, [*positives, *negatives])))
    for value, truth in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(value, truth, **TOLERANCE)


def test_identical_patches():
    patches = torch.full((30, 12), 0.3, dtype=torch.float64)
    ids = torch.arange(30) % 3
    rows = region_contrast_rows(
        patches[:10],
        patches,
        anchor_ids=torch.zeros(10, dtype=torch.int64),
        bank_ids=ids,
        temperature=1.0,
        similarity="neg_mse",
        denominator="negatives",
    )
    total = (rows.loss * rows.positives).sum() / 100
    torch.testing.assert_close(total, 10 * torch.tensor(20.0, dtype=torch.float64).log() / 10, **TOLERANCE)


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_regions_of_two_views(draw, impl):
    """InfoNCE of USRegCon's kind: the positive is the same region in the other view, all else is negative."""
    regions, size, tau = 12, 8, 0.2
    views = [
        torch.randn(regions, size, generator=draw, dtype=torch.float64, requires_grad=True) for _ in "ab"
    ]
    present = torch.rand(regions, generator=draw) > 0.3

    v = [F.normalize(view[present], dim=1) for view in views]
    expected = 0
    for one, other in ((0, 1), (1, 0)):
        across, within = v[one] @ v[other].T / tau, v[one] @ v[one].T / tau
        logits = torch.cat([across, within.masked_fill(torch.eye(len(within)).bool(), -torch.inf)], 1)
        expected = expected + F.cross_entropy(logits, torch.arange(len(logits))) / 2

    ids = torch.where(present, torch.arange(regions), -1)
    found = region_contrast(torch.cat(views), anchor_ids=torch.cat([ids, ids]), temperature=tau, impl=impl)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    for value, truth in zip(
        torch.autograd.grad(found, views), torch.autograd.grad(expected, views), strict=True
    ):
        torch.testing.assert_close(value, truth, **TOLERANCE)

    same = torch.ones(10, 4, dtype=torch.float64)
    loss = region_contrast(same, anchor_ids=torch.arange(10) % 5, impl=impl)
    torch.testing.assert_close(loss, torch.tensor(1.0 + 8).log().double(), **TOLERANCE)


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_patch_nce(draw, impl):
    """PatchNCE: a query's positive is the key at its place, its negatives the other keys of the same image."""
    images, places, size, tau = 3, 16, 8, 0.07
    queries, keys = (torch.randn(images, places, size, generator=draw, dtype=torch.float64) for _ in range(2))
    queries.requires_grad_()
    logits = torch.einsum("bid,bjd->bij", F.normalize(queries, dim=2), F.normalize(keys, dim=2)) / tau
    expected = F.cross_entropy(logits.flatten(0, 1), torch.arange(places).repeat(images))
    ids = torch.arange(images * places)
    groups = ids // places
    found = region_contrast(
        queries.flatten(0, 1),
        keys.flatten(0, 1),
        anchor_ids=ids,
        bank_ids=ids,
        anchor_groups=groups,
        bank_groups=groups,
        temperature=tau,
        impl=impl,
    )
    torch.testing.assert_close(found, expected, **TOLERANCE)
    gradients = (torch.autograd.grad(loss, queries)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients, **TOLERANCE)


def compare_with(peer, ours, inputs):
    for loss in (peer(*inputs), ours(*inputs)):
        yield loss.detach(), *torch.autograd.grad(loss, inputs)


def test_supcon_of_pytorch_metric_learning(draw):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    features = torch.randn(60, 16, generator=draw, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 7, (60,), generator=draw)
    peer = losses.SupConLoss(temperature=0.3)
    theirs, ours = compare_with(
        lambda x: peer(x, ids), lambda x: region_contrast(x, anchor_ids=ids, temperature=0.3), [features]
    )
    for value, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, truth, **TOLERANCE)


def test_ntxent_of_pytorch_metric_learning(draw):
    """NTXentLoss has one positive in each denominator: with pairs, as here, that is denominator="all"."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    features = torch.randn(40, 16, generator=draw, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(40) % 20
    peer = losses.NTXentLoss(temperature=0.2)
    theirs, ours = compare_with(
        lambda x: peer(x, ids), lambda x: region_contrast(x, anchor_ids=ids, temperature=0.2), [features]
    )
    for value, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, truth, **TOLERANCE)


@pytest.fixture
def detcon():
    """Lightly's file of this loss alone: the package would import torchvision."""
    found = importlib.util.find_spec("lightly")
    if found is None:
        pytest.skip("lightly is not installed")
    folder = Path(found.origin).parent

    def load(name, file):
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    package, tools = ModuleType("lightly"), ModuleType("lightly.utils")
    package.utils, tools.dist = tools, load("lightly.utils.dist", folder / "utils/dist.py")
    modules = {"lightly": package, "lightly.utils": tools, "lightly.utils.dist": tools.dist}
    with patch.dict(sys.modules, modules):
        return load("lightly.loss.detcon_loss", folder / "loss/detcon_loss.py").DetConSLoss


def test_detcon_of_lightly(detcon, draw):
    """The positive is the same region of the same image in the other view; every region occurs once per view.

    Its mean runs over all anchors of a view, also those whose region the other view lacks.
    """
    images, regions, size = 3, 6, 8
    views = [torch.randn(images, regions, size, generator=draw, dtype=torch.float64) for _ in "ab"]
    for view in views:
        view.requires_grad_()
    masks = [torch.stack([torch.randperm(9, generator=draw)[:regions] for _ in range(images)]) for _ in "ab"]
    peer = detcon(temperature=0.2, gather_distributed=False)

    def ours(*views):
        image = torch.arange(images)[:, None]
        ids = torch.cat([(image * 9 + mask).flatten() for mask in masks])
        rows = torch.cat([view.flatten(0, 1) for view in views])
        return region_contrast(rows, anchor_ids=ids, temperature=0.2, reduction="sum") / (images * regions)

    theirs, found = compare_with(lambda *views: peer(*views, *masks), ours, views)
    for value, truth in zip(found, theirs, strict=True):
        torch.testing.assert_close(value, truth, **TOLERANCE)
