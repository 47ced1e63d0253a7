// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy on CUDA, backward: window gradients are summed to cells by box_sum_cuda; here every voxel
// takes that of its cell. Bytes per voxel with half precision: 2 read, 2 written. No atomics.
#include "../cuda_utils.cuh"
#include "../patch_entropy.h"
#include "../patch_entropy_math.h"
#include "patch_entropy_cells.cuh"

namespace fastseg {
namespace {

constexpr int kThreads = 256;

template <class Real>
__global__ void __launch_bounds__(kThreads)
    upstream_kernel(PatchEntropyInputs in, PatchEntropyUpstream upstream, Real share, Real* grad_sums) {
  const int64_t windows = in.windows(), window = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (window >= windows) return;
  const MapOfBlock<const Real> map(in, upstream);
  for (int64_t plane = blockIdx.y; plane < map.planes; plane += gridDim.y) {
    Real sum = map.windows ? map.windows[plane * windows + window] : Real(0);
    if (!in.mask) {
      sum *= share;
    } else {
      const auto* const counts = static_cast<const Real*>(upstream.counts);
      const Real count = counts[map.count_plane(plane) * windows + window];
      sum = count < Real(in.min_count) ? Real(0) : sum / count;  // NaN windows pass on nothing
    }
    grad_sums[(map.first + plane) * windows + window] = sum;
  }
}

// A thread per vector of kWide neighbours along w. The cell of the first is found by a division, those of the
// others by counting on.
template <class T, bool kFromLogits, int kWide>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(PatchEntropyInputs in, const RealOf<T>* grad_cells, T* grad_values) {
  using Real = RealOf<T>;
  const WindowAxis &d = in.axis[0], &h = in.axis[1], &w = in.axis[2];
  const int64_t voxels = in.voxels(), count = in.batch * in.channels * voxels / kWide, cells = in.cells();
  for (int64_t number = blockIdx.x * int64_t(kThreads) + threadIdx.x; number < count;
       number += int64_t(gridDim.x) * kThreads) {
    const int64_t at = number * kWide;
    const int64_t group = quotient(at, voxels), voxel = at - group * voxels;
    const int64_t line = quotient(voxel, w.size), slice = quotient(line, h.size);
    const int32_t cell_h = h.cell_of(int32_t(line - slice * h.size)), cell_d = d.cell_of(int32_t(slice));
    const bool inside = cell_d >= 0 && cell_h >= 0;
    const Real* of_entropy = grad_cells + group * cells + (int64_t(cell_d) * h.cells + cell_h) * w.cells;
    const Real* of_confidence = of_entropy + in.entropy_planes() * cells;
    const int32_t x = int32_t(voxel - line * w.size);
    int32_t period = x / w.stride, within = x - period * w.stride;
    Real values[kWide];
    read_lanes<Real, T>(in.values, at, values);
    Lanes<uint8_t, kWide> valid;
    for (int i = 0; i < kWide; ++i) valid.value[i] = 1;
    if (in.mask) {
      const int64_t mask_group = in.mask_per_channel ? group : quotient(group, in.channels);
      valid = read_bytes<kWide>(in.mask, mask_group * voxels + voxel);
    }
    Lanes<T, kWide> out;
    for (int i = 0; i < kWide; ++i) {
      const int32_t cell = period * w.per_stride + (within < w.head ? 0 : w.head_parts);
      const bool counts = inside && within < w.head + w.tail && cell < w.cells && valid.value[i] != 0;
      const Real entropy = counts ? of_entropy[cell] : Real(0);
      const Real confidence = counts ? of_confidence[cell] : Real(0);
      const VoxelEntropy<Real> slope = binary_slopes<Real, kFromLogits, sizeof(T) == 2>(values[i]);
      const Real gradient = entropy * slope.entropy + confidence * slope.confidence;
      const bool none = entropy == Real(0) && confidence == Real(0);
      out.value[i] = from_real<T>(none ? Real(0) : gradient);  // also where the slope is NaN
      ++within;
      if (within == w.stride) {
        within = 0;
        ++period;
      }
    }
    write_lanes(out, grad_values, at);
  }
}

cudaError_t blocks_for(int64_t threads, int* blocks) {
  const cudaError_t status = resident_blocks(kBlocksPerProcessor, blocks);
  *blocks = int(std::min<int64_t>((threads + kThreads - 1) / kThreads, *blocks));
  return status;
}

template <class T, int kWide>
cudaError_t start_gradient(const PatchEntropyInputs& in, const void* grad_cells, void* grad_values,
                           cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t status = blocks_for(in.batch * in.channels * in.voxels() / kWide, &blocks);
  if (status != cudaSuccess || blocks == 0) return status;
  return launch(in.from_logits ? gradient_kernel<T, true, kWide> : gradient_kernel<T, false, kWide>, blocks,
                kThreads, 0, stream, in, static_cast<const RealOf<T>*>(grad_cells),
                static_cast<T*>(grad_values));
}

}  // namespace

cudaError_t patch_entropy_upstream_cuda(const PatchEntropyInputs& in, const PatchEntropyUpstream& upstream,
                                        void* grad_sums, cudaStream_t stream) {
  const dim3 grid = map_grid(in, in.windows(), kThreads, 2);
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  const double share = 1.0 / double(in.patch_voxels());
  if (in.kind == ScalarKind::kFloat64) {
    return launch(upstream_kernel<double>, grid, kThreads, 0, stream, in, upstream, share,
                  static_cast<double*>(grad_sums));
  }
  return launch(upstream_kernel<float>, grid, kThreads, 0, stream, in, upstream, float(share),
                static_cast<float*>(grad_sums));
}

cudaError_t patch_entropy_gradient_cuda(const PatchEntropyInputs& in, const void* grad_cells,
                                        void* grad_values, cudaStream_t stream) {
  if (in.categorical) return patch_entropy_categorical_gradient(in, grad_cells, grad_values, stream);
  return with_type(in.kind, [&](auto type) {
    using T = decltype(type);
    const bool aligned = in.axis[2].size % kLanes<T> == 0 && is_aligned(in.values) && is_aligned(in.mask) &&
                         is_aligned(grad_values);
    return aligned ? start_gradient<T, kLanes<T>>(in, grad_cells, grad_values, stream)
                   : start_gradient<T, 1>(in, grad_cells, grad_values, stream);
  });
}

}  // namespace fastseg
