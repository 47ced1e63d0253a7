// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy on CUDA where the entropy is over the channels. A thread stands for one position along w; its
// sums of every channel lie in shared memory, in a column that only it touches. From logits the channels of a
// voxel are read three times in a row, of which the cache serves two.
#include "../cuda_utils.cuh"
#include "../patch_entropy.h"
#include "../patch_entropy_math.h"
#include "patch_entropy_cells.cuh"

namespace fastseg {
namespace {

constexpr int kThreads = 128;
constexpr int kMostChannels = 32;  // whose sums fit in shared memory; more are taken in turns

template <class T>
__device__ __forceinline__ RealOf<T> read(const void* values, int64_t at) {
  return to_real<RealOf<T>>(static_cast<const T*>(values)[at]);
}

// The softmax of the logits values[at + k * apart].
template <class T>
__device__ __forceinline__ Softmax<RealOf<T>> softmax_of(const void* values, int64_t at, int64_t apart,
                                                         int64_t channels) {
  using Real = RealOf<T>;
  Real largest = read<T>(values, at);
  int64_t where = 0;
  for (int64_t k = 1; k < channels; ++k) {
    const Real logit = read<T>(values, at + k * apart);
    where = logit > largest ? k : where;
    largest = logit > largest ? logit : largest;
  }
  Real others = 0, weighted = 0;
  for (int64_t k = 0; k < channels; ++k) {
    const Real distance = softmax_distance(read<T>(values, at + k * apart), largest);
    const Real exponential = exp_negative(distance);
    others += k == where ? exponential - Real(1) : exponential;  // NaN if infinite
    weighted += distance * exponential;
  }
  return {largest, others, weighted};
}

// Unit by unit and, within, kMostChannels channels after the other; the first turn also has the entropy.
template <class T, bool kFromLogits>
__global__ void __launch_bounds__(kThreads, 4)
    categorical_cells_kernel(PatchEntropyInputs in, CellTiling tiling, int32_t turns, double scale,
                             RealOf<T>* cells) {
  using Real = RealOf<T>;
  __shared__ Real partial[kMostChannels + 2][kThreads];  // confidences, entropy, count
  const int64_t voxels = in.voxels();
  for (int32_t unit = blockIdx.x; unit < tiling.bundles; unit += gridDim.x)
    for (int32_t number = blockIdx.y; number < tiling.stretches * turns; number += gridDim.y) {
      const int32_t stretch = number / turns;
      const int64_t first_channel = int64_t(number - stretch * turns) * kMostChannels;
      const int64_t left = in.channels - first_channel;
      const int channels = int(left < kMostChannels ? left : kMostChannels);
      const CellPlace place = place_in(in, tiling, unit, stretch);
      for (int k = 0; k < channels; ++k) partial[k][threadIdx.x] = Real(0);
      Real entropy = 0, count = 0;
      const int32_t rows = place.active ? place.depth * place.height : 0;
      for (int32_t row = place.part; row < rows; row += tiling.parts) {
        const int32_t down = row / place.height;
        const int64_t y = place.y + (row - down * place.height);
        const int64_t voxel =
            ((place.z + down) * int64_t(in.axis[1].size) + y) * in.axis[2].size + place.position;
        if (in.mask && in.mask[int64_t(place.group) * voxels + voxel] == 0) continue;
        count += Real(1);
        const int64_t at = int64_t(place.group) * in.channels * voxels + voxel;
        if constexpr (kFromLogits) {
          const Softmax<Real> softmax = softmax_of<T>(in.values, at, voxels, in.channels);
          entropy += softmax.entropy();
          const Real reciprocal = Real(1) / (Real(1) + softmax.others);
          for (int k = 0; k < channels; ++k) {
            const Real logit = read<T>(in.values, at + (first_channel + k) * voxels);
            partial[k][threadIdx.x] += exp_negative(softmax_distance(logit, softmax.largest)) * reciprocal;
          }
        } else {
          for (int k = 0; k < channels; ++k) {
            const Real p = read<T>(in.values, at + (first_channel + k) * voxels);
            partial[k][threadIdx.x] += clamp_unit(p);
            if (first_channel == 0) entropy += categorical_term(p);
          }
          for (int64_t k = channels; first_channel == 0 && k < in.channels; ++k) {
            entropy += categorical_term(read<T>(in.values, at + k * voxels));
          }
        }
      }
      partial[kMostChannels][threadIdx.x] = entropy;
      partial[kMostChannels + 1][threadIdx.x] = count;
      __syncthreads();  // all sums are in
      for (int k = 0; k < channels; ++k) {
        write_cells(in, tiling, place, partial[k], in.entropy_planes() + first_channel + k, in.channels,
                    scale, cells);
      }
      if (first_channel == 0) {
        write_cells(in, tiling, place, partial[kMostChannels], 0, 1, scale, cells);
        if (in.mask) {
          write_cells(in, tiling, place, partial[kMostChannels + 1],
                      in.entropy_planes() + in.confidence_planes(), 1, scale, cells);
        }
      }
      __syncthreads();  // nobody writes the next unit's sums while these are read
    }
}

// A thread per voxel of all channels; slopes as in the CPU kernel.
template <class T, bool kFromLogits>
__global__ void __launch_bounds__(kThreads)
    categorical_gradient_kernel(PatchEntropyInputs in, const RealOf<T>* grad_cells, T* grad_values) {
  using Real = RealOf<T>;
  const WindowAxis &d = in.axis[0], &h = in.axis[1], &w = in.axis[2];
  const int64_t voxels = in.voxels(), count = in.batch * voxels, cells = in.cells();
  for (int64_t number = blockIdx.x * int64_t(kThreads) + threadIdx.x; number < count;
       number += int64_t(gridDim.x) * kThreads) {
    const int64_t sample = quotient(number, voxels), voxel = number - sample * voxels;
    const int64_t line = quotient(voxel, w.size), slice = quotient(line, h.size);
    const int32_t cell_w = w.cell_of(int32_t(voxel - line * w.size));
    const int32_t cell_h = h.cell_of(int32_t(line - slice * h.size)), cell_d = d.cell_of(int32_t(slice));
    const bool counts = cell_d >= 0 && cell_h >= 0 && cell_w >= 0 && !(in.mask && in.mask[number] == 0);
    const int64_t cell = (int64_t(cell_d) * h.cells + cell_h) * w.cells + cell_w;
    const Real* of_confidence = grad_cells + (in.entropy_planes() + sample * in.channels) * cells + cell;
    const Real of_entropy = counts ? grad_cells[sample * cells + cell] : Real(0);
    const int64_t at = sample * in.channels * voxels + voxel;
    Softmax<Real> softmax{};
    Real mean = 0, sum = 1;
    if (kFromLogits && counts) {
      softmax = softmax_of<T>(in.values, at, voxels, in.channels);
      sum = Real(1) + softmax.others;
      for (int64_t k = 0; k < in.channels; ++k) {
        const Real logit = read<T>(in.values, at + k * voxels);
        const Real upstream = of_confidence[k * cells];
        const Real exponential = exp_negative(softmax_distance(logit, softmax.largest));
        mean += upstream == Real(0) ? Real(0) : upstream * exponential;
      }
    }
    for (int64_t k = 0; k < in.channels; ++k) {
      Real result = 0;
      const Real upstream = counts ? of_confidence[k * cells] : Real(0);
      if (of_entropy != Real(0) || upstream != Real(0) || mean != Real(0)) {  // else 0, also where it is NaN
        const Real value = read<T>(in.values, at + k * voxels);
        if constexpr (kFromLogits) {
          const Real distance = softmax_distance(value, softmax.largest);
          const Real above_mean = kLog2E<Real> * (distance - softmax.weighted / sum);  // -log2 p_k - H
          result = exp_negative(distance) / sum * (of_entropy * above_mean + (upstream - mean / sum));
        } else {
          const bool inside = !(value < Real(0)) && !(value > Real(1));
          result = of_entropy * categorical_slope(value) + (inside ? upstream : Real(0));
        }
      }
      grad_values[at + k * voxels] = from_real<T>(result);
    }
  }
}

}  // namespace

cudaError_t patch_entropy_categorical_cells(const PatchEntropyInputs& in, double scale, void* cells,
                                            cudaStream_t stream) {
  const CellTiling tiling = make_cell_tiling(in, kThreads, 1);
  const int32_t turns = int32_t((in.channels + kMostChannels - 1) / kMostChannels);
  dim3 grid;
  const cudaError_t status = cell_grid(tiling, turns, &grid);
  if (status != cudaSuccess || grid.x == 0) return status;
  return with_type(in.kind, [&](auto type) {
    using T = decltype(type);
    return launch(in.from_logits ? categorical_cells_kernel<T, true> : categorical_cells_kernel<T, false>,
                  grid, kThreads, 0, stream, in, tiling, turns, scale, static_cast<RealOf<T>*>(cells));
  });
}

cudaError_t patch_entropy_categorical_gradient(const PatchEntropyInputs& in, const void* grad_cells,
                                               void* grad_values, cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t status = resident_blocks(2 * kBlocksPerProcessor, &blocks);
  blocks = int(std::min<int64_t>(blocks, (in.batch * in.voxels() + kThreads - 1) / kThreads));
  if (status != cudaSuccess || blocks == 0) return status;
  return with_type(in.kind, [&](auto type) {
    using T = decltype(type);
    return launch(
        in.from_logits ? categorical_gradient_kernel<T, true> : categorical_gradient_kernel<T, false>, blocks,
        kThreads, 0, stream, in, static_cast<const RealOf<T>*>(grad_cells), static_cast<T*>(grad_values));
  });
}

}  // namespace fastseg
