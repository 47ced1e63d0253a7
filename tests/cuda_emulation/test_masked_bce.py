# SPDX-License-Identifier: BSD-3-Clause
"""masked_bce's CUDA kernels under the emulation: against the float64 reference, in every order of threads."""

import itertools
import random
import shutil

import pytest
import torch

import fastseg

from . import build as builder
from .emulator import Emulated, EmulationError
from .ops import EmulatedOps, MaskedBCE, build_all

SEEDS = range(5)
reason = builder.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

OPTIONS = {
    # Small and odd; rows that whole vectors fill; a tail; several tiles for each of the three blocks.
    "shape": [
        (2, 3, 5, 7),
        (1, 2, 3, 17, 33),
        (1, 3, 8200),
        (1, 1, 1),
        (3, 2, 1, 2053),
        (2, 5, 16, 16),
        (0, 2, 4),
    ],
    "dtype": [torch.float32, torch.bfloat16, torch.float16, torch.float64],
    "channels_last": [False, True],
    "target": [torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.float64],
    "mask": [None, "shared", "per channel", "bool"],
    "weight": [
        None,
        ("shared", torch.float32),
        ("per channel", torch.float16),
        ("per channel", torch.float64),
    ],
    "pos_weight": [False, True],
    "pseudo_weight": [0.3, 0.0, 1.0],
    "normalize": ["voxels", "weight", "terms"],
    "misaligned": [(), ("logits", "target", "mask", "weight", "grad", "loss_map", "grad_logits")],
}


def all_pairs(options: dict[str, list]) -> list[dict]:
    """Few cases that hold every pair of options: always the best of 30 random ones."""
    chance = random.Random(0)

    def pairs(case):
        return set(itertools.combinations(enumerate(case), 2))

    sizes = [range(len(values)) for values in options.values()]
    left = {
        ((i, m), (j, n))
        for i, j in itertools.combinations(range(len(sizes)), 2)
        for m in sizes[i]
        for n in sizes[j]
    }
    cases = []
    while left:
        candidates = [[chance.choice(size) for size in sizes] for _ in range(30)]
        (i, m), (j, n) = min(left)
        for candidate in candidates:
            candidate[i], candidate[j] = m, n
        cases.append(max(candidates, key=lambda case: len(pairs(case) & left)))
        left -= pairs(cases[-1])
    return [
        {name: values[i] for (name, values), i in zip(options.items(), case, strict=True)} for case in cases
    ]


def name_of(case: dict) -> str:
    texts = ("misaligned" if v and k == "misaligned" else str(v) for k, v in case.items())
    return "-".join(text.replace("torch.", "").replace(" ", "") for text in texts)


