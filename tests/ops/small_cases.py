# SPDX-License-Identifier: BSD-3-Clause
"""Every op's kernels on small inputs and nothing else, to run under a checker of memory or races:

    compute-sanitizer --tool racecheck python -m tests.ops.small_cases --device cuda

Inputs are made on the CPU and results compared there, so that hardly a kernel of torch's runs. Numbers that differ are
told, in lines that begin with "numbers:" and by the exit code 3, and end nothing. An op joins OPS.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastseg import (
    extract_patches,
    masked_weighted_bce,
    patch_entropy,
    region_pool,
    region_stats,
    sample_patches,
    soft_region_pool,
)
from fastseg import region_contrast as contrast

from . import (
    region_contrast_cases,
    region_pool_cases,
    test_masked_bce,
    test_patch_entropy,
    test_region_contrast,
    test_region_pool,
    test_region_pool_soft,
)
from .masked_bce_cases import make_case
from .patch_entropy_cases import make_mask, make_values, with_gradient

# Against the same op's CPU kernel, relative to the largest value. Both are tested elsewhere, to the last digits.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def masked_bce() -> Iterator[Callable[[str], list[Tensor]]]:
    """Per case a function of the device that gives results and gradients."""
    for number, factors in enumerate(test_masked_bce.CASES):
        options = dict(factors)
        normalize, pseudo_weight = options.pop("reduction"), options.pop("pseudo_weight")
        reduction = normalize if normalize in ("sum", "none") else "mean"
        settings = {"pseudo_weight": pseudo_weight, "reduction": reduction, "impl": "fused"}
        settings["normalize"] = "voxels" if reduction != "mean" else normalize
        tensors = make_case(**options, seed=number)

        def run(device, tensors=tensors, settings=settings):
            arguments = {name: tensor.to(device) for name, tensor in tensors.items()}
            arguments["logits"].requires_grad_()
            result = masked_weighted_bce(**arguments, **settings)
            grad = torch.ones_like(result, device="cpu").to(device)
            (gradient,) = torch.autograd.grad(result, arguments["logits"], grad)
            return [result.detach(), gradient]

        yield run


def patch_entropy_cases() -> Iterator[Callable[[str], list[Tensor]]]:
    """Scores and their gradient; then windows drawn, cut out, and put back."""
    for number, case in enumerate(test_patch_entropy.CASES):
        shape, patch, stride = case["geometry"]
        options = {"mode": case["mode"], "from_logits": case["from_logits"]}
        values = make_values(shape, case["dtype"], **options, seed=number)
        mask = make_mask(shape, case["mask"], case["mode"], seed=number)

        def run(device, values=values, mask=mask, patch=patch, stride=stride, options=options):
            mask = None if mask is None else mask.to(device)
            found = with_gradient(
                patch_entropy, values.to(device), patch, stride, mask=mask, impl="fused", **options
            )
            return [value.nan_to_num(0) for value in found]

        yield run
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand((2, 3, 5, 300), generator=draw), torch.rand((2, 3, 5, 300), generator=draw)
    volume = torch.rand((2, 2, 20, 400), generator=draw)
    for strategy, replacement in (("probabilistic", True), ("probabilistic", False), ("lowest", True)):

        def run(device, strategy=strategy, replacement=replacement):
            leaf = volume.to(device).requires_grad_()
            options = {"seed": 3, "strategy": strategy, "replacement": replacement, "impl": "fused"}
            samples = sample_patches(*(score.to(device) for score in scores), 20, **options)
            patches = extract_patches(leaf, samples.corners, (16, 100), impl="fused")
            (gradient,) = torch.autograd.grad(patches, leaf, torch.ones_like(patches))
            return [samples.index.double(), samples.parity.double(), patches.detach(), gradient]

        yield run


def region_contrast() -> Iterator[Callable[[str], list[Tensor]]]:
    for number, factors in enumerate(test_region_contrast.CASES):
        options = dict(factors)
        if options["dtype"] == torch.float64:  # which has no kernel on a GPU
            continue
        settings = {key: options.pop(key) for key in ("similarity", "denominator", "reduction")}
        settings["temperature"] = options.pop("temperature") * options["size"] ** 0.5
        tensors = region_contrast_cases.make_case(**options, seed=number)

        def run(device, tensors=tensors, settings=settings):
            arguments = {name: tensor.to(device) for name, tensor in tensors.items()}
            weights = torch.ones(len(tensors["anchors"])).to(device)
            return region_contrast_cases.run(contrast, arguments, weights, impl="fused", **settings)

        yield run


def gradients(results: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Results and gradients of their sum, without a kernel of torch's but for the backward pass."""
    pairs = [(r, torch.ones_like(r, device="cpu").to(r.device)) for r in results if r.requires_grad]
    values, ones = zip(*pairs, strict=True)
    return [*(r.detach() for r in results), *torch.autograd.grad(values, tensors, ones)]


