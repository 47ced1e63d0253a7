# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce inside torch: gradients, compile, export, autocast, modules, and what it refuses."""

import re
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastseg
from fastseg import masked_weighted_bce
from fastseg.ops import dispatch

from .masked_bce_cases import DEVICES, implementations, make_case

OPS = torch.ops.fastseg
MODES = [("voxels", "mean"), ("weight", "mean"), ("terms", "mean"), ("voxels", "sum"), ("voxels", "none")]
devices = pytest.mark.parametrize("device", DEVICES)


def some_case(device="cpu", dtype=torch.float32, shape=(2, 3, 4, 5)):
    return make_case(shape, dtype, "soft", "shared", "shared", True, "contiguous", device)


@pytest.mark.parametrize(("normalize", "reduction"), MODES)
@implementations
def test_gradcheck(impl, device, normalize, reduction):
    case = some_case(device, torch.float64, (1, 2, 3, 4))
    logits = case.pop("logits").requires_grad_()
    options = {"pseudo_weight": 0.3, "normalize": normalize, "reduction": reduction, "impl": impl}
    assert torch.autograd.gradcheck(lambda z: masked_weighted_bce(z, **case, **options), (logits,))


def test_reference_differentiates_in_everything():
    case = some_case(dtype=torch.float64, shape=(1, 2, 3, 2))
    names = ("logits", "target", "weight", "pos_weight")
    tensors = [case[name].double().requires_grad_() for name in names]

    def loss(*tensors):
        changed = case | dict(zip(names, tensors, strict=True))
        return masked_weighted_bce(**changed, normalize="weight", impl="reference")

    assert torch.autograd.gradcheck(loss, tensors)
    assert torch.autograd.gradgradcheck(loss, tensors)


def test_no_second_gradient():
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    loss = masked_weighted_bce(logits, torch.zeros(1, 1, 4))
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match='impl="reference"'):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "layout", ["contiguous", *(pytest.param(o, marks=pytest.mark.long) for o in ("channels_last", "strided"))]
)
@devices
def test_opcheck(device, layout, dtype):
    case = make_case((2, 3, 4, 5), dtype, "uint8", "shared", "full", True, layout, device)
    for logits in (case["logits"], case["logits"].detach().clone().requires_grad_()):
        inputs = (logits, case["target"], case["mask"], case["weight"], case["pos_weight"])
        torch.library.opcheck(OPS.masked_bce.default, (*inputs, 0.5, 1))
        torch.library.opcheck(OPS.masked_bce.default, (*inputs, 0.5, 4))  # a map
    loss, stats = OPS.masked_bce(*inputs, 0.5, 2)
    grads = (torch.ones_like(loss), stats[6:8]), (torch.ones_like(case["logits"]), None)
    for grad, scale in grads:
        backward_inputs = (case["logits"].detach(), *inputs[1:], scale, 0.5)
        torch.library.opcheck(OPS.masked_bce_backward.default, (grad.detach(), *backward_inputs))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@devices
def test_compile_in_one_graph(device, reduction, backend):
    case = some_case(device)
    del case["logits"]

    def step(features, pseudo_weight):
        terms = fastseg.masked_weighted_bce_terms(
            features * 2, **case, pseudo_weight=pseudo_weight, normalize="terms", reduction=reduction
        )
        return terms.loss.sum() + 0 * terms.labelled

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for pseudo_weight in (0.5, 0.25, 0.125):  # every new value recompiles
        results = []
        for function in (step, compiled):
            features = torch.linspace(-2, 2, 120, device=device).view(2, 3, 4, 5).requires_grad_()
            loss = function(features, pseudo_weight)
            loss.backward()
            results.append((loss.detach(), features.grad))
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)


def test_export():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 1, 3, padding=1)
            self.loss = fastseg.nn.MaskedWeightedBCE(pos_weight=[2.0], normalize="weight")

        def forward(self, image, target, mask):
            return self.loss(self.convolution(image), target, mask)

    case = make_case((2, 1, 8, 8), torch.float32, "uint8", "full", None, False, "contiguous")
    net = Net()
    program = torch.export.export(net, tuple(case.values()))
    assert "fastseg.masked_bce" in program.graph_module.code
    torch.testing.assert_close(program.module()(*case.values()), net(*case.values()))


