# SPDX-License-Identifier: BSD-3-Clause
"""The ops whose CUDA kernels run under the emulation: one line each in OPS, one adapter each beside this file."""

import os
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor

from torch.utils._python_dispatch import TorchDispatchMode

from ..build import ROOT, build
from ..emulator import Emulated
from .masked_bce import MaskedBCE
from .patch_entropy import PatchEntropyOps
from .region_pool import RegionPool
from .region_pool_soft import SoftRegionPool

OPS = (MaskedBCE, PatchEntropyOps, RegionPool, SoftRegionPool)


class _Every:
    def __contains__(self, name: str) -> bool:
        return True


EVERY_ARRAY = _Every()


def build_all() -> dict[type, Emulated]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        libraries = pool.map(lambda op: build(*(ROOT / source for source in op.sources)), OPS)
        return {op: Emulated(library) for op, library in zip(OPS, libraries, strict=True)}


class EmulatedOps(TorchDispatchMode):
    """While it is entered, torch.ops.fastseg on CPU tensors means the emulated CUDA kernels. So any test of an
    op, by way of its public function and its autograd, can be run over them."""

    def __init__(self, libraries: dict[type, Emulated], seed: int, misaligned: Container[str] = ()):
        super().__init__()
        self.ops = [op(library, seed, misaligned) for op, library in libraries.items()]
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastseg":
            name = function._schema.name.removeprefix("fastseg::")
            for op in self.ops:
                if hasattr(op, name):
                    self.calls += 1
                    return getattr(op, name)(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))