def hard_region_pool() -> Iterator[Callable[[str], list[Tensor]]]:
    for number, factors in enumerate(test_region_pool.CASES):
        options = dict(factors)
        reduce, num_regions = options.pop("reduce"), options["num_regions"]
        tensors = region_pool_cases.make_case(**options, seed=number)

        def run(device, tensors=tensors, reduce=reduce, num_regions=num_regions):
            features, regions = (tensor.to(device) for tensor in tensors)
            features.requires_grad_()
            if reduce == "stats":
                results = region_stats(features, regions, num_regions, impl="fused")[1:]
            else:
                results = [region_pool(features, regions, num_regions, reduce=reduce, impl="fused")]
            return gradients(list(results), [features])

        yield run


def soft_pool() -> Iterator[Callable[[str], list[Tensor]]]:
    for number, factors in enumerate(test_region_pool_soft.CASES):
        options = dict(factors)
        settings = {name: options.pop(name) for name in ("from_logits", "variance")}
        tensors = region_pool_cases.make_soft_case(**options, seed=number)
        if not settings["from_logits"]:
            tensors[1] = tensors[1].abs()

        def run(device, tensors=tensors, settings=settings):
            moved = [None if tensor is None else tensor.to(device).requires_grad_() for tensor in tensors]
            results = soft_region_pool(*moved[:2], grey=moved[2], **settings, impl="fused")
            return gradients([r for r in results if r is not None], [t for t in moved if t is not None])

        yield run


OPS = {
    "masked_bce": masked_bce,
    "patch_entropy": patch_entropy_cases,
    "region_contrast": region_contrast,
    "region_pool": hard_region_pool,
    "soft_region_pool": soft_pool,
}


def compare(found: list[Tensor], expected: list[Tensor]) -> None:
    for value, truth in zip(found, expected, strict=True):
        scale = truth.double().abs().max().item() if truth.numel() else 1.0
        error = (value.cpu().double() - truth.double()).abs().max().item() if truth.numel() else 0.0
        if not error <= TOLERANCE[value.dtype] * scale:
            raise AssertionError(f"off by {error:.3g}, the largest value is {scale:.3g}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run every op's kernels on small inputs.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no further case after these"
    )
    options = parser.parse_args(arguments)
    cases = [(number, op, run) for op, make in OPS.items() for number, run in enumerate(make())]
    cases.sort(key=lambda case: case[:2])  # the ops take turns: where time runs out, each has had its share
    begin, done, differ = time.monotonic(), 0, 0
    for number, op, run in cases:
        if time.monotonic() - begin > options.seconds:
            break
        try:
            compare(run(options.device), run("cpu"))
        except AssertionError as error:
            differ += 1
            print(f"numbers: {op}, small case {number}: {error}", flush=True)
        except Exception as error:
            raise RuntimeError(f"{op}, small case {number}") from error
        done += 1
    print(f"{done} of {len(cases)} small cases ran on {options.device} in {time.monotonic() - begin:.0f} s")
    if differ:
        sys.exit(3)


if __name__ == "__main__":
    main()
