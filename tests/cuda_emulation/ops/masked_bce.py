# SPDX-License-Identifier: BSD-3-Clause
"""masked_bce's CUDA kernels under the emulation, with the signatures of the ops; does what csrc/masked_bce.cpp does."""

from collections.abc import Container

import torch

from ..emulator import Emulated, Input, Output

_KINDS = {torch.float32: 1, torch.float64: 2, torch.bfloat16: 3, torch.float16: 4}  # ScalarKind; bytes are 0
_COUNTERS = 257


def _loss_dtype(logits):
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _prepare(logits, target, mask, weight, pos_weight, pseudo_weight):
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(
        logits.dim(), torch.contiguous_format
    )
    interleaved = not logits.is_contiguous() and logits.is_contiguous(memory_format=channels_last)
    layout = channels_last if interleaved else torch.contiguous_format
    batch, channels, *_ = logits.shape
    voxels = logits[:, :1].numel() // batch if logits.numel() else 0

    def lay_out(values):
        if values is None:
            return None
        full = values.dim() == 1 or values.shape[1] == channels
        values = values.contiguous(
            memory_format=layout if full and values.dim() > 1 else torch.contiguous_format
        )
        return Input(values.detach())

    return layout, {
        "logits": lay_out(logits),
        "target": lay_out(target),
        "mask": lay_out(mask),
        "weight": lay_out(weight),
        "pos_weight": None if pos_weight is None else Input(pos_weight.detach().to(_loss_dtype(logits))),
        "logits_kind": _KINDS[logits.dtype],
        "target_kind": _KINDS.get(target.dtype, 0),
        "weight_kind": _KINDS[torch.float32 if weight is None else weight.dtype],
        "mask_per_channel": mask is not None and mask.shape[1] == channels,
        "weight_per_channel": weight is not None and weight.shape[1] == channels,
        "outer": batch * voxels if interleaved else batch,
        "channels": channels,
        "inner": 1 if interleaved else voxels,
        "pseudo_weight": float(pseudo_weight),
    }


def _empty_map(logits, layout):
    return torch.full(logits.shape, float("nan"), dtype=logits.dtype).contiguous(memory_format=layout)


class MaskedBCE:
    """``misaligned``: names of arrays that start one element behind a 16-byte boundary."""

    sources = ("kernels/cuda/masked_bce.cu", "tests/cuda_emulation/ops/masked_bce.cpp")

    def __init__(self, emulated: Emulated, seed: int = 0, misaligned: Container[str] = ()):
        self.emulated, self.seed, self.misaligned = emulated, seed, misaligned

    def masked_bce(self, logits, target, mask, weight, pos_weight, pseudo_weight, normalize):
        layout, inputs = _prepare(logits, target, mask, weight, pos_weight, pseudo_weight)
        if normalize == 4:  # none
            loss_map = _empty_map(logits, layout)
            self._call("loss_map", **inputs, loss_map=Output(loss_map))
            return loss_map, torch.empty(0, dtype=torch.float64)
        loss = torch.full((), float("nan"), dtype=_loss_dtype(logits))
        stats = torch.full((8,), float("nan"), dtype=torch.float64)
        size = torch.zeros(1, dtype=torch.int64)
        self._call("scratch_bytes", **inputs, size=Output(size))
        scratch = torch.full((size.item() // 8,), float("nan"), dtype=torch.float64)
        results = {"scratch": Output(scratch), "loss": Output(loss), "stats": Output(stats)}
        self._call("forward", **inputs, normalize=normalize, **results)
        assert not scratch.view(torch.int32)[
            :_COUNTERS
        ].any()  # left as the next launch of the stream needs them
        return loss, stats

    def masked_bce_backward(self, grad, logits, target, mask, weight, pos_weight, scale, pseudo_weight):
        layout, inputs = _prepare(logits, target, mask, weight, pos_weight, pseudo_weight)
        is_map = grad.dim() > 0
        grad = grad.to(logits.dtype if is_map else _loss_dtype(logits))
        grad = grad.contiguous(memory_format=layout) if is_map else grad
        grad_logits = _empty_map(logits, layout)
        upstream = {
            "grad": Input(grad),
            "grad_is_map": is_map,
            "scale": None if scale is None else Input(scale[-2:]),  # of the stats, the last two
        }
        self._call("backward", **inputs, **upstream, grad_logits=Output(grad_logits))
        return grad_logits

    def _call(self, symbol, **arguments):
        for name, array in arguments.items():
            if isinstance(array, Input) and name in self.misaligned:
                array.misalignment = array.tensor.element_size()
        status = self.emulated.call(symbol, seed=self.seed, **arguments)
        assert status == 0, f"masked_bce {symbol}: cudaError {status}"
