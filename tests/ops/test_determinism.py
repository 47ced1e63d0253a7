# SPDX-License-Identifier: BSD-3-Clause
"""What all tests of the ops run under: poisoned memory, and references that torch has no deterministic kernel for."""

import pytest
import torch


def without_a_deterministic_kernel() -> torch.Tensor:
    """As the gradient of avg_pool3d on a GPU."""
    return torch.zeros(3).put_(torch.tensor([1]), torch.tensor([2.0]))


def test_a_reference_may_lack_a_deterministic_kernel():
    with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
        assert without_a_deterministic_kernel().tolist() == [0, 2, 0]


@pytest.mark.usefixtures("deterministic")
def test_a_test_may_ask_for_one():
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        without_a_deterministic_kernel()


def test_fresh_memory_is_poisoned():
    assert torch.empty(1000).isnan().all()
    assert torch.are_deterministic_algorithms_enabled()
