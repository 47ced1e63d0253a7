# SPDX-License-Identifier: BSD-3-Clause
"""Rows shared out over two processes give the loss and the gradients of one."""

import pytest
import torch

from fastseg import gather_rows, region_contrast, sharded_region_contrast
from tests.gloo import in_processes

from .region_contrast_cases import make_case

PROCESSES = 2


def shard(rank, case, options):
    """Loss and gradients of one process, and those of a linear layer before it under DistributedDataParallel."""
    mine = {name: value.chunk(PROCESSES)[rank] for name, value in case.items()}
    anchors = mine.pop("anchors").clone().requires_grad_()
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    loss = sharded_region_contrast(anchors, **mine, temperature=temperature, **options)
    loss.backward()
    torch.manual_seed(0)
    linear = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(6, 4, dtype=torch.float64))
    sharded_region_contrast(linear(anchors.detach()), **mine, **options).backward()
    return loss.detach(), anchors.grad, temperature.grad, linear.module.weight.grad


@pytest.mark.long
@pytest.mark.parametrize(("reduction", "groups"), [("mean", None), ("sum", 2), ("mean", 2), ("sum", None)])
def test_two_processes(reduction, groups, tmp_path):
    case = make_case(40, 6, torch.float64, classes=6, groups=groups, seed=2)
    case["anchor_ids"][:8] = -1  # so that the processes differ in how many rows have a loss
    options = {"reduction": reduction, "denominator": "all"}
    found = in_processes(shard, PROCESSES, tmp_path, case, options)

    anchors = case.pop("anchors").clone().requires_grad_()
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    loss = region_contrast(anchors, **case, temperature=temperature, **options)
    loss.backward()
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4, dtype=torch.float64)
    region_contrast(linear(anchors.detach()), **case, **options).backward()

    average = (
        PROCESSES if reduction == "mean" else 1
    )  # as DistributedDataParallel averages, or as sums add up
    losses, gradients, temperatures, weights = zip(*found, strict=True)
    torch.testing.assert_close(sum(losses) / average, loss.detach())
    torch.testing.assert_close(torch.cat(gradients) / average, anchors.grad)
    torch.testing.assert_close(sum(temperatures) / average, temperature.grad)
    expected = linear.weight.grad / (1 if reduction == "mean" else PROCESSES)
    for weight in weights:
        torch.testing.assert_close(weight, expected)


def test_one_process():
    case = make_case(40, 6)
    assert torch.equal(sharded_region_contrast(**case), region_contrast(**case))
    assert gather_rows(case["anchors"]) is case["anchors"]
    with pytest.raises(ValueError, match="one of mean, sum, got 'none'"):
        sharded_region_contrast(**case, reduction="none")
