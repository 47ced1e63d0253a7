// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy on CUDA where a window is of few cells: all axes in one launch, forward and backward. A
// thread adds the cells of its window, or the windows of its cell, in float64 and in the order they lie in
// memory.
#include "../cuda_utils.cuh"
#include "../patch_entropy.h"
#include "patch_entropy_cells.cuh"

namespace fastseg {
namespace {

constexpr int kThreads = 256;

// Where an element of (d, h, w) lies on each axis.
struct Position {
  int32_t d, h, w;
};
__device__ __forceinline__ Position position_of(int64_t number, int32_t height, int32_t width) {
  const int64_t line = quotient(number, width), slice = quotient(line, height);
  return {int32_t(slice), int32_t(line - slice * height), int32_t(number - line * width)};
}

template <class Real>
__device__ __forceinline__ double window_sum(const PatchEntropyInputs& in, const Real* cells,
                                             Position window) {
  const WindowAxis &d = in.axis[0], &h = in.axis[1], &w = in.axis[2];
  const Real* first =
      cells + (int64_t(window.d) * d.per_stride * h.cells + int64_t(window.h) * h.per_stride) * w.cells +
      int64_t(window.w) * w.per_stride;
  double sum = 0;
  for (int32_t z = 0; z < d.per_window; ++z)
    for (int32_t y = 0; y < h.per_window; ++y) {
      const Real* line = first + (int64_t(z) * h.cells + y) * w.cells;
      for (int32_t x = 0; x < w.per_window; ++x) sum += double(line[x]);
    }
  return sum;
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    windows_kernel(PatchEntropyInputs in, double share, const Real* cells, PatchEntropyMeans means) {
  const int64_t windows = in.windows(), of_plane = in.cells();
  const MapOfBlock<Real> map(in, means);
  const Real* const counts = cells + (in.entropy_planes() + in.confidence_planes()) * of_plane;
  const int64_t number = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (number >= windows) return;
  const Position window = position_of(number, in.axis[1].windows, in.axis[2].windows);
  for (int64_t plane = blockIdx.y; plane < map.planes; plane += gridDim.y) {
    double mean = window_sum(in, cells + (map.first + plane) * of_plane, window);
    if (!in.mask) {
      mean *= share;
    } else if (blockIdx.z < 2) {
      const double count = window_sum(in, counts + map.count_plane(plane) * of_plane, window);
      mean = count < double(in.min_count) ? double(NAN) : mean / count;
    }
    map.windows[plane * windows + number] = Real(mean);
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    grad_cells_kernel(PatchEntropyInputs in, double share, PatchEntropyUpstream upstream, Real* grad_cells) {
  const WindowAxis &d = in.axis[0], &h = in.axis[1], &w = in.axis[2];
  const int64_t windows = in.windows(), of_plane = in.cells();
  const MapOfBlock<const Real> map(in, upstream);
  const int64_t number = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (number >= of_plane) return;
  const Position cell = position_of(number, h.cells, w.cells);
  Position first, last;
  d.windows_of(cell.d, &first.d, &last.d);
  if (!map.windows) last.d = first.d;  // no gradient
  h.windows_of(cell.h, &first.h, &last.h);
  w.windows_of(cell.w, &first.w, &last.w);
  for (int64_t plane = blockIdx.y; plane < map.planes; plane += gridDim.y) {
    const Real* const counts = static_cast<const Real*>(upstream.counts);
    double sum = 0;
    for (int32_t z = first.d; z < last.d; ++z)
      for (int32_t y = first.h; y < last.h; ++y) {
        const int64_t line = plane * windows + (int64_t(z) * h.windows + y) * w.windows;
        const int64_t of_counts = line + (map.count_plane(plane) - plane) * windows;
        for (int32_t x = first.w; x < last.w; ++x) {
          if (!in.mask) {
            sum += double(map.windows[line + x]);
          } else if (counts[of_counts + x] >= Real(in.min_count)) {  // NaN windows pass nothing on
            sum += double(map.windows[line + x]) / double(counts[of_counts + x]);
          }
        }
      }
    grad_cells[(map.first + plane) * of_plane + number] = Real(in.mask ? sum : share * sum);
  }
}

template <class Run>
cudaError_t with_real(const PatchEntropyInputs& in, Run run) {
  return in.kind == ScalarKind::kFloat64 ? run(double()) : run(float());
}

}  // namespace

cudaError_t patch_entropy_windows_cuda(const PatchEntropyInputs& in, const void* cells,
                                       const PatchEntropyMeans& means, cudaStream_t stream) {
  const dim3 grid = map_grid(in, in.windows(), kThreads, in.mask ? 3 : 2);
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  return with_real(in, [&](auto real) {
    using Real = decltype(real);
    return launch(windows_kernel<Real>, grid, kThreads, 0, stream, in, 1.0 / double(in.patch_voxels()),
                  static_cast<const Real*>(cells), means);
  });
}

cudaError_t patch_entropy_grad_cells_cuda(const PatchEntropyInputs& in, const PatchEntropyUpstream& upstream,
                                          void* grad_cells, cudaStream_t stream) {
  const dim3 grid = map_grid(in, in.cells(), kThreads, 2);
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  return with_real(in, [&](auto real) {
    using Real = decltype(real);
    return launch(grad_cells_kernel<Real>, grid, kThreads, 0, stream, in, 1.0 / double(in.patch_voxels()),
                  upstream, static_cast<Real*>(grad_cells));
  });
}

}  // namespace fastseg
