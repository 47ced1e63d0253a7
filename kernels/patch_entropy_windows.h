// SPDX-License-Identifier: BSD-3-Clause
// Windows along one axis, the cells they are made of, and sums over a sliding range of cells, shared by the
// CPU and the CUDA kernels of patch_entropy.
//
// An axis is cut wherever a window begins or ends. Within every period of `stride` voxels that makes at most
// two cells: a head of patch % stride and a tail of the rest. They are cells of size gcd(patch, stride) where
// the one divides the other, and larger ones elsewhere (51 and 20: cells of 11 and 9 voxels, not of 1).
#pragma once

#include <cstdint>

#include "elementary.h"

namespace fastseg {

struct WindowAxis {
  int32_t size, patch, stride;  // voxels
  int32_t windows;              // only those that fit
  int32_t head, tail;           // voxels; where windows do not touch, the gap between them is no cell
  int32_t head_parts, tail_parts;
  int32_t head_length, tail_length;  // of their parts, but the last one's, which is at most that
  int32_t per_stride;                // cells from one window's begin to the next one's
  int32_t per_window;                // cells of a window
  int32_t cells;

  // The first voxel of a cell, and one past its last.
  FASTSEG_HOST_DEVICE int32_t begin(int32_t cell) const {
    const int32_t period = cell / per_stride;
    return period * stride + edge(cell - period * per_stride);
  }
  FASTSEG_HOST_DEVICE int32_t end(int32_t cell) const {
    const int32_t period = cell / per_stride;
    return period * stride + edge(cell - period * per_stride + 1);
  }
  // The cell of a voxel where cells are not split, or -1 if no window holds it.
  FASTSEG_HOST_DEVICE int32_t cell_of(int32_t voxel) const {
    const int32_t period = voxel / stride;
    const int32_t within = voxel - period * stride;
    const int32_t part = within < head ? 0 : head_parts;
    const int32_t cell = period * per_stride + part;
    return within >= head + tail || cell >= cells ? -1 : cell;
  }
  // The windows [*first, *last) that hold a cell, where cells are not split.
  FASTSEG_HOST_DEVICE void windows_of(int32_t cell, int32_t* first, int32_t* last) const {
    const int32_t period = cell / per_stride;
    const bool is_head = head_parts > 0 && cell == period * per_stride;
    const int32_t many = (stride >= patch ? 0 : patch / stride) + (is_head ? 1 : 0);
    *first = period - many + 1 > 0 ? period - many + 1 : 0;
    *last = period < windows ? period + 1 : windows;
  }

 private:
  FASTSEG_HOST_DEVICE int32_t edge(int32_t part) const {
    const int32_t head_edge = part * head_length, tail_edge = head + (part - head_parts) * tail_length;
    if (part <= head_parts) return head_edge < head ? head_edge : head;
    return tail_edge < stride ? tail_edge : stride;
  }
};

// Cells longer than longest_cell are split into parts, which is more work to share out.
inline WindowAxis make_window_axis(int64_t size, int64_t patch, int64_t stride, int64_t longest_cell) {
  WindowAxis axis{};
  axis.size = int32_t(size);
  axis.patch = int32_t(patch);
  axis.stride = int32_t(stride);
  axis.windows = size < patch ? 0 : int32_t((size - patch) / stride + 1);
  axis.head = int32_t(stride >= patch ? patch : patch % stride);
  axis.tail = int32_t(stride >= patch ? 0 : stride - axis.head);
  axis.head_parts = int32_t((axis.head + longest_cell - 1) / longest_cell);
  axis.tail_parts = int32_t((axis.tail + longest_cell - 1) / longest_cell);
  axis.head_length = axis.head_parts == 0 ? 0 : (axis.head - 1) / axis.head_parts + 1;
  axis.tail_length = axis.tail_parts == 0 ? 0 : (axis.tail - 1) / axis.tail_parts + 1;
  axis.per_stride = axis.head_parts + axis.tail_parts;
  axis.per_window = (stride >= patch ? 0 : int32_t(patch / stride) * axis.per_stride) + axis.head_parts;
  axis.cells = axis.windows == 0 ? 0 : (axis.windows - 1) * axis.per_stride + axis.per_window;
  return axis;
}

// Sums along the middle axis of source (outer, length, inner) into target (outer, target_length, inner):
//   target[first + step * o] = scale * (sum of source[o * apart - pad ... + many)),   o in [0, outputs),
// where what lies outside the source counts as 0. Forward, sources are cells and outputs are windows;
// backward it is the other way round.
struct BoxPass {
  int64_t outer, inner;
  int32_t length, target_length;
  int32_t outputs, apart, many, pad;
  int32_t first, step;
  double scale;

