// SPDX-License-Identifier: BSD-3-Clause
// The launchers of kernels/patch_entropy*.h as functions that ctypes can call; patch_entropy.py calls them.
// clang-format off: the headers of the kernels use what this one declares.
#include <cuda_runtime.h>
// clang-format on

#include "patch_entropy.h"

#include "patch_entropy_crops.h"
#include "patch_entropy_sampling.h"

using namespace fastseg;

#define AXIS(name) int64_t name##_size, int64_t name##_patch, int64_t name##_stride
#define INPUTS                                                                                     \
  const void *values, const uint8_t *mask, int64_t kind, int64_t from_logits, int64_t categorical, \
      int64_t mask_per_channel, int64_t batch, int64_t channels, AXIS(d), AXIS(h), AXIS(w),        \
      int64_t min_count, int64_t longest_cell
#define PACKED                                                                                        \
  PatchEntropyInputs {                                                                                \
    values, mask, ScalarKind(kind), from_logits != 0, categorical != 0, mask_per_channel != 0, batch, \
        channels,                                                                                     \
        {make_window_axis(d_size, d_patch, d_stride, longest_cell),                                   \
         make_window_axis(h_size, h_patch, h_stride, longest_cell),                                   \
         make_window_axis(w_size, w_patch, w_stride, longest_cell)},                                  \
        min_count                                                                                     \
  }

extern "C" {

int cells(INPUTS, double scale, void* sums) { return patch_entropy_cells_cuda(PACKED, scale, sums, nullptr); }

int has_few_cells(INPUTS, int64_t* few) {
  *few = patch_entropy_has_few_cells(PACKED);
  return 0;
}

int windows(INPUTS, const void* cells, void* entropy, void* confidence, void* counts) {
  return patch_entropy_windows_cuda(PACKED, cells, {entropy, confidence, counts}, nullptr);
}

int grad_cells(INPUTS, const void* entropy, const void* confidence, const void* counts, void* grad_cells) {
  return patch_entropy_grad_cells_cuda(PACKED, {entropy, confidence, counts}, grad_cells, nullptr);
}

int divide(INPUTS, void* entropy, void* confidence, void* counts) {
  return patch_entropy_divide_cuda(PACKED, {entropy, confidence, counts}, nullptr);
}

int upstream(INPUTS, const void* entropy, const void* confidence, const void* counts, void* grad_sums) {
  return patch_entropy_upstream_cuda(PACKED, {entropy, confidence, counts}, grad_sums, nullptr);
}

int gradient(INPUTS, const void* grad_cells, void* grad_values) {
  return patch_entropy_gradient_cuda(PACKED, grad_cells, grad_values, nullptr);
}

// The pass along an axis: 0 forward, 1 heads and 2 tails backward.
int box_sum(AXIS(axis), int64_t longest_cell, int64_t direction, int64_t outer, int64_t inner, double scale,
            int64_t is_double, const void* source, void* target) {
  const WindowAxis axis = make_window_axis(axis_size, axis_patch, axis_stride, longest_cell);
  const BoxPass pass = direction == 0 ? forward_pass(axis, outer, inner, scale)
                                      : adjoint_pass(axis, direction == 1, outer, inner);
  return box_sum_cuda(pass, is_double != 0, source, target, nullptr);
}

// What the adapter must know of an axis: per_stride, per_window, cells, head_parts, tail_parts.
int axis_of(AXIS(axis), int64_t longest_cell, int64_t* facts) {
  const WindowAxis axis = make_window_axis(axis_size, axis_patch, axis_stride, longest_cell);
  const int32_t values[] = {axis.per_stride, axis.per_window, axis.cells, axis.head_parts, axis.tail_parts};
  for (int i = 0; i < 5; ++i) facts[i] = values[i];
  return 0;
}

int sample(const void* entropy, const void* confidence, const int64_t* seed, int64_t is_double, int64_t batch,
           int64_t channels, int64_t entropy_channels, int64_t axes, int64_t shape0, int64_t shape1,
           int64_t shape2, int64_t stride0, int64_t stride1, int64_t stride2, int64_t windows, int64_t draws,
           int64_t strategy, int64_t replacement, double floor, double threshold, int64_t* index,
           int64_t* corners, uint8_t* parity, int64_t* count, void* weights, void* sums, void* firsts) {
  const PatchSampling sampling{entropy,
                               confidence,
                               is_double != 0,
                               seed,
                               batch,
                               channels,
                               entropy_channels,
                               int32_t(axes),
                               {int32_t(shape0), int32_t(shape1), int32_t(shape2)},
                               {int32_t(stride0), int32_t(stride1), int32_t(stride2)},
                               windows,
                               draws,
                               SampleStrategy(strategy),
                               replacement != 0,
                               floor,
                               threshold,
                               index,
                               corners,
                               reinterpret_cast<bool*>(parity),
                               count};
  return patch_sample_cuda(sampling, static_cast<uint32_t*>(weights), static_cast<uint64_t*>(sums),
                           static_cast<int64_t*>(firsts), nullptr);
}

#define CROPS                                                                                            \
  const int64_t *corners, int64_t batch, int64_t patches, int64_t channels, int64_t axes, int64_t depth, \
      int64_t height, int64_t width, int64_t patch0, int64_t patch1, int64_t patch2, int64_t stride0,    \
      int64_t stride1, int64_t stride2, int64_t stride3, int64_t stride4
#define PACKED_CROPS                                                                                     \
  PatchCrops {                                                                                           \
    corners, batch, patches, channels, int32_t(axes), {int32_t(depth), int32_t(height), int32_t(width)}, \
        {int32_t(patch0), int32_t(patch1), int32_t(patch2)}, {                                           \
      stride0, stride1, stride2, stride3, stride4                                                        \
    }                                                                                                    \
  }

int crops(CROPS, int64_t element_size, const void* volume, void* result) {
  return patch_crops_cuda(PACKED_CROPS, element_size, volume, result, nullptr);
}

int crops_backward(CROPS, int64_t kind, const void* grad, void* grad_volume) {
  return patch_crops_backward_cuda(PACKED_CROPS, ScalarKind(kind), grad, grad_volume, nullptr);
}
}
