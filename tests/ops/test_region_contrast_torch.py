# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast inside torch: gradients, compile, export, autocast, modules, and what it refuses."""

import re

import pytest
import torch

import fastseg
from fastseg import _C, region_contrast, region_contrast_rows
from fastseg.ops.region_contrast_checks import check_tensors

from .region_contrast_cases import DENOMINATORS, DEVICES, SIMILARITIES, make_case

OPS = torch.ops.fastseg
devices = pytest.mark.parametrize("device", DEVICES)


@pytest.mark.parametrize("bank", [None, 7])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_gradcheck(impl, similarity, denominator, reduction, bank):
    case = make_case(9, 3, torch.float64, bank=bank, classes=3, groups=2, seed=1)
    names = [name for name in ("anchors", "bank") if name in case]
    temperature = torch.tensor(0.8, dtype=torch.float64)
    tensors = [tensor.requires_grad_() for tensor in (*(case[name] for name in names), temperature)]
    options = {"similarity": similarity, "denominator": denominator, "reduction": reduction, "impl": impl}

    def loss(*tensors):
        changed = case | dict(zip([*names, "temperature"], tensors, strict=True))
        return region_contrast(**changed, **options)

    assert torch.autograd.gradcheck(loss, tensors)
    if impl == "reference" and reduction == "mean":
        assert torch.autograd.gradgradcheck(loss, tensors)


@devices
def test_only_the_gradients_asked_for(device):
    case = make_case(20, 4, bank=30, device=device)
    expected = None
    for wanted in (("anchors", "bank"), ("anchors",), ("bank",)):
        tensors = {name: case[name].clone().requires_grad_(name in wanted) for name in ("anchors", "bank")}
        gradients = torch.autograd.grad(region_contrast(**case | tensors), [tensors[name] for name in wanted])
        expected = expected or dict(zip(wanted, gradients, strict=True))
        for name, gradient in zip(wanted, gradients, strict=True):
            assert torch.equal(gradient, expected[name])
    temperature = torch.tensor(0.1, device=device, requires_grad=True)
    (alone,) = torch.autograd.grad(region_contrast(**case, temperature=temperature), temperature)
    assert alone != 0


def test_no_second_gradient():
    case = make_case(6, 3)
    case["anchors"].requires_grad_()
    (gradient,) = torch.autograd.grad(region_contrast(**case), case["anchors"], create_graph=True)
    with pytest.raises(NotImplementedError, match='impl="reference"'):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bank", [None, 8])
@pytest.mark.parametrize("reduction", [0, 1, 2])
@devices
def test_opcheck(device, reduction, bank, dtype):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("no float64 kernel on a GPU")
    case = make_case(9, 5, dtype, bank=bank, groups=2, device=device)
    temperature = torch.tensor(0.5, device=device)
    inputs = [
        *(
            case.get(name)
            for name in ("anchors", "bank", "anchor_ids", "bank_ids", "anchor_groups", "bank_groups")
        ),
        temperature,
    ]
    options = (1.0, None if bank is None else 2, 0, 0, reduction)
    for number in (0, 1, 6):
        if inputs[number] is not None:
            inputs[number].requires_grad_()
    torch.library.opcheck(OPS.region_contrast.default, (*inputs, *options, True))
    loss, *kept = OPS.region_contrast(*(i if i is None else i.detach() for i in inputs), *options, True)
    backward = (torch.ones_like(loss), *(i if i is None else i.detach() for i in inputs), *kept, *options)
    torch.library.opcheck(OPS.region_contrast_backward.default, (*backward, True, bank is not None))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@devices
