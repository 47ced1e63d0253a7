# SPDX-License-Identifier: BSD-3-Clause
"""patch_entropy's CUDA kernels under the emulation, with the signatures of the ops, as csrc/patch_entropy*.cpp."""

import math
from collections.abc import Container

import torch

from ..emulator import Emulated, InOut, Input, Output

_KINDS = {torch.float32: 1, torch.float64: 2, torch.bfloat16: 3, torch.float16: 4}  # ScalarKind
_LONGEST, _UNSPLIT, _CHUNK = 16, 2**31 - 1, 1024


def _nan(shape, dtype):
    return torch.full(shape, float("nan"), dtype=dtype)


def _three(values, axes):
    """With ones for the axes that are not there."""
    return [1] * (3 - axes) + list(values)


class PatchEntropyOps:
    """``misaligned``: names of arrays that start one element behind a 16-byte boundary."""

    sources = (
        "kernels/cuda/patch_entropy.cu",
        "kernels/cuda/patch_entropy_backward.cu",
        "kernels/cuda/patch_entropy_categorical.cu",
        "kernels/cuda/patch_entropy_crops.cu",
        "kernels/cuda/patch_entropy_few_cells.cu",
        "kernels/cuda/patch_entropy_sampling.cu",
        "tests/cuda_emulation/ops/patch_entropy.cpp",
    )

    def __init__(self, emulated: Emulated, seed: int = 0, misaligned: Container[str] = ()):
        self.emulated, self.seed, self.misaligned = emulated, seed, misaligned

    def patch_entropy(self, values, mask, patch_size, stride, categorical, from_logits, min_count):
        inputs, axes, real = self._inputs(
            values, mask, patch_size, stride, categorical, from_logits, min_count, _LONGEST
        )
        batch, channels = values.shape[:2]
        facts = [self._axis(*axis, _LONGEST) for axis in axes]
        scale = 1.0 if mask is not None else 1.0 / math.prod(patch for _, patch, _ in axes)
        shape = [cells for _, _, cells, *_ in facts]
        windows = [(size - patch) // step + 1 for size, patch, step in axes]
        of_entropy = 1 if categorical else channels
        maps = [_nan((batch, k, *windows), real) for k in (of_entropy, channels, of_entropy)]
        if mask is None:
            maps[2] = torch.empty(0, dtype=real)
        entropy, confidence, counts = maps
        planes = [one.numel() // math.prod(windows) if math.prod(windows) else 0 for one in maps]
        sums = _nan((sum(planes), *shape), real)
        if self._has_few_cells(inputs):
            self._call("cells", **inputs, scale=1.0, sums=Output(sums))
            out = {"entropy": Output(entropy), "confidence": Output(confidence)}
            out["counts"] = None if mask is None else Output(counts)
            self._call("windows", **inputs, cells=Input(sums), **out)
        else:
            *passes, last = [i for i in (2, 1, 0) if facts[i][:2] != [1, 1]]
            self._call("cells", **inputs, scale=1.0, sums=Output(sums))
            for number in passes:
                outer, inner = sum(planes) * math.prod(shape[:number]), math.prod(shape[number + 1 :])
                shape[number] = windows[number]
                target = _nan((sum(planes), *shape), real)
                self._box_sum(axes[number], _LONGEST, 0, outer, inner, 1.0, sums, InOut(target))
                sums = target
            inner = math.prod(shape[last + 1 :])
            for one, part in zip(maps, sums.split(planes), strict=True):
                outer = len(part) * math.prod(shape[:last])
                if one.numel():
                    self._box_sum(axes[last], _LONGEST, 0, outer, inner, scale, part.clone(), InOut(one))
            if mask is not None:
                out = {"entropy": InOut(entropy), "confidence": InOut(confidence), "counts": Input(counts)}
                self._call("divide", **inputs, **out)
        here = len(patch_size)
        return tuple(
            one if one.dim() == 1 else one.view(*one.shape[:2], *windows[3 - here :]) for one in maps
        )

    def patch_entropy_backward(self, grad_entropy, grad_confidence, values, mask, counts, *options):
        patch_size, stride, categorical, from_logits, min_count = options
        inputs, axes, real = self._inputs(
            values, mask, patch_size, stride, categorical, from_logits, min_count, _UNSPLIT
        )
        batch, channels = values.shape[:2]
        planes = (batch if categorical else batch * channels) + batch * channels
        shape = [(size - patch) // step + 1 for size, patch, step in axes]
        sums = _nan((planes, *shape), real)
        given = {"entropy": grad_entropy, "confidence": grad_confidence, "counts": counts}
        given = {n: None if one is None else Input(one.detach().contiguous()) for n, one in given.items()}
        few = self._has_few_cells(inputs)
        if few:
            sums = _nan((planes, *(self._axis(*axis, _UNSPLIT)[2] for axis in axes)), real)
        self._call("grad_cells" if few else "upstream", **inputs, **given, sums=Output(sums))
        for number, axis in enumerate(() if few else axes):
            per_stride, per_window, cells, heads, tails = self._axis(*axis, _UNSPLIT)
            if per_stride == per_window == 1:
                continue
            outer, inner = planes * math.prod(shape[:number]), math.prod(shape[number + 1 :])
            shape[number] = cells
            target = _nan((planes, *shape), real)
            for direction in [1] * heads + [2] * tails:
                # Each direction writes its own cells and leaves the others as they are.
                self._box_sum(axis, _UNSPLIT, direction, outer, inner, 1.0, sums, InOut(target))
            sums = target
        grad_values = _nan(values.shape, values.dtype)
        self._call("gradient", **inputs, grad_cells=Input(sums), grad_values=Output(grad_values))
        return grad_values

    def patch_entropy_sample(
        self, entropy, confidence, seed, n, stride, strategy, replacement, floor, threshold
    ):
        batch, channels, *windows = confidence.shape
        rows, number, axes = batch * channels, math.prod(windows), len(windows)
        index = torch.full((batch, channels, n), -9)
        corners, parity = torch.full((*index.shape, axes), -9), torch.full(index.shape, 9, dtype=torch.uint8)
        count = torch.full((batch, channels), -9)
        chunks = -(-number // _CHUNK)
        self._call(
            "sample",
            entropy=Input(entropy.contiguous()),
            confidence=Input(confidence.contiguous()),
            key=Input(seed.reshape(1)),
            is_double=entropy.dtype == torch.float64,
            batch=batch,
            channels=channels,
            entropy_channels=entropy.shape[1],
            axes=axes,
            **{f"shape{i}": [*windows, 1, 1][i] for i in range(3)},
            **{f"step{i}": [*stride, 1, 1][i] for i in range(3)},
            windows=number,
            draws=n,
            strategy=strategy,
            replacement=replacement,
            floor=floor,
            threshold=threshold,
            index=Output(index),
            corners=Output(corners),
            parity=Output(parity),
            count=Output(count),
            weights=Output(torch.full((rows, number), -9, dtype=torch.int32)),
            sums=Output(torch.full((rows, chunks), -9)),
            firsts=Output(torch.full((rows, chunks), -9)),
        )
        assert ((parity == 0) | (parity == 1)).all()
        return index, corners, parity.bool(), count

    def patch_entropy_crops(self, volume, corners, patch_size):
        axes = len(patch_size)
        # All of memory that the volume may lie in, as a view of it keeps the strides of the whole.
        storage = torch.empty(0, dtype=volume.dtype).set_(volume.detach().untyped_storage())
        assert volume.storage_offset() == 0
        kept = torch.zeros((*corners.shape[:2], volume.shape[1], *patch_size), dtype=volume.dtype)
        strides = [*volume.stride()[:2], *[0] * (3 - axes), *volume.stride()[2:]]
        self._call(
            "crops",
            **self._crops(corners, volume.shape[1], volume.shape[2:], patch_size, strides),
            element_size=volume.element_size(),
            volume=Input(storage),
            result=Output(kept),
        )
        return kept

    def patch_entropy_crops_backward(self, grad, corners, spatial):
        grad_volume = _nan((grad.shape[0], grad.shape[2], *spatial), grad.dtype)
        self._call(
            "crops_backward",
            **self._crops(corners, grad.shape[2], spatial, list(grad.shape[3:]), [0] * 5),
            kind=_KINDS[grad.dtype],
            grad=Input(grad.detach().contiguous()),
            grad_volume=Output(grad_volume),
        )
        return grad_volume

    def _crops(self, corners, channels, spatial, patch_size, strides):
        axes = len(patch_size)
        sizes, patch = _three(spatial, axes), _three(patch_size, axes)
        return {
            "corners": Input(corners.contiguous()),
            "batch": corners.shape[0],
            "patches": corners.shape[1],
            "channels": channels,
            "axes": axes,
            **dict(zip(("depth", "height", "width"), sizes, strict=True)),
            **{f"patch{i}": patch[i] for i in range(3)},
            **{f"stride{i}": strides[i] for i in range(5)},
        }

    def _inputs(self, values, mask, patch_size, stride, categorical, from_logits, min_count, longest):
        spatial = len(patch_size)
        axes = list(
            zip(
                _three(values.shape[2:], spatial),
                _three(patch_size, spatial),
                _three(stride, spatial),
                strict=True,
            )
        )
        numbers = {
            f"{axis}_{name}": number
            for axis, sizes in zip("dhw", axes, strict=True)
            for name, number in zip(("size", "patch", "stride"), sizes, strict=True)
        }
        inputs = {
            "values": Input(values.detach().contiguous()),
            "mask": None if mask is None else Input(mask.contiguous()),
            "kind": _KINDS[values.dtype],
            "from_logits": from_logits,
            "categorical": categorical,
            "mask_per_channel": mask is not None and mask.shape[1] == values.shape[1],
            "batch": values.shape[0],
            "channels": values.shape[1],
            **numbers,
            "min_count": max(min_count, 1),
            "longest_cell": longest,
        }
        return inputs, axes, torch.float64 if values.dtype == torch.float64 else torch.float32

    def _has_few_cells(self, inputs):
        few = torch.zeros(1, dtype=torch.int64)
        self._call("has_few_cells", **inputs, few=Output(few))
        return bool(few.item())

    def _axis(self, size, patch, stride, longest):
        facts = torch.zeros(5, dtype=torch.int64)
        self._call("axis_of", size=size, patch=patch, stride=stride, longest=longest, facts=Output(facts))
        return facts.tolist()

    def _box_sum(self, axis, longest, direction, outer, inner, scale, source, target):
        sizes = dict(zip(("size", "patch", "stride"), axis, strict=True))
        options = {"longest": longest, "direction": direction, "outer": outer, "inner": inner, "scale": scale}
        is_double = source.dtype == torch.float64
        self._call("box_sum", **sizes, **options, is_double=is_double, source=Input(source), target=target)

    def _call(self, symbol, **arguments):
        for name, array in arguments.items():
            if isinstance(array, Input) and name in self.misaligned:
                array.misalignment = array.tensor.element_size()
        status = self.emulated.call(symbol, seed=self.seed, **arguments)
        assert status == 0, f"patch_entropy {symbol}: cudaError {status}"
