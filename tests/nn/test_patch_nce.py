# SPDX-License-Identifier: BSD-3-Clause
"""PatchNCE against the matrix of similarities in plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg.nn import PatchNCE

IMPLS = ["reference", "fused"]


def dense(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the matrix of cosines of each image, its diagonal being what is right."""
    cosine = F.normalize(queries, dim=-1) @ F.normalize(keys.detach(), dim=-1).mT / temperature
    right = torch.arange(queries.shape[1]).expand(len(queries), -1)
    return F.cross_entropy(cosine.flatten(0, 1), right.flatten())


def vectors(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(math.prod(shape))
    drawn = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    keys = (
        drawn[0] + 0.5 * drawn[1]
    )  # not unlike the queries, as those of a generator that keeps what it sees
    return drawn[0].to(dtype).requires_grad_(), keys.to(dtype).requires_grad_()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 7, 5), (3, 16, 8), (2, 257, 33)])
def test_loss_and_gradient_are_those_of_the_matrix(shape: tuple[int, ...], impl: str) -> None:
    queries, keys = vectors(*shape)
    loss = PatchNCE(temperature=0.07, impl=impl)(queries, keys)
    (gradient,) = torch.autograd.grad(loss, queries, retain_graph=True)
    expected = dense(queries, keys, 0.07)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, queries)[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_those_of_the_dtype(dtype: torch.dtype) -> None:
    queries, keys = vectors(2, 64, 32, dtype=dtype)
    loss = PatchNCE()(queries, keys)
    assert loss.dtype == torch.float32
    truth = dense(queries.double(), keys.double(), 0.07).detach()
    # The sums are float32 for both; what is left is the rounding of a cosine over the temperature.
    assert float((loss.detach() - truth).abs()) < 50 * torch.finfo(torch.float32).eps * (1 + float(truth))


def test_gradcheck_on_tiny_cases() -> None:
    for shape in ((1, 2, 2), (2, 3, 4), (1, 5, 3)):
        queries, keys = vectors(*shape)
        assert torch.autograd.gradcheck(lambda q, k=keys: PatchNCE(temperature=0.5)(q, k.detach()), queries)


def test_by_hand() -> None:
    """Two places, unit vectors at right angles, T = 1: each loss is log(e + 1) - 1."""
    keys = torch.eye(2).unsqueeze(0)
    assert float(PatchNCE(temperature=1.0)(3 * keys, keys)) == pytest.approx(math.log(math.e + 1) - 1)
    swapped = keys.flip(1)
    assert float(PatchNCE(temperature=1.0)(swapped, keys)) == pytest.approx(math.log(math.e + 1))
    alike = torch.ones(1, 9, 4)
    assert float(PatchNCE()(alike, alike)) == pytest.approx(math.log(9))


def test_keys_are_detached() -> None:
    queries, keys = vectors(2, 5, 3)
    PatchNCE()(queries, keys).backward()
    assert queries.grad is not None
    assert queries.grad.abs().max() > 0
    assert keys.grad is None


def test_an_image_knows_nothing_of_the_others() -> None:
    queries, keys = vectors(3, 8, 4)
    alone = [float(PatchNCE()(queries[i : i + 1], keys[i : i + 1]).detach()) for i in range(3)]
    together = PatchNCE()(queries, keys)
    assert float(together.detach()) == pytest.approx(sum(alone) / 3)
    (gradient,) = torch.autograd.grad(together, queries)
    with torch.no_grad():
        queries[2] = float("nan")
        keys[2] = float("nan")
    (other,) = torch.autograd.grad(PatchNCE()(queries, keys), queries)
    assert torch.equal(gradient[:2], other[:2])


def test_nothing_to_tell_apart() -> None:
    for shape in ((2, 1, 4), (0, 5, 4)):
        queries, keys = vectors(*shape)
        loss = PatchNCE()(queries, keys)
        loss.backward()
        assert float(loss.detach()) == 0
        assert queries.grad is not None
        assert not queries.grad.any()


def test_bad_input_is_named() -> None:
    queries, keys = vectors(2, 5, 3)
    with pytest.raises(ValueError, match=r"\(B, P, D\) of one shape, got \(2, 5, 3\) and \(2, 4, 3\)"):
        PatchNCE()(queries, keys[:, :4])
    with pytest.raises(ValueError, match=r"\(B, P, D\) of one shape, got \(5, 3\) and \(5, 3\)"):
        PatchNCE()(queries[0], keys[0])
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be finite and above 0"):
            PatchNCE(temperature=temperature)
    assert repr(PatchNCE()) == "PatchNCE(temperature=0.07, impl='auto')"