def test_compile_in_one_graph(device, reduction, backend):
    case = make_case(30, 6, groups=2, device=device)
    del case["anchors"]

    def step(features, temperature):
        loss = region_contrast(features * 2, **case, temperature=temperature.exp(), reduction=reduction)
        rows = region_contrast_rows(features, **case)
        return loss.sum() + 0 * rows.similarity.sum()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    results = []
    for function in (step, compiled):
        features = torch.linspace(-2, 2, 180, device=device).sin().view(30, 6).requires_grad_()
        temperature = torch.tensor(-1.0, device=device, requires_grad=True)
        loss = function(features, temperature)
        loss.backward()
        results.append((loss.detach(), features.grad, temperature.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_export():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(5, 4)
            self.loss = fastseg.nn.RegionContrast(learn_temperature=True)

        def forward(self, regions, ids):
            return self.loss(self.linear(regions), ids)

    net, inputs = Net(), (torch.randn(12, 5), torch.arange(12) % 4)
    exported = torch.export.export(net, inputs)
    torch.testing.assert_close(exported.module()(*inputs), net(*inputs))


@devices
def test_autocast(device):
    case = make_case(24, 16, bank=30, device=device)
    linear = torch.nn.Linear(16, 16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        features = linear(case["anchors"])
        assert features.dtype == torch.bfloat16
        loss = region_contrast(**case | {"anchors": features})
    assert loss.dtype == torch.float32
    loss.backward()
    assert linear.weight.grad.dtype == torch.float32
    wide = region_contrast(**case | {"anchors": features.detach().float()})
    torch.testing.assert_close(loss.detach(), wide, rtol=1e-6, atol=0)  # the bank keeps its float32


@devices
def test_module(device):
    case = make_case(24, 6, groups=2, device=device)
    module = fastseg.nn.RegionContrast(temperature=0.3, similarity="dot", denominator="negatives").to(device)
    loss = module(case["anchors"], case["anchor_ids"], anchor_groups=case["anchor_groups"])
    expected = region_contrast(**case, temperature=0.3, similarity="dot", denominator="negatives")
    assert torch.equal(loss, expected)
    assert not list(module.parameters())
    assert "temperature=0.3, similarity='dot'" in repr(module)
    learnt = fastseg.nn.RegionContrast(temperature=0.3, learn_temperature=True).to(device)
    loss = learnt(case["anchors"], case["anchor_ids"])
    torch.testing.assert_close(
        loss.detach(), region_contrast(case["anchors"], anchor_ids=case["anchor_ids"], temperature=0.3)
    )
    loss.backward()
    assert learnt.log_temperature.grad != 0
    with pytest.raises(ValueError, match="finite and above 0, got -1"):
        fastseg.nn.RegionContrast(temperature=-1)


A, IDS = torch.zeros(4, 3), torch.arange(4)
REFUSED = {  # changed arguments, exception, message
    "list": ({"anchors": [[0.0]]}, TypeError, "anchors must be a torch.Tensor, got list"),
    "integers": (
        {"anchors": A.long()},
        TypeError,
        "anchors must be float32, float64, bfloat16 or float16, got int64",
    ),
    "axes": ({"anchors": A[0]}, ValueError, "anchors must be (rows, D) with D at least 1, got (3,)"),
    "no columns": ({"anchors": A[:, :0]}, ValueError, "D at least 1, got (4, 0)"),
    "float ids": (
        {"anchor_ids": A[:, 0]},
        TypeError,
        "anchor_ids must be int64, int32, int16, int8 or uint8, got float32",
    ),
    "ids": ({"anchor_ids": IDS[:3]}, ValueError, "anchor_ids must be one per row of anchors, (4,), got (3,)"),
    "ids device": (
        {"anchor_ids": IDS.to("meta")},
        ValueError,
        "anchor_ids must be on cpu, where anchors is, got",
    ),
    "groups": (
        {"anchor_groups": IDS[:2]},
        ValueError,
        "anchor_groups must be one per row of anchors, (4,), got (2,)",
    ),
    "bank without ids": ({"bank": A}, ValueError, "bank_ids must be given with bank, got None"),
    "ids without bank": ({"bank_ids": IDS}, ValueError, "bank_ids must be None without a bank, got Tensor"),
    "offset without bank": (
        {"self_offset": 0},
        ValueError,
        "self_offset must be None without a bank, got int",
    ),
    "offset": (
        {"bank": A, "bank_ids": IDS, "self_offset": 0.5},
        TypeError,
        "self_offset must be an int or None, got float",
    ),
    "bank size": (
        {"bank": A[:, :2], "bank_ids": IDS},
        ValueError,
        "bank must be (N, D) with the D of anchors, 3, got (4, 2)",
    ),
    "one kind of groups": (
        {"bank": A, "bank_ids": IDS, "anchor_groups": IDS},
        ValueError,
        "bank_groups must be given too, as both or neither of the groups, got None",
    ),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature must be finite and above 0, got 0.0"),
    "nan": ({"temperature": float("nan")}, ValueError, "finite and above 0, got nan"),
    "temperatures": (
        {"temperature": torch.ones(2)},
        ValueError,
        "temperature must be a number or a floating tensor with no axes, got float32 (2,)",
    ),
    "word": ({"temperature": "cold"}, TypeError, "temperature must be a number or a tensor, got str"),
    "similarity": ({"similarity": "l2"}, ValueError, "one of cosine, dot, neg_mse, got 'l2'"),
    "denominator": ({"denominator": "some"}, ValueError, "one of all, negatives, got 'some'"),
    "reduction": ({"reduction": "avg"}, ValueError, "one of mean, sum, none, got 'avg'"),
    "impl": ({"impl": "cuda"}, ValueError, "one of auto, fused, reference, got 'cuda'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    changed, exception, message = REFUSED[name]
    with pytest.raises(exception, match=re.escape(message).replace(r"\.\*", ".*")):
        region_contrast(**{"anchors": A, "anchor_ids": IDS, **changed})


REFUSED_BY_OP = {  # changed arguments of the op itself, message
    "anchors": ({"anchors": A.long()}, "anchors must be float32, float64, bfloat16 or float16, got int64"),
    "axes": ({"anchors": A[0]}, "anchors must be (rows, D) with D at least 1, got (3,)"),
    "float ids": (
        {"anchor_ids": A[:, 0]},
        "anchor_ids must be int64, int32, int16, int8 or uint8, got float32",
    ),
    "ids": ({"anchor_ids": IDS[:3]}, "anchor_ids must be one per row of anchors, (4,), got (3,)"),
    "groups": ({"anchor_groups": IDS[:3]}, "anchor_groups must be one per row of anchors, (4,), got (3,)"),
    "bank without ids": ({"bank": A}, "bank_ids must be given with bank, got None"),
    "ids without bank": ({"bank_ids": IDS}, "bank_ids must be None without a bank, got Tensor"),
    "groups without bank": ({"bank_groups": IDS}, "bank_groups must be None without a bank, got Tensor"),
    "offset without bank": ({"self_offset": 0}, "self_offset must be None without a bank, got int"),
    "bank size": (
        {"bank": A[:, :2], "bank_ids": IDS},
        "bank must be (N, D) with the D of anchors, 3, got (4, 2)",
    ),
    "bank dtype": (
        {"bank": A.double(), "bank_ids": IDS},
        "bank must be of the dtype of anchors, float32, got float64",
    ),
    "bank ids": (
        {"bank": A, "bank_ids": IDS[:1]},
        "bank_ids must be one per row of bank, (4,), got (1,)",
    ),
    "bank groups": (
        {"bank": A, "bank_ids": IDS, "bank_groups": IDS},
        "anchor_groups must be given too, as both or neither of the groups, got None",
    ),
    "temperature": (
        {"temperature": torch.ones(2)},
        "temperature must be a number or a floating tensor with no axes, got float32 (2,)",
    ),
    "similarity": ({"similarity": 3}, "similarity must be from 0 to 2, got 3"),
    "denominator": ({"denominator": 2}, "denominator must be from 0 to 1, got 2"),
    "reduction": ({"reduction": 3}, "reduction must be from 0 to 2, got 3"),
}


@pytest.mark.parametrize("name", REFUSED_BY_OP)
def test_both_doors_and_the_reference_refuse(name):
    changed, message = REFUSED_BY_OP[name]
    arguments = dict(
        anchors=A, bank=None, anchor_ids=IDS, bank_ids=None, anchor_groups=None, bank_groups=None
    )
    arguments |= dict(temperature=None, fixed_temperature=1.0, self_offset=None)
    arguments |= dict(similarity=0, denominator=0, reduction=0, with_tilt=False)
    inputs = (arguments | changed).values()
    for op in (OPS.region_contrast, _C.region_contrast):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=re.escape(message)):
            op(*inputs)
    if name not in ("similarity", "denominator", "reduction"):
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            check_tensors(*inputs)  # in the same words
