// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy: the mean entropy in bits and the mean confidence of every window, from one read of the
// volume. The contract between the torch glue and the kernels; the rule of one voxel is in
// patch_entropy_math.h, windows and cells are in patch_entropy_windows.h.
//
// Planes are maps over the windows (or cells) of one quantity of one sample and channel: first all entropies
// (b * entropy_channels + k), then all confidences (b * channels + k), then, with a mask, all counts of valid
// voxels (as entropies). Real is float64 for float64 values, else float32.
#pragma once

#include <cstdint>

#include "contract.h"
#include "patch_entropy_windows.h"

namespace fastseg {

struct PatchEntropyInputs {
  const void* values;   // (batch, channels, d, h, w), contiguous
  const uint8_t* mask;  // (batch, 1 or channels, d, h, w), 0 is not valid; null: all are
  ScalarKind kind;      // not kUint8
  bool from_logits;     // else probabilities
  bool categorical;     // entropy over the channels, else of each
  bool mask_per_channel;
  int64_t batch, channels;
  WindowAxis axis[3];
  int64_t min_count;  // valid voxels; windows of fewer are NaN

  FASTSEG_HOST_DEVICE int64_t entropy_planes() const { return categorical ? batch : batch * channels; }
  FASTSEG_HOST_DEVICE int64_t confidence_planes() const { return batch * channels; }
  FASTSEG_HOST_DEVICE int64_t count_planes() const { return mask ? entropy_planes() : 0; }
  FASTSEG_HOST_DEVICE int64_t planes() const {
    return entropy_planes() + confidence_planes() + count_planes();
  }
  // The count plane of an entropy or confidence plane, of which there are fewer than 2^31.
  FASTSEG_HOST_DEVICE int64_t count_plane(int64_t plane) const {
    const int64_t confidence = plane - entropy_planes();
    const int64_t group = confidence < 0 ? plane
                          : categorical  ? int64_t(uint32_t(confidence) / uint32_t(channels))
                                         : confidence;
    return entropy_planes() + confidence_planes() + group;
  }
  FASTSEG_HOST_DEVICE int64_t voxels() const { return int64_t(axis[0].size) * axis[1].size * axis[2].size; }
  FASTSEG_HOST_DEVICE int64_t windows() const {
    return int64_t(axis[0].windows) * axis[1].windows * axis[2].windows;
  }
  FASTSEG_HOST_DEVICE int64_t cells() const { return int64_t(axis[0].cells) * axis[1].cells * axis[2].cells; }
  FASTSEG_HOST_DEVICE int64_t patch_voxels() const {
    return int64_t(axis[0].patch) * axis[1].patch * axis[2].patch;
  }
};

// Maps over the windows, each in an array of its own: (planes of it, windows).
template <class Void>
struct PatchEntropyMaps {
  Void *entropy, *confidence;
  Void* counts;  // null without a mask

  // The windows of a plane, null where its map is.
  template <class Real>
  FASTSEG_HOST_DEVICE Real* of_plane(const PatchEntropyInputs& in, int64_t plane) const {
    const int64_t confidences = in.entropy_planes(), all = confidences + in.confidence_planes();
    Void* const map = plane < confidences ? entropy : plane < all ? confidence : counts;
    const int64_t first = plane < confidences ? 0 : plane < all ? confidences : all;
    return map ? static_cast<Real*>(map) + (plane - first) * in.windows() : nullptr;
  }
};
using PatchEntropyMeans = PatchEntropyMaps<void>;
// Gradients of the means, null for one of zeros, with the counts that the forward pass gave.
using PatchEntropyUpstream = PatchEntropyMaps<const void>;

constexpr int64_t kLongestCell = 16;  // voxels, forward; backward cells are not split

// CPU. `sums` are arrays of planes. First the cells of each row of cells and their sums along w, to (planes,
// cells d, cells h, windows w); then sums along h and along d, the last of them to the maps; then, with a
// mask, the division. Units of work are numbered, and each is the same whatever the range it comes in.
inline int64_t patch_entropy_cell_rows(const PatchEntropyInputs& inputs) {
  return inputs.entropy_planes() * inputs.axis[0].cells * inputs.axis[1].cells;
}
inline int64_t patch_entropy_voxel_rows(const PatchEntropyInputs& inputs) {
  return inputs.entropy_planes() * inputs.axis[0].size * inputs.axis[1].size;
}
void patch_entropy_cells_cpu(const PatchEntropyInputs& inputs, int64_t row_begin, int64_t row_end,
                             double scale, void* sums);
int64_t box_sum_units_cpu(const BoxPass& pass);
void box_sum_cpu(const BoxPass& pass, bool is_double, int64_t begin, int64_t end, const void* source,
                 void* target);
// Window sums of elements [begin, end) of the entropy and confidence planes become means.
void patch_entropy_divide_cpu(const PatchEntropyInputs& inputs, int64_t begin, int64_t end,
                              const PatchEntropyMeans& sums);
// Backward: the gradients of window sums from those of window means, without planes of counts, and, after the
// sums along d, h and w to cells, the gradient of voxel rows (batch, channels unless categorical, d, h).
void patch_entropy_upstream_cpu(const PatchEntropyInputs& inputs, const PatchEntropyUpstream& upstream,
                                int64_t begin, int64_t end, void* grad_sums);
void patch_entropy_gradient_cpu(const PatchEntropyInputs& inputs, const void* grad_cells, int64_t row_begin,
                                int64_t row_end, void* grad_values);

#if defined(FASTSEG_WITH_CUDA) || defined(FASTSEG_CUDA_EMULATION)
// CUDA. No call waits for the device, every sum has a fixed order. Cells are stored before any sum: (planes,
// cells d, cells h, cells w). Where windows are of few cells, two launches do: cells, then windows of them
// with the division; backward the gradients of cells, with that of the division, then of voxels.
constexpr int64_t kFewCells = 128;
inline bool patch_entropy_has_few_cells(const PatchEntropyInputs& inputs) {
  int64_t cells = 1;
  for (const WindowAxis& axis : inputs.axis)
    cells *= axis.per_window < kFewCells ? axis.per_window : kFewCells + 1;
  return cells <= kFewCells;
}
cudaError_t patch_entropy_windows_cuda(const PatchEntropyInputs& inputs, const void* cells,
                                       const PatchEntropyMeans& means, cudaStream_t stream);
cudaError_t patch_entropy_grad_cells_cuda(const PatchEntropyInputs& inputs,
                                          const PatchEntropyUpstream& upstream, void* grad_cells,
                                          cudaStream_t stream);
// Otherwise the same steps as on the CPU, as kernels over all units.
cudaError_t patch_entropy_cells_cuda(const PatchEntropyInputs& inputs, double scale, void* cells,
                                     cudaStream_t stream);
cudaError_t box_sum_cuda(const BoxPass& pass, bool is_double, const void* source, void* target,
                         cudaStream_t stream);
cudaError_t patch_entropy_divide_cuda(const PatchEntropyInputs& inputs, const PatchEntropyMeans& sums,
                                      cudaStream_t stream);
cudaError_t patch_entropy_upstream_cuda(const PatchEntropyInputs& inputs,
                                        const PatchEntropyUpstream& upstream, void* grad_sums,
                                        cudaStream_t stream);
cudaError_t patch_entropy_gradient_cuda(const PatchEntropyInputs& inputs, const void* grad_cells,
                                        void* grad_values, cudaStream_t stream);
#endif

}  // namespace fastseg
