# SPDX-License-Identifier: BSD-3-Clause
"""ex2.approx and lg2.approx are as inexact as PTX allows, and the rules of a voxel keep the digits that the ops' pages
promise; one that relies on digits which the hardware does not give is noticed."""

import shutil

import pytest
import torch

from . import build as builder
from .emulator import Emulated, Input, Output

pytestmark = pytest.mark.skipif(builder.missing() is not None, reason=str(builder.missing()))
SAMPLE = builder.HERE / "samples/special_functions.cu"

_LOGITS = torch.linspace(-80, 80, 2001)
_SMALL = torch.logspace(-37, -0.31, 1001)
_PROBABILITIES = torch.cat([_SMALL, 1 - _SMALL, torch.linspace(0.49, 0.51, 501)])
_PROBABILITIES = _PROBABILITIES[(_PROBABILITIES > 2e-38) & (_PROBABILITIES < 1)]


def _loss(logits):
    return torch.nn.functional.softplus(-logits, threshold=torch.inf)


def _entropy(p):
    return (torch.special.entr(p) + (p - 1) * torch.log1p(-p)) / torch.log(torch.tensor(2.0, dtype=p.dtype))


def _entropy_of_logits(logits):
    return _entropy(torch.sigmoid(-logits.abs()))


# Number in the sample: values, what they become, relative error in float32 and in the quick form of 16-bit values, as
# docs/ops/masked_bce.md and docs/ops/patch_entropy.md have it.
RULES = {
    "loss": (0, _LOGITS, _loss, 4e-7, 1.4e-5),
    "entropy": (1, _PROBABILITIES, _entropy, 5e-7, 2e-6),
    "entropy of logits": (2, _LOGITS, _entropy_of_logits, 5e-7, 2e-5),
}
_LAST = "  return m * ratio;\n#else"
_ONLY_LG2 = "  return m * -logarithm - (1.0f - m) * lg2_approx(1.0f - m);\n#else"
# What a kernel might do: header, what is there, what is put in its place, and the rule and form that it breaks.
FAULTS = {
    "lg2 of 1 - p, which is near 1": ("patch_entropy_math.h", _LAST, _ONLY_LG2, "entropy", False),
    "the same, of 16-bit values": (
        "patch_entropy_math.h",
        "    return m * ratio;\n  }",
        "    return m * -logarithm - (1.0f - m) * lg2_approx(1.0f - m);\n  }",
        "entropy",
        True,
    ),
    "lg2 of 1 + u, which is near 1": (
        "elementary.h",
        "  return value * u;\n}\nFASTSEG_HOST_DEVICE double log1p_unit",
        "  return 0.693147181f * lg2_approx(1.0f + u);\n}\nFASTSEG_HOST_DEVICE double log1p_unit",
        "loss",
        False,
    ),
    "ex2 of a rounded product, in float32": (
        "elementary.h",
        "return expf(-magnitude);",
        "return ex2_approx(-1.44269504f * magnitude);",
        "entropy of logits",
        False,
    ),
}


def largest_error(library, rule, quick) -> float:
    """Of all values, relative."""
    number, values, truth, *_ = RULES[rule]
    found = torch.full_like(values, float("nan"))
    with Emulated(library) as emulated:
        arrays = {"values": Input(values), "results": Output(found), "n": len(values)}
        assert emulated.call("evaluate", function=number, quick=int(quick), **arrays) == 0
    exact = truth(values.double())
    return ((found - exact) / exact).abs().max().item()


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_every_digit_that_is_promised(rule, quick):
    assert largest_error(builder.build(SAMPLE), rule, quick) < RULES[rule][3 + quick]


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_digits_that_the_hardware_does_not_give_are_missed(tmp_path, fault):
    header, there, instead, rule, quick = FAULTS[fault]
    for path in (builder.ROOT / "kernels").glob("*.h"):
        shutil.copy(path, tmp_path)
    text = (tmp_path / header).read_text()
    assert text.count(there) == 1
    (tmp_path / header).write_text(text.replace(there, instead))
    assert largest_error(builder.build(SAMPLE, include=tmp_path), rule, quick) > 1.5 * RULES[rule][3 + quick]
