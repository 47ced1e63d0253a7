# SPDX-License-Identifier: BSD-3-Clause
"""region_pool's CUDA kernels under the emulation, with the ops' signatures; does what csrc/region_pool.cpp does."""

from collections.abc import Container

import torch

from fastseg.ops.checks import FLOATS, is_channels_last, real_dtype

from ..emulator import Emulated, Input, Output

_LABELS = [
    *(torch.uint8, torch.int8, torch.uint16, torch.int16),
    *(torch.uint32, torch.int32, torch.uint64, torch.int64),
]
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_SUM, _MEAN, _VARIANCE, _MIN, _MAX, _ALL = range(6)


def layout_of(tensor: torch.Tensor) -> torch.memory_format:
    return _LAYOUTS[tensor.dim()] if is_channels_last(tensor) else torch.contiguous_format


def kind_of(dtype: torch.dtype) -> int:
    return FLOATS.index(dtype) + 1


def output(shape, dtype, layout=torch.contiguous_format) -> torch.Tensor:
    value = float("nan") if dtype.is_floating_point else -7
    return torch.full(tuple(shape), value, dtype=dtype).contiguous(memory_format=layout)


class EmulatedOp:
    """``misaligned``: names of arrays that start one element behind a 16-byte boundary."""

    def __init__(self, emulated: Emulated, seed: int = 0, misaligned: Container[str] = ()):
        self.emulated, self.seed, self.misaligned = emulated, seed, misaligned

    def call(self, symbol, **arguments):
        for name, array in arguments.items():
            if isinstance(array, Input) and name in self.misaligned and name != "scratch":  # that is our own
                array.misalignment = array.tensor.element_size()
        status = self.emulated.call(symbol, seed=self.seed, **arguments)
        assert status == 0, f"{symbol}: cudaError {status}"

    def scratch(self, inputs, option):
        bytes_needed = self.emulated.call("scratch_bytes", seed=self.seed, **inputs, option=option)
        return Output(torch.zeros(bytes_needed, dtype=torch.uint8))


class RegionPool(EmulatedOp):
    sources = (
        *("kernels/cuda/region_pool.cu", "kernels/cuda/region_pool_backward.cu"),
        "kernels/cuda/region_pool_columns.cu",
        "kernels/cuda/region_pool_sorted.cu",
        "tests/cuda_emulation/ops/region_pool.cpp",
    )

    def _labels(self, regions, channels, num_regions, channels_last):
        regions = regions.contiguous()
        return {
            "regions": Input(regions),
            "label_kind": _LABELS.index(regions.dtype),
            "batch": regions.shape[0],
            "channels": channels,
            "voxels": regions[:1].numel() if regions.shape[0] else 0,
            "num_regions": num_regions,
            "channels_last": channels_last,
        }

    def _inputs(self, features, regions, num_regions):
        layout = layout_of(features)
        last = layout != torch.contiguous_format
        values = Input(features.detach().contiguous(memory_format=layout))
        head = {"features": values, "kind": kind_of(features.dtype)}
        return layout, head | self._labels(regions, features.shape[1], num_regions, last)

    def region_pool(self, features, regions, num_regions, reduce):
        _, inputs = self._inputs(features, regions, num_regions)
        real = real_dtype(features)
        table = (features.shape[0], num_regions, features.shape[1])
        variance, low, high = (reduce in (one, _ALL) for one in (_VARIANCE, _MIN, _MAX))
        wanted = {
            "mean": (reduce in (_SUM, _MEAN) or variance, real),
            "variance": (variance, real),
            "minimum": (low, real),
            "maximum": (high, real),
            "argmin": (low, torch.int64),
            "argmax": (high, torch.int64),
        }
        results = {name: output(table if want else (0,), dtype) for name, (want, dtype) in wanted.items()}
        arrays = {name: Output(value) if value.numel() else None for name, value in results.items()}
        count = output(table[:2], torch.int64)
        if features.shape[1] == 0:  # one channel of anything
            ones = torch.ones(features.shape[0], inputs["voxels"], dtype=features.dtype)
            inputs |= {"features": Input(ones), "channels": 1, "channels_last": False}
        scratch = self.scratch(inputs, reduce)
        self.call("pool", **inputs, reduce=reduce, count=Output(count), **arrays, scratch=scratch)
        values = list(results.values())
        return *values[:4], count, *values[4:]

    def region_pool_backward(
        self, regions, kind, channels_last, features, mean, count, argmin, argmax, *grads
    ):
        dtype, (_, num_regions, channels) = FLOATS[kind - 1], next(g for g in grads if g is not None).shape
        shape = (regions.shape[0], channels, *regions.shape[1:])
        layout = _LAYOUTS[len(shape)] if channels_last else torch.contiguous_format
        real = torch.float64 if dtype == torch.float64 else torch.float32

        def table(tensor, dtype=real):
            return None if tensor is None else Input(tensor.detach().to(dtype).contiguous())

        base, slope, minimum, maximum = map(table, grads)
        values = None if slope is None else Input(features.detach().contiguous(memory_format=layout))
        inputs = {"features": values, "kind": kind}
        inputs |= self._labels(regions, channels, num_regions, channels_last)
        if count is not None:
            shares = [None if t is None else output(t.tensor.shape, real) for t in (base, slope)]
            tables = {
                name: None if t is None else Output(t)
                for name, t in zip(("base", "slope"), shares, strict=True)
            }
            counts = table(count, torch.int64)
            self.call("shares", **inputs, count=counts, grad_mean=base, grad_variance=slope, **tables)
            base, slope = map(table, shares)
        arrays = {
            "base": base,
            "slope": slope,
            "mean": table(mean),
            "grad_minimum": minimum,
            "grad_maximum": maximum,
        }
        arrays |= {"argmin": table(argmin, torch.int64), "argmax": table(argmax, torch.int64)}
        grad = output(shape, dtype, layout)
        self.call("gradient", **inputs, **arrays, grad_features=Output(grad))
        return grad
