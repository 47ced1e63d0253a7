# SPDX-License-Identifier: BSD-3-Clause
"""The two doors of the ops: the same bits from both, which situation takes which, and bad tensors at the eager one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastseg
from fastseg import _C
from fastseg.ops import doors
from fastseg.ops.masked_bce import masked_bce


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


LABELS = (draw(2, 5, 6, seed=9) > 0).long()
IDS = torch.arange(30) % 7 - 1
CORNERS = torch.tensor([[[0, 0], [1, 2]], [[2, 2], [-1, -1]]])

# A function of one tensor (2, 3, 5, 6) that gives tensors, some with a gradient.
CALLS = {
    "masked_bce": lambda x: [fastseg.masked_weighted_bce(x, LABELS[:, None].expand(2, 3, 5, 6).byte())],
    "masked_bce terms": lambda x: list(
        fastseg.masked_weighted_bce_terms(
            x,
            torch.full((2, 3, 5, 6), 0.25),
            LABELS[:, None].byte() + 1,
            pseudo_weight=0.5,
            weight=torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(1)),
            pos_weight=torch.tensor([1.0, 2.0, 3.0]),
            normalize="weight",
        )
    ),
    "masked_bce map": lambda x: [fastseg.masked_weighted_bce(x, torch.zeros(2, 3, 5, 6), reduction="none")],
    **{
        f"region_pool {reduce}": lambda x, reduce=reduce: [fastseg.region_pool(x, LABELS, 3, reduce=reduce)]
        for reduce in ("sum", "mean", "var", "min", "max")
    },
    "region_stats": lambda x: list(fastseg.region_stats(x, LABELS.int(), 3)),
    "soft_region_pool": lambda x: [
        t
        for t in fastseg.soft_region_pool(x, x[:, :2] * 2, from_logits=True, variance=True, grey=x[:, :1])
        if t is not None
    ],
    "patch_entropy": lambda x: list(fastseg.patch_entropy(x, 3, 2, from_logits=True)),
    "patch_entropy mask": lambda x: list(
        fastseg.patch_entropy(
            x, (3, 2), 1, mode="categorical", from_logits=True, mask=LABELS[:, None].bool(), min_valid=0.1
        )
    ),
    "sample_patches": lambda x: list(fastseg.sample_patches(x.sigmoid(), x.sigmoid(), 4, seed=3)),
    "extract_patches": lambda x: [fastseg.extract_patches(x, CORNERS, 2)],
    "region_contrast": lambda x: [
        fastseg.region_contrast(x.flatten(0, 2), anchor_ids=IDS, anchor_groups=IDS // 3, temperature=0.5)
    ],
    "region_contrast bank": lambda x: list(
        fastseg.region_contrast_rows(
            x.flatten(0, 2),
            x.flatten(0, 2).detach().flip(0) + 1,
            anchor_ids=IDS,
            bank_ids=IDS.int(),
            temperature=x.abs().mean().float(),
            similarity="neg_mse",
            denominator="negatives",
            self_offset=0,
        )
    ),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


def results(call, x):
    x = x.detach().requires_grad_()
    found = call(x)
    losses = [t for t in found if t.requires_grad]
    grads = torch.autograd.grad([t.float().nan_to_num().square().sum() for t in losses], x) if losses else []
    return [*found, *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_both_doors_give_the_same_bits(name, layout, dtype):
    x = LAYOUTS[layout](draw(2, 3, 5, 6, dtype=dtype))
    eager = results(CALLS[name], x)
    with doors.force_library():
        library = results(CALLS[name], x)
    for one, other in zip(eager, library, strict=True):
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
        assert torch.equal(one.isnan(), other.isnan())


class Subclass(torch.Tensor):
    pass


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def choose(*tensors):
    return _C.choose_door(*tensors, None, 1.0)


def under(context):
    def situation(x):
        with context():
            return choose(x)

    return situation


def in_vmap(x):
    found = []
    torch.func.vmap(lambda member: found.append(choose(x)) or member)(x)
    return found[0]


def in_trace(x):
    found = []
    torch.jit.trace(lambda y: found.append(choose(y)) or y + 1, x, check_trace=False)
    return found[0]


def in_fake_mode(x):
    with torch._subclasses.FakeTensorMode() as mode:
        return choose(mode.from_tensor(x))


def in_forward_ad(x):
    with torch.autograd.forward_ad.dual_level():
        return choose(torch.autograd.forward_ad.make_dual(x, x))


def in_checkpoint(x):
    found = []
    loss = checkpoint(
        lambda y: found.append(choose(y)) or y.square().sum(), x.requires_grad_(), use_reentrant=False
    )
    loss.backward()
    first, again = found  # the pass itself, and once more for backward
    assert first == again
    return first


SITUATIONS = {  # the table of docs/ops/inside_torch.md: 0 torch.library, 1 eager, 2 eager with a gradient
    "plain": (choose, 1),
    "requires grad": (lambda x: choose(x.requires_grad_()), 2),
    "parameter": (lambda x: choose(torch.nn.Parameter(x)), 2),
    "no_grad": (lambda x: under(torch.no_grad)(x.requires_grad_()), 1),
    "inference_mode": (lambda x: under(torch.inference_mode)(x.requires_grad_()), 1),
    "autocast": (under(lambda: torch.autocast("cpu", torch.bfloat16)), 1),
    "saved-tensor hooks": (
        under(lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)),
        1,
    ),
    "checkpoint": (in_checkpoint, 2),
    "subclass": (lambda x: choose(x.as_subclass(Subclass)), 0),
    "function mode": (under(FunctionMode), 0),
    "dispatch mode": (under(DispatchMode), 0),
    "default device": (under(lambda: torch.device("meta")), 0),
    "vmap": (in_vmap, 0),
    "jit.trace": (in_trace, 0),
    "fake tensors": (in_fake_mode, 0),
    "forward-mode": (in_forward_ad, 0),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_which_door(name):
    situation, door = SITUATIONS[name]
    assert situation(draw(2, 3)) == door


def test_a_tensor_kept_from_a_functorch_transform_goes_to_torch_library():
    kept, x = [], draw(2, 3, 5, 6).requires_grad_()
    torch.func.grad(lambda inner: (kept.append(inner), inner.sum())[1])(x)
    pooled = fastseg.region_pool(kept[0], LABELS, 3)
    assert torch.equal(pooled, fastseg.region_pool(x, LABELS, 3))
    pooled.sum().backward()
    assert x.grad is not None


def test_a_compiled_call_takes_torch_library():
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    target = torch.zeros(1, 1, 4)
    torch.compile(lambda x: fastseg.masked_weighted_bce(x, target), fullgraph=True, backend=backend)(
        draw(1, 1, 4)
    )
    assert "fastseg.masked_bce" in graphs[0]


def test_an_export_takes_torch_library():
    class Loss(torch.nn.Module):
        def forward(self, x):
            return fastseg.masked_weighted_bce(x, torch.zeros_like(x))

    assert "fastseg.masked_bce" in str(torch.export.export(Loss(), (draw(1, 1, 4),)).graph)


UNREADABLE = {  # and what torch.library makes of it: a kernel, or torch's own refusal
    "meta": (lambda x: x.to("meta"), None),
    "sparse": (lambda x: x.to_sparse(), NotImplementedError),
    "mkldnn": (lambda x: x.to_mkldnn(), NotImplementedError),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), TypeError),
    "zero tensor": (lambda x: torch._efficientzerotensor(x.shape), None),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_the_eager_door_cannot_read_goes_to_torch_library(name):
    make, refusal = UNREADABLE[name]
    logits = make(draw(1, 1, 4))
    arguments = (logits, torch.zeros(1, 1, 4, device=logits.device), None, None, None, 1.0, 0)
    with pytest.raises((_C.Unreadable, TypeError)):
        _C.masked_bce(*arguments)
    if refusal is not None:
        with pytest.raises(refusal, match=r"fastseg::masked_bce|logits must be"):
            masked_bce(*arguments)
    else:
        (loss,) = masked_bce(*arguments)
        assert (loss.shape, loss.device) == ((), logits.device)


def test_a_dtensor_takes_torch_library_and_its_own_part_the_eager_door():
    # No threads, unlike gloo, which now and then aborts a process that ends.
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        whole = distribute_tensor(draw(1, 1, 4).requires_grad_(), init_device_mesh("cpu", (1,)))
        assert choose(whole) == 0
        with pytest.raises(NotImplementedError, match=r"fastseg\.masked_bce"):
            fastseg.masked_weighted_bce(whole, torch.zeros_like(whole))
        part = whole.to_local()
        assert choose(part) == 2
        fastseg.masked_weighted_bce(part, torch.zeros(1, 1, 4)).backward()
    finally:
        dist.destroy_process_group()
    assert whole.grad.to_local().isfinite().all()


def test_distributed_data_parallel_takes_the_eager_door():
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            self.door = choose(x * self.scale)
            return fastseg.masked_weighted_bce(x * self.scale, torch.zeros_like(x))

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(Loss())
        with model.no_sync():  # the fake group answers nothing
            model(draw(1, 1, 4)).backward()
    finally:
        dist.destroy_process_group()
    assert model.module.door == 2
    assert model.module.scale.grad.isfinite()


def test_a_second_gradient_is_refused_alike():
    for forced in (False, True):
        x = draw(1, 1, 4).requires_grad_()
        with doors.force_library(forced):
            (grad,) = torch.autograd.grad(
                fastseg.masked_weighted_bce(x, torch.zeros(1, 1, 4)), x, create_graph=True
            )
            with pytest.raises(NotImplementedError, match="no second gradient"):
                grad.sum().backward()


def test_a_tensor_changed_in_place_before_backward_is_noticed():
    x = draw(1, 1, 4).requires_grad_()
    target = torch.zeros(1, 1, 4)
    loss = fastseg.masked_weighted_bce(x, target)
    target.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_results_are_torch_s_own_storage():
    loss = fastseg.masked_weighted_bce(draw(1, 1, 4), torch.zeros(1, 1, 4), reduction="none")
    loss.resize_(9)
    assert loss.shape == (9,)


def test_an_allocation_that_fails_keeps_torch_s_words():
    for forced in (False, True):
        with doors.force_library(forced), pytest.raises(RuntimeError, match="allocate"):
            fastseg.region_pool(torch.zeros(1, 2**20, 2), torch.zeros(1, 2, dtype=torch.int64), 2**22)


def test_many_elements_are_not_cut():
    with pytest.raises((ValueError, RuntimeError), match=r"2\*\*63|overflow|allocate"):
        fastseg.region_pool(
            torch.zeros(1, 1, 2).expand(1, 2**33, 2), torch.zeros(1, 2, dtype=torch.int64), 2**31 - 1
        )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_any_arguments_give_a_result_or_a_named_error(seed):
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("eager_fuzz.py")), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, (run.returncode, run.stderr[-2000:])
    told, done = map(int, run.stdout.split())
    assert told > 1000
    assert done > 20


ODD_TENSORS = {
    "neg view": lambda x: torch._neg_view(-x),
    "imaginary part of a conjugate": lambda x: torch.complex(x, -x).conj().imag,
    "zero strides": lambda x: x[:, :1].expand_as(x),
    "flipped": lambda x: x.flip(3),
}


@pytest.mark.parametrize("name", ODD_TENSORS)
def test_views_are_read_as_what_they_show(name):
    view = ODD_TENSORS[name](draw(2, 3, 5, 6))
    for call in CALLS.values():
        for one, other in zip(call(view), call(view.clone().resolve_neg().contiguous()), strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_freed_storage_is_told():
    freed = draw(2, 3, 5, 6)
    freed.untyped_storage().resize_(0)
    for name, call in CALLS.items():
        if name not in (
            "soft_region_pool",
            "sample_patches",
            "region_contrast bank",
        ):  # which look at parts of it first
            with pytest.raises(RuntimeError, match="storage was freed"):
                call(freed)


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="confidence must have at least one class"):
        fastseg.patch_entropy(torch.zeros(1, 0, 8), 4, 4, mode="categorical", from_logits=True)
