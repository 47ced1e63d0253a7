# SPDX-License-Identifier: BSD-3-Clause
"""The loss of region contrast pretraining: against plain PyTorch, and what must hold of it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseg import soft_region_pool
from fastseg.nn import RegionPretext, RegionView, grey_loss
from tests.gloo import in_processes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import region_pretext_plain as plain

EXACT = {"rtol": 1e-9, "atol": 1e-11}
SHAPES = [(3, 9, 7), (2, 4, 6, 5)]


def views(shape: tuple[int, ...], k: int = 5, d: int = 6, seed: int = 0) -> list[RegionView]:
    """Two views (B, *S), float64, that ask for gradients."""
    torch.manual_seed(seed)
    batch, *space = shape
    found = []
    for _ in range(2):
        logits = torch.randn(batch, k, *space, dtype=torch.float64, requires_grad=True)
        embedding = torch.randn(batch, d, *space, dtype=torch.float64, requires_grad=True)
        found.append(RegionView(logits, embedding, torch.rand(batch, 1, *space, dtype=torch.float64)))
    return found


def hard(ids: Tensor, k: int) -> Tensor:
    """Logits (B, K, *S) whose softmax is 1 at the ids (B, *S)."""
    return torch.nn.functional.one_hot(ids, k).movedim(-1, 1).double() * 2000 - 1000


def gradients(loss: Tensor, pair: list[RegionView]) -> list[Tensor]:
    wanted = [t for view in pair for t in (view.regions, view.embedding) if t is not None]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("negatives", ["batch", "image"])
def test_is_the_plain_loss(shape: tuple[int, ...], negatives: str) -> None:
    pair = views(shape)
    terms = RegionPretext(grey_weight=0.7, beta=0.5, negatives=negatives, least_share=0.0)(*pair)
    expected = plain.loss(
        [(v.regions, v.embedding, v.grey) for v in pair],
        beta=0.5,
        grey_weight=0.7,
        same_image=negatives == "image",
    )
    torch.testing.assert_close(terms.loss, expected, **EXACT)
    for found, truth in zip(gradients(terms.loss, pair), gradients(expected, pair), strict=True):
        torch.testing.assert_close(found, truth, **EXACT)


def test_masses_are_the_voxels_and_variances_add_up() -> None:
    view = views((2, 8, 8))[0]
    assert view.grey is not None
    found = soft_region_pool(view.grey, view.regions, variance=True, from_logits=True)
    torch.testing.assert_close(found.mass.sum(1), torch.full((2,), 64.0, dtype=torch.float64))
    within, _ = grey_loss(found.mass, found.mean, found.variance)
    share, whole = found.mass / 64, view.grey.mean((1, 2, 3))
    between = (share * (found.mean[..., 0] - whole[:, None]).square()).sum(1)
    torch.testing.assert_close(
        view.grey.var((1, 2, 3), correction=0).mean(), within + between.mean(), **EXACT
    )


def test_piecewise_constant_images_have_no_grey_loss_once_gaps_are_wide() -> None:
    ids = torch.arange(64).view(1, 8, 8) // 16
    for gap, expected in ((0.2, 0.0), (0.05, None)):
        grey = ids.double()[:, None] * gap
        view = RegionView(hard(ids, 4), torch.randn(1, 3, 8, 8).double(), grey)
        terms = RegionPretext(margin=0.2)(view, view)
        assert terms.within.abs() < 1e-15
        if expected is None:  # gaps of 1, 2 and 3 times 0.05, of six pairs, both ways round
            shortfall = 3 * 0.15**2 + 2 * 0.1**2 + 0.05**2
            expected = 2 * shortfall / 12
        assert terms.between == pytest.approx(expected, abs=1e-12)


def test_an_empty_region_adds_no_loss_gradient_or_nan() -> None:
    full = views((2, 8, 8), k=4)
    wide = []
    for view in full:
        empty = torch.full_like(view.regions[:, :1], -torch.inf)
        logits = torch.cat([view.regions.detach(), empty], 1).requires_grad_()
        wide.append(RegionView(logits, view.embedding, view.grey))
    criterion = RegionPretext(grey_weight=1.0)
    few, many = criterion(*full), criterion(*wide)
    torch.testing.assert_close(many.semantic, few.semantic, **EXACT)
    torch.testing.assert_close(many.within, few.within, **EXACT)
    # The mean over pairs is over those of K regions, as the formula has it.
    torch.testing.assert_close(many.between * 5 * 4, few.between * 4 * 3, **EXACT)
    assert not many.used[:, 4].any()
    found = gradients(many.loss, wide)
    assert all(grad.isfinite().all() for grad in found)
    assert not found[0][:, 4].any()
    assert few.used.all()


@pytest.mark.parametrize(("negatives", "others"), [("batch", 2 * 3 * 5 - 2), ("image", 2 * 5 - 2)])
def test_equal_vectors_give_the_log_of_one_and_the_negatives(negatives: str, others: int) -> None:
    pair = [
        RegionView(v.regions, torch.ones_like(v.embedding), v.grey)
        for v in views((3, 8, 8))
        if v.embedding is not None
    ]
    terms = RegionPretext(negatives=negatives)(*pair)
    assert terms.semantic == pytest.approx(math.log(1 + others), rel=1e-9)


def test_regions_may_be_permuted_and_views_exchanged() -> None:
    first, second = views((2, 8, 8))
    order = torch.randperm(5)
    terms = RegionPretext()(first, second)
    permuted = RegionPretext()(*(v._replace(regions=v.regions[:, order]) for v in (first, second)))
    torch.testing.assert_close(permuted.loss, terms.loss, **EXACT)
    torch.testing.assert_close(RegionPretext()(second, first).loss, terms.loss, **EXACT)
    # In one view alone it is another pairing.
    other = RegionPretext()(first, second._replace(regions=second.regions[:, order.roll(1)]))
    assert not torch.isclose(other.semantic, terms.semantic)


def test_small_regions_take_no_part() -> None:
    ids = torch.zeros(1, 10, 10, dtype=torch.long)
    ids[0, 0, 0], ids[0, 5:] = 1, 2
    view = RegionView(hard(ids, 3), torch.randn(1, 4, 10, 10).double(), torch.rand(1, 1, 10, 10).double())
    assert RegionPretext(least_share=0.02)(view, view).used.tolist() == [[True, False, True]]
    assert RegionPretext(least_share=0.005)(view, view).used.tolist() == [[True, True, True]]


def test_given_regions_are_those_of_a_hard_assignment() -> None:
    torch.manual_seed(1)
    ids = torch.randint(0, 4, (2, 8, 8))
    embedding = [torch.randn(2, 3, 8, 8).double().requires_grad_() for _ in range(2)]
    criterion = RegionPretext(grey_weight=0.0)
    given = criterion(*(RegionView(ids, e) for e in embedding), num_regions=4)
    soft = criterion(*(RegionView(hard(ids, 4), e) for e in embedding))
    torch.testing.assert_close(given.loss, soft.loss, **EXACT)
    torch.testing.assert_close(given.share, soft.share, **EXACT)
    outside = torch.where(ids == 3, -1, ids)
    assert not criterion(*(RegionView(outside, e) for e in embedding), num_regions=4).used[:, 3].any()


def test_terms_of_no_weight_need_nothing() -> None:
    first, second = views((2, 8, 8))
    whole = RegionPretext()(first, second)
    grey = RegionPretext(semantic_weight=0.0)(*(v._replace(embedding=None) for v in (first, second)))
    torch.testing.assert_close(grey.loss, whole.within + whole.between, **EXACT)
    assert grey.vectors is None
    semantic = RegionPretext(grey_weight=0.0)(*(v._replace(grey=None) for v in (first, second)))
    torch.testing.assert_close(semantic.loss, whole.semantic, **EXACT)


def test_remembered_regions_are_negatives_of_all() -> None:
    pair = views((2, 8, 8))
    memory = torch.nn.functional.normalize(torch.randn(7, 6).double(), dim=1)
    ids = torch.tensor(
        [0, 3, -1, 5, -1, 2, 9]
    )  # some as those of the batch: they are of other images all the same
    terms = RegionPretext()(*pair, memory=memory, memory_ids=ids)
    plainly = RegionPretext()(*pair)
    assert plainly.vectors is not None
    rows = plainly.vectors.flatten(0, 2)
    scores = torch.cat([rows @ rows.T, rows @ memory[ids >= 0].T], 1) / 0.2
    scores[:, : len(rows)].fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(len(rows)).roll(len(rows) // 2))
    torch.testing.assert_close(terms.semantic, expected, **EXACT)


def rank_share(rank: int, pair: list[list[Tensor]], memory: Tensor, options: dict[str, Any]) -> Any:
    mine = [
        RegionView(*(t.chunk(2)[rank].clone().requires_grad_(i < 2) for i, t in enumerate(v))) for v in pair
    ]
    ids = torch.zeros(len(memory), dtype=torch.long)
    remembered = {"memory": memory, "memory_ids": ids} if options.get("negatives") != "image" else {}
    terms = RegionPretext(across_ranks=True, **options)(*mine, **remembered)
    return terms.loss.detach(), gradients(terms.loss, mine)


@pytest.mark.long
@pytest.mark.parametrize("negatives", ["batch", "image"])
def test_two_processes_have_the_loss_of_one(tmp_path: Path, negatives: str) -> None:
    pair = views((4, 6, 6))
    memory = torch.nn.functional.normalize(torch.randn(9, 6).double(), dim=1)
    remembered = {"memory": memory, "memory_ids": torch.zeros(9, dtype=torch.long)}
    # Regions of the second half alone go below this: the processes differ in how many there are.
    options = {"negatives": negatives, "least_share": 0.18}
    terms = RegionPretext(**options)(*pair, **(remembered if negatives == "batch" else {}))
    assert terms.used[:2].sum() != terms.used[2:].sum()
    plain_pair = [[t.detach() for t in v if t is not None] for v in pair]
    parts = in_processes(rank_share, 2, tmp_path, plain_pair, memory, options)
    torch.testing.assert_close(sum(loss for loss, _ in parts) / 2, terms.loss.detach(), **EXACT)
    for number, truth in enumerate(gradients(terms.loss, pair)):
        joined = torch.cat([grads[number] for _, grads in parts]) / 2
        torch.testing.assert_close(joined, truth, **EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": "all"}, "negatives must be one of batch, image, got 'all'"),
        ({"temperature": 0.0}, "temperature must be finite and above 0, got 0"),
        ({"semantic_weight": 0.0, "grey_weight": 0.0}, "one of the weights above"),
        ({"margin": -1.0}, "must be at least 0"),
    ],
)
def test_bad_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionPretext(**arguments)


def test_views_must_have_what_the_terms_need() -> None:
    first, second = views((2, 8, 8))
    with pytest.raises(ValueError, match="needs an embedding for L_sem and a grey image"):
        RegionPretext()(first._replace(grey=None), second)
    ids = torch.zeros(2, 8, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="given regions need num_regions"):
        RegionPretext()(first._replace(regions=ids), second._replace(regions=ids))
    with pytest.raises(ValueError, match='memory goes with negatives="batch"'):
        RegionPretext(negatives="image")(
            first, second, memory=torch.ones(1, 6).double(), memory_ids=torch.zeros(1, dtype=torch.long)
        )