def tensors_of(case: dict, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    batch, channels, *spatial = shape = case["shape"]
    shared = (batch, 1, *spatial)
    logits = 3 * torch.randn(shape, generator=generator)
    target = torch.rand(shape, generator=generator)
    target = (
        target.to(case["target"]) if case["target"].is_floating_point else (target > 0.6).to(case["target"])
    )
    mask = weight = None
    if case["mask"]:
        size = shared if case["mask"] == "shared" else shape
        mask = torch.randint(0, 4, size, generator=generator, dtype=torch.uint8)  # 3 is ignored, like 0
        mask = mask > 1 if case["mask"] == "bool" else mask
    if case["weight"]:
        size = shared if case["weight"][0] == "shared" else shape
        weight = torch.rand(size, generator=generator).to(case["weight"][1])
    logits = logits.to(case["dtype"])
    if mask is not None:
        ignored = ((mask == 0) | (mask == 3) | ((mask == 2) & (case["pseudo_weight"] == 0))).expand(shape)
        logits[ignored] = float("nan")  # must not be seen
    if case["channels_last"] and len(spatial) > 1:
        memory_format = torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
        logits = logits.contiguous(memory_format=memory_format)
    pos_weight = torch.rand(channels, generator=generator) + 0.5 if case["pos_weight"] else None
    return {"logits": logits, "target": target, "mask": mask, "weight": weight, "pos_weight": pos_weight}


def results(tensors: dict, case: dict, reduction: str, impl: str, dtype: torch.dtype | None = None):
    """The loss or its map, and the gradient of the logits."""
    cast = {
        k: v.to(dtype) if dtype and v is not None and v.is_floating_point() else v for k, v in tensors.items()
    }
    logits = cast.pop("logits").clone().requires_grad_()
    options = {"pseudo_weight": case["pseudo_weight"], "normalize": case["normalize"], "reduction": reduction}
    loss = fastseg.masked_weighted_bce(logits, **cast, **options, impl=impl)
    upstream = (
        torch.linspace(-1, 1, loss.numel(), dtype=torch.float64).view(loss.shape) if loss.dim() else 2.0
    )
    (loss.double() * upstream).sum().backward()
    return loss.detach(), logits.grad


def check(ours, theirs, truth):
    """No worse than twice torch's own error in the same dtype, plus a few roundings."""
    scale = truth.abs().max().item() if truth.numel() else 0.0
    allowed = 2 * (theirs.double() - truth).abs().max().item() if truth.numel() else 0.0
    torch.testing.assert_close(
        ours.double(), truth, rtol=0, atol=allowed + 4 * torch.finfo(theirs.dtype).eps * scale
    )


@pytest.fixture(scope="module")
def libraries():
    built = build_all()
    yield built
    for library in built.values():
        library.close()


@pytest.mark.parametrize("case", all_pairs(OPTIONS), ids=name_of)
def test_agrees_with_the_reference_in_every_order(libraries, case):
    tensors = tensors_of(case)
    for reduction in ("mean", "none"):
        truth = results(tensors, case, reduction, "reference", torch.float64)
        theirs = results(tensors, case, reduction, "reference")
        seen = []
        for seed in SEEDS:
            with EmulatedOps(libraries, seed, case["misaligned"]) as mode:
                ours = results(tensors, case, reduction, "fused")
            assert mode.calls == 2
            for mine, its, true in zip(ours, theirs, truth, strict=True):
                check(mine, its, true)
            seen.append(ours)
        for other in seen[1:]:  # the same bits in every order
            assert all(torch.equal(m, n) for m, n in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("name", ["target", "mask", "weight", "grad", "loss_map", "grad_logits"])
def test_one_array_may_be_misaligned(libraries, name):
    case = {key: values[0] for key, values in OPTIONS.items()}
    case |= {"shape": (1, 2, 16), "mask": "per channel", "weight": ("per channel", torch.float32)}
    for reduction in ("mean", "none"):
        with EmulatedOps(libraries, 0, (name,)):
            ours = results(tensors_of(case), case, reduction, "fused")
        expected = results(tensors_of(case), case, reduction, "reference")
        torch.testing.assert_close(ours, expected)


def test_runs_without_a_cuda_toolkit():
    library = builder.build(*(builder.ROOT / source for source in MaskedBCE.sources), plain_types=True)
    case = {key: values[0] for key, values in OPTIONS.items()} | {"shape": (1, 2, 3, 37), "mask": "shared"}
    with Emulated(library) as emulated:
        for dtype in OPTIONS["dtype"]:
            case["dtype"] = dtype
            with EmulatedOps({MaskedBCE: emulated}, 0):
                ours = results(tensors_of(case), case, "none", "fused")
            torch.testing.assert_close(ours, results(tensors_of(case), case, "none", "reference"))


def test_a_barrier_taken_out_is_noticed(tmp_path):
    shutil.copytree(builder.ROOT / "kernels", tmp_path / "kernels")
    broken = tmp_path / "kernels/cuda_utils.cuh"
    text = broken.read_text()
    assert "__syncthreads();" in text
    broken.write_text(text.replace("__syncthreads();", "", 1))
    shim = builder.ROOT / MaskedBCE.sources[1]
    library = builder.build(tmp_path / "kernels/cuda/masked_bce.cu", shim, include=tmp_path / "kernels")
    case = {**{name: values[0] for name, values in OPTIONS.items()}, "mask": "shared"}
    for seed in SEEDS:
        noticed = pytest.raises(EmulationError, match=r"(race|uninitialised): .*of_warp")
        with Emulated(library) as emulated, EmulatedOps({MaskedBCE: emulated}, seed), noticed:
            results(tensors_of(case), case, "mean", "fused")
