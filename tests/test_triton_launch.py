# SPDX-License-Identifier: BSD-3-Clause
"""kernels/triton/launch.py: its keys against Triton's own, its launches against JITFunction's, with a driver that
writes down what it is given in place of a GPU."""

import itertools
import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter is on: nothing is compiled"
)

NUMBERS = [0, 1, 2, 15, 16, 17, -1, -16, True, False, 0.0, 1.0, 0.5, None]
NUMBERS += [
    sign * 2**bits + more for bits in (31, 32, 62) for sign in (1, -1) for more in (-16, -1, 0, 1, 16)
]
NUMBERS += [2**63 - 16, 2**63 - 1, 2**63, 2**63 + 16, 2**64 - 16, -(2**63)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8]
TENSORS = [torch.zeros(64, dtype=dtype)[start:] for dtype in DTYPES for start in (0, 1, 2, 8, 16)]


def test_a_key_is_never_coarser_than_triton_s():
    from fastseg.triton.launch import signature
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend

    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    values = NUMBERS + TENSORS
    keys = [tuple(signature((value,))) for value in values]
    theirs = [native_specialize_impl(backend, value, False, True, True) for value in values]
    assert len(set(theirs)) > 20
    for one, other in itertools.combinations(range(len(values)), 2):
        if keys[one] == keys[other]:
            assert theirs[one] == theirs[other], (values[one], values[other])
    assert len(set(keys)) <= len(set(theirs)) + 6  # and not much finer


class StandIn:
    """A driver of a GPU that is not there: compiles for it, and keeps what would be launched."""

    def __init__(self):
        self.launches = launches = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            load_binary=lambda name, kernel, shared, device: ("module", name, 32, 0, 1024),
            unload_module=lambda module: None,
        )

        class Launcher:
            def __init__(self, source, metadata):
                pass

            def __call__(self, *arguments, **keywords):
                launches.append(arguments)

        self.launcher_cls = Launcher

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 7

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in, and how often JITFunction ran."""
    from fastseg.triton import launch
    from fastseg.triton.region_contrast_prepare import measure_rows
    from triton.runtime.driver import driver

    stand_in, runs = StandIn(), []
    plain_run = type(measure_rows).run
    monkeypatch.setattr(driver, "_active", stand_in)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(measure_rows, "device_caches", defaultdict(measure_rows.create_binder))
    monkeypatch.setattr(
        type(measure_rows), "run", lambda *inputs, **options: runs.append(1) or plain_run(*inputs, **options)
    )
    yield stand_in, runs
    for compiled, _ in launch._compiled.values():
        compiled.module = None  # nothing to unload


def start(rows, ids, counters, M=32, size=128, grid=(2,)):
    from fastseg.triton.launch import launch
    from fastseg.triton.region_contrast_prepare import measure_rows

    measured = torch.zeros(64)
    arguments = (rows, ids, rows, ids, measured, counters, M, 0, 48, 2, 0, 4)
    constants = {"SIMILARITY": 0, "BLOCK_M": 16, "BLOCK_D": size, "num_warps": 4}
    launch(measure_rows, grid, *arguments, **constants)
    return arguments, (0, 16, size)


def test_a_direct_launch_is_jitfunction_s(gpu):
    stand_in, runs = gpu
    rows, ids, counters = torch.zeros(64, 48), torch.zeros(64).long(), torch.zeros(64).int()
    for turn in range(3):
        arguments, constants = start(rows, ids, counters, grid=(2 + turn,))
        given = stand_in.launches[-1]
        assert given[:4] == (2 + turn, 1, 1, 7)  # grid and stream
        for one, other in zip(given[-15:], (*arguments, *constants), strict=True):
            assert one is other
        first = stand_in.launches[0]
        assert given[4:6] == first[4:6]  # the function, its metadata
        assert type(given[6]) is type(first[6])  # a dictionary that nobody has read
        assert given[7:9] == first[7:9]  # hooks
    assert len(stand_in.launches) == 3
    assert len(runs) == 1


def test_another_signature_is_another_kernel(gpu):
    stand_in, runs = gpu
    rows, ids, counters = torch.zeros(80, 48), torch.zeros(80).long(), torch.zeros(80).int()
    calls = [
        (rows, ids, counters),
        (rows.bfloat16(), ids, counters),
        (rows, ids.int(), counters),
        (rows.flatten()[1:], ids, counters),  # not aligned
        (rows, ids, counters, 1),
        (rows, ids, counters, 33),
        (rows, ids, counters, 32, 64),
    ]
    for _ in range(2):
        for call in calls:
            start(*call)
        assert len(runs) == len(calls)
    functions = {id(given[5]) for given in stand_in.launches}  # packed metadata, one of each compiled kernel
    assert len(functions) == len(calls)
    assert len(stand_in.launches) == 2 * len(calls)
