// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy on CUDA, forward: voxels to cells, reading each voxel once (2 bytes with half precision),
// then cells to windows axis by axis. Sums have a fixed order: bit-repeatable.
#include "../cuda_utils.cuh"
#include "../patch_entropy.h"
#include "../patch_entropy_math.h"
#include "patch_entropy_cells.cuh"

namespace fastseg {
namespace {

constexpr int kCellThreads = 256;

constexpr int kRowsAhead = 4;  // vectors that a thread has in flight

// One vector of voxels: their entropies, confidences and counts are added to those of their positions.
template <class T, bool kFromLogits, bool kMasked, int kWide>
__device__ __forceinline__ void add_voxels(const Lanes<T, kWide>& values, const Lanes<uint8_t, kWide>& valid,
                                           RealOf<T> (&sum)[kMasked ? 3 : 2][kWide]) {
  using Real = RealOf<T>;
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const VoxelEntropy<Real> voxel =
        binary_entropy<Real, kFromLogits, sizeof(T) == 2>(to_real<Real>(values.value[i]));
    if constexpr (kMasked) {
      const bool counts = valid.value[i] != 0;
      sum[0][i] += counts ? voxel.entropy : Real(0);  // selected, not multiplied: 0 * NaN is NaN
      sum[1][i] += counts ? voxel.confidence : Real(0);
      sum[2][i] += counts ? Real(1) : Real(0);
    } else {
      sum[0][i] += voxel.entropy;
      sum[1][i] += voxel.confidence;
    }
  }
}

// Of each unit the threads first add up the voxels at their positions, in registers, and then the positions
// of each cell, in shared memory.
template <class T, bool kFromLogits, bool kMasked, int kWide>
__global__ void __launch_bounds__(kCellThreads, kMasked ? 2 : 3)
    cells_kernel(PatchEntropyInputs in, CellTiling tiling, double scale, RealOf<T>* cells) {
  using Real = RealOf<T>;
  constexpr int kQuantities = kMasked ? 3 : 2;
  alignas(16) __shared__ Real partial[kQuantities][kCellThreads * kWide];
  const int32_t height = in.axis[1].size, width = in.axis[2].size;
  for (int32_t unit = blockIdx.x; unit < tiling.bundles; unit += gridDim.x)
    for (int32_t stretch = blockIdx.y; stretch < tiling.stretches; stretch += gridDim.y) {
      const CellPlace place = place_in(in, tiling, unit, stretch);
      Real sum[kQuantities][kWide] = {};
      if (place.active) {
        const int64_t mask_group =
            kMasked && !in.mask_per_channel ? place.group / int32_t(in.channels) : place.group;
        // Rows are `parts` apart: so many whole slices, and so many rows; one slice more when y runs over.
        const int32_t slices = tiling.parts / place.height, lines = tiling.parts - slices * place.height;
        const int64_t step = (int64_t(slices) * height + lines) * width;
        const int64_t over = int64_t(height - place.height) * width;
        const int32_t down = place.part / place.height;
        int32_t y = place.part - down * place.height;
        int64_t at = (int64_t(place.z + down) * height + place.y + y) * width + place.position;
        const T* values = static_cast<const T*>(in.values) + place.group * in.voxels();
        const uint8_t* mask = kMasked ? in.mask + mask_group * in.voxels() : nullptr;
        const auto next = [&] {
          at += step;
          y += lines;
          const bool runs_over = y >= place.height;
          at += runs_over ? over : 0;
          y -= runs_over ? place.height : 0;
        };
        const int32_t rows = (place.depth * place.height - place.part + tiling.parts - 1) / tiling.parts;
        int32_t row = 0;
#pragma unroll 1
        for (; row + kRowsAhead <= rows; row += kRowsAhead) {
          Lanes<T, kWide> ahead[kRowsAhead];
          Lanes<uint8_t, kWide> valid[kRowsAhead];
#pragma unroll
          for (int i = 0; i < kRowsAhead; ++i) {
            ahead[i] = *reinterpret_cast<const Lanes<T, kWide>*>(values + at);
            if constexpr (kMasked) valid[i] = read_bytes<kWide>(mask, at);
            next();
          }
#pragma unroll
          for (int i = 0; i < kRowsAhead; ++i) {
            add_voxels<T, kFromLogits, kMasked, kWide>(ahead[i], valid[i], sum);
          }
        }
#pragma unroll 1
        for (; row < rows; ++row) {
          Lanes<uint8_t, kWide> valid;
          if constexpr (kMasked) valid = read_bytes<kWide>(mask, at);
          add_voxels<T, kFromLogits, kMasked, kWide>(*reinterpret_cast<const Lanes<T, kWide>*>(values + at),
                                                     valid, sum);
          next();
        }
      }
      for (int quantity = 0; quantity < kQuantities; ++quantity) {
        for (int i = 0; i < kWide; ++i) partial[quantity][threadIdx.x * kWide + i] = sum[quantity][i];
      }
      __syncthreads();  // all sums are in
      for (int quantity = 0; quantity < kQuantities; ++quantity) {
        const int64_t plane = quantity == 0   ? 0
                              : quantity == 1 ? in.entropy_planes()
                                              : in.entropy_planes() + in.confidence_planes();
        write_cells(in, tiling, place, partial[quantity], plane, 1, scale, cells);
      }
      __syncthreads();  // nobody writes the next unit's sums while these are read
    }
}

constexpr int kThreads = 256;

// A thread per group of outputs and neighbour on the inner axis; see box_sum_group.
template <class Real>
__global__ void __launch_bounds__(kThreads) box_kernel(BoxPass pass, const Real* source, Real* target) {
  const int64_t groups = pass.groups(), count = pass.outer * groups * pass.inner;
  for (int64_t unit = blockIdx.x * int64_t(kThreads) + threadIdx.x; unit < count;
       unit += int64_t(gridDim.x) * kThreads) {
    const int64_t above = quotient(unit, pass.inner), column = unit - above * pass.inner;
    const int64_t outer = quotient(above, groups);
    box_sum_group<1>(pass, source + outer * pass.length * pass.inner + column,
                     target + outer * pass.target_length * pass.inner + column,
                     int32_t(above - outer * groups), 1);
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads) divide_kernel(PatchEntropyInputs in, PatchEntropyMeans sums) {
  const int64_t windows = in.windows(), window = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (window >= windows) return;
  const MapOfBlock<Real> map(in, sums);
  for (int64_t plane = blockIdx.y; plane < map.planes; plane += gridDim.y) {
    const Real count = static_cast<const Real*>(sums.counts)[map.count_plane(plane) * windows + window];
    Real& mean = map.windows[plane * windows + window];
    mean = count < Real(in.min_count) ? Real(NAN) : mean / count;
  }
}

cudaError_t blocks_for(int64_t units, int* blocks) {
  const cudaError_t status = resident_blocks(kBlocksPerProcessor, blocks);
  *blocks = int(std::min<int64_t>(units, *blocks));
  return status;
}

template <class T, int kWide>
cudaError_t start_cells(const PatchEntropyInputs& in, double scale, void* cells, cudaStream_t stream) {
  const CellTiling tiling = make_cell_tiling(in, kCellThreads, kWide);
  dim3 grid;
  const cudaError_t status = cell_grid(tiling, 1, &grid);
  if (status != cudaSuccess || grid.x == 0) return status;
  const auto kernel =
      in.from_logits ? (in.mask ? cells_kernel<T, true, true, kWide> : cells_kernel<T, true, false, kWide>)
                     : (in.mask ? cells_kernel<T, false, true, kWide> : cells_kernel<T, false, false, kWide>);
  return launch(kernel, grid, kCellThreads, 0, stream, in, tiling, scale, static_cast<RealOf<T>*>(cells));
}

}  // namespace

cudaError_t patch_entropy_cells_cuda(const PatchEntropyInputs& in, double scale, void* cells,
                                     cudaStream_t stream) {
  if (in.categorical) return patch_entropy_categorical_cells(in, scale, cells, stream);
  return with_type(in.kind, [&](auto type) {
    using T = decltype(type);
    const bool aligned = in.axis[2].size % kLanes<T> == 0 && is_aligned(in.values) && is_aligned(in.mask);
    return aligned ? start_cells<T, kLanes<T>>(in, scale, cells, stream)
                   : start_cells<T, 1>(in, scale, cells, stream);
  });
}

cudaError_t box_sum_cuda(const BoxPass& pass, bool is_double, const void* source, void* target,
                         cudaStream_t stream) {
  int blocks = 0;
  const int64_t threads = pass.outer * pass.groups() * pass.inner;
  const cudaError_t status = blocks_for((threads + kThreads - 1) / kThreads, &blocks);
  if (status != cudaSuccess || blocks == 0) return status;
  if (is_double) {
    return launch(box_kernel<double>, blocks, kThreads, 0, stream, pass, static_cast<const double*>(source),
                  static_cast<double*>(target));
  }
  return launch(box_kernel<float>, blocks, kThreads, 0, stream, pass, static_cast<const float*>(source),
                static_cast<float*>(target));
}

cudaError_t patch_entropy_divide_cuda(const PatchEntropyInputs& in, const PatchEntropyMeans& sums,
                                      cudaStream_t stream) {
  const dim3 grid = map_grid(in, in.windows(), kThreads, 2);
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  const bool is_double = in.kind == ScalarKind::kFloat64;
  return launch(is_double ? divide_kernel<double> : divide_kernel<float>, grid, kThreads, 0, stream, in,
                sums);
}

}  // namespace fastseg