@devices
def test_autocast_leaves_logits_as_they_are(device):
    """Under autocast the network hands over bfloat16 logits; no op makes a float32 copy of them."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.append((str(function), result))
            return result

    convolution = torch.nn.Conv2d(1, 1, 3, padding=1, device=device)
    image = torch.randn(2, 1, 16, 16, device=device)
    target = torch.zeros(2, 1, 16, 16, dtype=torch.uint8, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = convolution(image)
        assert logits.dtype == torch.bfloat16
        with Watch():
            loss = masked_weighted_bce(logits, target, target + 1)
    assert loss.dtype == torch.float32
    maps = [
        name for name, result in seen if isinstance(result, torch.Tensor) and result.numel() >= logits.numel()
    ]
    assert maps == ["aten.add.Tensor"]  # target + 1
    loss.backward()
    assert convolution.weight.grad.dtype == torch.float32


def test_module():
    loss = fastseg.nn.MaskedWeightedBCE(pos_weight=[1.0, 2.0], pseudo_weight=0.5, normalize="terms")
    case = make_case((2, 2, 6), torch.float32, "uint8", "full", "full", False, "contiguous")
    expected = masked_weighted_bce(
        **case, pos_weight=torch.tensor([1.0, 2.0]), pseudo_weight=0.5, normalize="terms"
    )
    assert torch.equal(loss(**case), expected)
    assert loss.double().pos_weight.dtype == torch.float64
    assert list(loss.state_dict()) == ["pos_weight"]
    assert "pseudo_weight=0.5, normalize='terms'" in repr(loss)


def test_auto_falls_back_and_warns_once():
    logits = torch.zeros(1, 1, 4, device="meta")
    dispatch._warned.clear()
    with pytest.warns(UserWarning, match="no fused kernel for device 'meta'"):
        masked_weighted_bce(logits, logits)
    masked_weighted_bce(logits, logits)  # pytest would not fail on a warning, but:
    assert dispatch._warned == {("masked_bce", "meta")}
    with pytest.raises(ValueError, match="has no kernel for device 'meta'"):
        masked_weighted_bce(logits, logits, impl="fused")


Z = torch.zeros(2, 3, 4, 4)
REFUSED = {  # changed arguments, exception, message
    "list": ({"logits": [0.0]}, TypeError, "logits must be a torch.Tensor, got list"),
    "integer logits": ({"logits": Z.long()}, TypeError, "logits must be float32, .*, got int64"),
    "logits (B, C)": ({"logits": torch.zeros(2, 3)}, ValueError, "1 to 3 spatial axes, got (2, 3)"),
    "labels": (
        {"target": Z.long()},
        TypeError,
        "got int64; pass labels of 0 and 1 as target.to(torch.uint8)",
    ),
    "target shape": ({"target": Z[:, :1]}, ValueError, "shape of logits = (2, 3, 4, 4), got (2, 1, 4, 4)"),
    "target device": (
        {"target": Z.to("meta")},
        ValueError,
        "target must be on cpu, where logits is, got meta",
    ),
    "mask dtype": ({"mask": Z}, TypeError, "mask must be uint8 or bool, got float32"),
    "mask shape": ({"mask": Z[:, :2].byte()}, ValueError, "= (2, 1 or 3, 4, 4), got (2, 2, 4, 4)"),
    "weight dtype": ({"weight": Z.byte()}, TypeError, "weight must be float32, .*, got uint8"),
    "weight shape": ({"weight": Z[:1]}, ValueError, "weight must be (B, 1 or C, *S)"),
    "pos_weight shape": (
        {"pos_weight": torch.ones(1)},
        ValueError,
        "pos_weight must be (C,) = (3,), got (1,)",
    ),
    "pseudo_weight": ({"pseudo_weight": -0.5}, ValueError, "finite and at least 0, got -0.5"),
    "nan": ({"pseudo_weight": float("nan")}, ValueError, "finite and at least 0, got nan"),
    "tensor": ({"pseudo_weight": torch.ones(())}, TypeError, "pseudo_weight must be a number, got Tensor"),
    "normalize": ({"normalize": "sum"}, ValueError, "one of voxels, weight, terms, got 'sum'"),
    "reduction": ({"reduction": "avg"}, ValueError, "one of mean, sum, none, got 'avg'"),
    "impl": ({"impl": "cuda"}, ValueError, "one of auto, fused, reference, got 'cuda'"),
    "target grad": ({"target": Z.clone().requires_grad_()}, ValueError, "pass target.detach(), or impl="),
    "weight grad": ({"weight": Z.clone().requires_grad_()}, ValueError, "pass weight.detach(), or impl="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    changed, exception, message = REFUSED[name]
    with pytest.raises(exception, match=re.escape(message).replace(r"\.\*", ".*")):
        masked_weighted_bce(**{"logits": Z, "target": Z, **changed})


REFUSED_BY_OP = {  # changed arguments of torch.ops.fastseg.masked_bce, message
    "logits": ({"logits": Z.long()}, "logits must be float32, float64, bfloat16 or float16, got int64"),
    "axes": ({"logits": torch.zeros(2, 3)}, "logits must be (B, C, *S) with 1 to 3 spatial axes, got (2, 3)"),
    "target": ({"target": Z[:1]}, "target must be the shape of logits = (2, 3, 4, 4), got (1, 3, 4, 4)"),
    "labels": ({"target": Z.long()}, "target must be bool, uint8 or floating, got int64"),
    "mask": ({"mask": Z}, "mask must be uint8 or bool, got float32"),
    "mask shape": (
        {"mask": Z[:, :2].byte()},
        "mask must be (B, 1 or C, *S) = (2, 1 or 3, 4, 4), got (2, 2, 4, 4)",
    ),
    "weight": (
        {"weight": Z[:, :, :2]},
        "weight must be (B, 1 or C, *S) = (2, 1 or 3, 4, 4), got (2, 3, 2, 4)",
    ),
    "pos_weight": ({"pos_weight": torch.ones(2)}, "pos_weight must be (C,) = (3,), got (2,)"),
    "normalize": ({"normalize": 5}, "normalize must be from 0 to 4, got 5"),
}


@pytest.mark.parametrize("name", REFUSED_BY_OP)
def test_op_refuses(name):
    changed, message = REFUSED_BY_OP[name]
    arguments = dict(
        logits=Z, target=Z, mask=None, weight=None, pos_weight=None, pseudo_weight=1.0, normalize=0
    )
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        OPS.masked_bce(*(arguments | changed).values())


def test_import_is_light():
    code = "import sys, fastseg; print(sorted({m.split('.')[0] for m in sys.modules} & {%s}))"
    heavy = "'h5py', 'zarr', 'yaml', 'pydantic', 'matplotlib', 'typer', 'rich', 'tifffile', 'triton', 'scipy'"
    output = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