  // So many consecutive outputs share the source element where the first of them ends.
  FASTSEG_HOST_DEVICE int32_t group() const { return many / apart + 1; }
  FASTSEG_HOST_DEVICE int32_t groups() const { return (outputs + group() - 1) / group(); }
};

inline BoxPass forward_pass(const WindowAxis& axis, int64_t outer, int64_t inner, double scale) {
  return {outer, inner, axis.cells, axis.windows, axis.windows, axis.per_stride, axis.per_window,
          0,     0,     1,          scale};
}

// The windows that hold a cell, for cells that are not split: patch / stride + 1 windows for heads, one less
// for tails. For each of the two where there are any.
inline BoxPass adjoint_pass(const WindowAxis& axis, bool heads, int64_t outer, int64_t inner) {
  const int32_t many = (axis.stride >= axis.patch ? 0 : axis.patch / axis.stride) + (heads ? 1 : 0);
  const int32_t outputs = axis.windows + many - 1;
  return {outer,
          inner,
          axis.windows,
          axis.cells,
          outputs,
          1,
          many,
          many - 1,
          heads ? 0 : axis.head_parts,
          axis.per_stride,
          1.0};
}

// One group of outputs for `width` neighbours on the inner axis. All outputs of a group contain or touch the
// source element `split`; each is the sum from its begin up to there and the sum from there to its end. Both
// grow by one addition per source element, without any subtraction: nothing cancels, a window of zeros is
// 0 after any other, and NaN stays in the windows that hold it. Sums are float64, stored sums Real.
template <int kWidth, class Real>
FASTSEG_HOST_DEVICE void box_sum_group(const BoxPass& pass, const Real* source, Real* target, int32_t group,
                                       int width) {
  const int32_t begin = group * pass.group();
  const int32_t left = pass.outputs - begin;
  const int32_t end = begin + (left < pass.group() ? left : pass.group());
  const int32_t split = begin * pass.apart + pass.many - pass.pad;
  double sum[kWidth];
  for (int i = 0; i < width; ++i) sum[i] = 0;
  int32_t from = split;
  for (int32_t output = end - 1; output >= begin; --output) {
    const int32_t until = output * pass.apart - pass.pad;
    for (; from > until;) {
      --from;
      if (from < 0 || from >= pass.length) continue;
      const Real* values = source + from * pass.inner;
      for (int i = 0; i < width; ++i) sum[i] += double(values[i]);
    }
    Real* result = target + (pass.first + int64_t(output) * pass.step) * pass.inner;
    const double scale = output == begin ? pass.scale : 1.0;  // the others are not complete yet
    for (int i = 0; i < width; ++i) result[i] = Real(scale * sum[i]);
  }
  for (int i = 0; i < width; ++i) sum[i] = 0;
  int32_t at = split;
  for (int32_t output = begin + 1; output < end; ++output) {
    const int32_t until = output * pass.apart + pass.many - pass.pad;
    for (; at < until; ++at) {
      if (at < 0 || at >= pass.length) continue;
      const Real* values = source + at * pass.inner;
      for (int i = 0; i < width; ++i) sum[i] += double(values[i]);
    }
    Real* result = target + (pass.first + int64_t(output) * pass.step) * pass.inner;
    for (int i = 0; i < width; ++i) result[i] = Real(pass.scale * (double(result[i]) + sum[i]));
  }
}

}  // namespace fastseg
