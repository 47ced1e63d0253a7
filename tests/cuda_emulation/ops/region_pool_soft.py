# SPDX-License-Identifier: BSD-3-Clause
"""soft_region_pool's CUDA kernels under the emulation; does what csrc/region_pool_soft.cpp does."""

import torch

from ..emulator import Input, Output
from .region_pool import EmulatedOp, kind_of, layout_of, output


class SoftRegionPool(EmulatedOp):
    sources = (
        *("kernels/cuda/region_pool_soft.cu", "kernels/cuda/region_pool_soft_backward.cu"),
        "tests/cuda_emulation/ops/region_pool_soft.cpp",
    )

    def _inputs(self, features, grey, assignment, from_logits, variance):
        inputs, layouts = {}, []
        for name, tensor in (("features", features), ("grey", grey), ("assignment", assignment)):
            layout = torch.contiguous_format if tensor is None else layout_of(tensor)
            layouts.append(layout)
            inputs |= {
                name: None if tensor is None else Input(tensor.detach().contiguous(memory_format=layout)),
                f"{name}_kind": 1 if tensor is None else kind_of(tensor.dtype),
                f"{name}_rows": 0 if tensor is None else tensor.shape[1],
                f"{name}_last": layout != torch.contiguous_format,
            }
        wide = torch.float64 in [t.dtype for t in (features, grey, assignment) if t is not None]
        inputs |= {
            "batch": features.shape[0],
            "voxels": features.shape[2:].numel(),
            "plain": 0 if variance else features.shape[1],
            "from_logits": from_logits,
            "wide": wide,
        }
        return layouts, torch.float64 if wide else torch.float32, inputs

    def soft_region_pool(self, features, grey, assignment, from_logits, variance):
        _, real, inputs = self._inputs(features, grey, assignment, from_logits, variance)
        batch, parts = assignment.shape[:2]
        channels = inputs["features_rows"] + inputs["grey_rows"]
        shapes = ((batch, parts), (batch, parts, channels), (batch, parts, channels - inputs["plain"]))
        results = [output(shape, real) for shape in shapes]
        arrays = dict(zip(("mass", "mean", "variance"), map(Output, results), strict=True))
        self.call("pool", **inputs, **arrays, scratch=self.scratch(inputs, 0))
        return tuple(results)

    def soft_region_pool_backward(self, features, grey, assignment, from_logits, variance, *others):
        results, upstream, wanted = others[:3], others[3:6], others[6:]
        layouts, real, inputs = self._inputs(features, grey, assignment, from_logits, variance)
        names = ("mass", "mean", "variance", "grad_mass", "grad_mean", "grad_variance")
        given = {
            name: None if table is None else Input(table.detach().to(real).contiguous())
            for name, table in zip(names, (*results, *upstream), strict=True)
        }
        mass, mean, spread = results
        shapes = {
            "direct": mean.shape,
            "curved": spread.shape,
            "shift": mean[:, 0].shape,
            "offset": mass.shape,
        }
        tables = {name: output(shape, real) for name, shape in shapes.items()}
        self.call("tables", **inputs, **given, **{name: Output(table) for name, table in tables.items()})
        tables = {name: Input(table) for name, table in tables.items()}
        grads = [
            output(tensor.shape, tensor.dtype, layout) if want else output((0,), real)
            for tensor, layout, want in zip((features, grey, assignment), layouts, wanted, strict=True)
        ]
        names = ("grad_features", "grad_grey", "grad_assignment")
        arrays = {
            name: Output(g) if want else None for name, g, want in zip(names, grads, wanted, strict=True)
        }
        self.call("gradient", **inputs, **tables, **arrays, scratch=self.scratch(inputs, 1))
        return tuple(grads)
