// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool on CUDA, backward, on the matrix units (float64 and more parts than registers hold:
// region_pool_soft_backward_wide.cuh). With voxels as rows, the gradient of the features is weights * direct
// and that of the weights features * direct^T. A warp takes 32 voxels; lane 4 g + t has voxels 4 g .. 4 g + 3
// of parts and channels 2 t and 2 t + 1 of every eight. That is an operand of mma.m16n8k8, with k = t and t +
// 4, and also the shape in which products come out, so everything stays in the registers it was read into and
// is written from there. Entries of the tables lie as operands too, split beforehand. Read per voxel: weights
// and features once; written: their gradients once.
#include "matrix_units.cuh"
#include "region_pool_soft_backward_wide.cuh"
#include "region_pool_soft_math.h"
#include "region_pool_soft_rows.cuh"

namespace fastseg {
namespace {

constexpr int kStepThreads = 128, kStepVoxels = 32;  // a warp's voxels
template <int kPartTiles>
constexpr int kTilesAtOnce =
    kPartTiles <= 2 ? 4 : 2;  // of 8 channels, whose features are on their way together

using Fragment = Lanes<float, 4>;  // two entries: high, high, low, low

// The operands of a tile of 8 channels by 8 parts.
struct Operand {
  Fragment of_features[32], of_weights[32], curved_of_features[32], curved_of_weights[32];
};

__device__ __forceinline__ Split<2> parts_of(const Fragment& fragment) {
  return {{fragment.value[0], fragment.value[1]}, {fragment.value[2], fragment.value[3]}};
}

__host__ __device__ __forceinline__ int64_t tiles_of(int64_t rows) { return (rows + 7) / 8; }

// One thread per fragment.
__global__ void __launch_bounds__(kStepThreads)
    operand_kernel(SoftInputs in, SoftGradient gradient, Operand* operands) {
  const int64_t index = int64_t(blockIdx.x) * kStepThreads + threadIdx.x;
  const int64_t part_tiles = tiles_of(in.parts), channel_tiles = tiles_of(in.channels);
  if (index >= in.batch * channel_tiles * part_tiles * 32) return;
  const int64_t tile = index / 32, r = tile % part_tiles, i = tile / part_tiles % channel_tiles;
  const int64_t sample = tile / part_tiles / channel_tiles;
  const int lane = int(index % 32), g = lane / 4, t = lane % 4;
  const auto entry = [&](const void* table, int64_t part, int64_t channel, int64_t skipped) {
    if (part >= in.parts || channel >= in.channels || channel < skipped) return 0.0f;
    const int64_t at = (sample * in.parts + part) * (in.channels - skipped) + channel - skipped;
    return static_cast<const float*>(table)[at];
  };
  const auto fragment = [&](const void* table, bool weights, int64_t skipped) -> Fragment {
    const int64_t channel = 8 * i + (weights ? g : 2 * t), part = 8 * r + (weights ? 2 * t : g);
    const Split<2> two = split<2>(
        {entry(table, part, channel, skipped), entry(table, part + weights, channel + !weights, skipped)});
    return {{two.high[0], two.high[1], two.low[0], two.low[1]}};
  };
  operands[tile].of_features[lane] = fragment(gradient.direct, false, 0);
  operands[tile].of_weights[lane] = fragment(gradient.direct, true, 0);
  operands[tile].curved_of_features[lane] = fragment(gradient.curved, false, in.plain);
  operands[tile].curved_of_weights[lane] = fragment(gradient.curved, true, in.plain);
}

// Rows 0 and 1 of voxels 2 p and 2 p + 1, as operand a of half p.
__device__ __forceinline__ Split<4> half_of(const float (&rows)[2][4], int p) {
  return split<4>({rows[0][2 * p], rows[0][2 * p + 1], rows[1][2 * p], rows[1][2 * p + 1]});
}

// A row of a gradient. Null: not wanted.
__device__ __forceinline__ Row gradient_row(const SoftMap& map, void* gradient, int64_t voxels,
                                            int64_t sample, int64_t j) {
  return gradient ? row_of_map({gradient, map.kind, map.rows, map.last}, voxels, sample, j) : Row{};
}

__device__ __forceinline__ void write_row(const Row& row, int64_t voxel, int64_t end, bool whole,
                                          const float (&values)[4]) {
  if (!row.values) return;
  char* out = const_cast<char*>(row.values);
  if (!whole) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (voxel + i < end) write_value(out, row.kind, (voxel + i) * row.step, values[i]);
    }
  } else if (row.kind == ScalarKind::kFloat32) {
    *reinterpret_cast<Lanes<float, 4>*>(out + voxel * 4) = {{values[0], values[1], values[2], values[3]}};
  } else if (row.kind == ScalarKind::kBFloat16) {
    Lanes<__nv_bfloat16, 4> lanes;
    for (int i = 0; i < 4; ++i) lanes.value[i] = from_real<__nv_bfloat16>(values[i]);
    *reinterpret_cast<Lanes<__nv_bfloat16, 4>*>(out + voxel * 2) = lanes;
  } else {
    Lanes<__half, 4> lanes;
    for (int i = 0; i < 4; ++i) lanes.value[i] = from_real<__half>(values[i]);
    *reinterpret_cast<Lanes<__half, 4>*>(out + voxel * 2) = lanes;
  }
}

// The softmax over the parts of each of a lane's voxels: its own and those of the other t.
template <int kRows>
__device__ __forceinline__ void take_softmax(const SoftInputs& in, int t, float (&weights)[kRows][4]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const bool counts = r / 2 * 8 + 2 * t + r % 2 < in.parts;
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[r][i] = counts ? weights[r][i] : -INFINITY;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float largest = weights[0][i], sum = 0;
#pragma unroll
    for (int r = 1; r < kRows; ++r) largest = fmaxf(largest, weights[r][i]);
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      weights[r][i] = expf(weights[r][i] - largest);
      sum += weights[r][i];
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int r = 0; r < kRows; ++r) weights[r][i] *= inverse;
  }
}

// A warp per 32 voxels of a sample; kPartTiles tiles of 8 parts.
template <int kPartTiles, bool kCurved>
__global__ void __launch_bounds__(kStepThreads, kPartTiles == 1 && !kCurved ? 3 : 2)
    step_kernel(SoftInputs in, SoftGradient gradient, const Operand* operands, int64_t steps, bool aligned) {
  constexpr int kAtOnce = kTilesAtOnce<kPartTiles>;
  const int64_t step = int64_t(blockIdx.x) * (kStepThreads / 32) + threadIdx.x / 32;
  if (step >= in.batch * steps) return;  // warps share nothing: there is no barrier
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t sample = step / steps, start = (step - sample * steps) * kStepVoxels, voxel = start + 4 * g;
  const bool whole = aligned && start + kStepVoxels <= in.voxels;
  const auto* shift = static_cast<const float*>(gradient.shift) + sample * in.channels;
  const auto* offset = static_cast<const float*>(gradient.offset) + sample * in.parts;
  const int64_t channel_tiles = tiles_of(in.channels), part_tiles = tiles_of(in.parts);
  operands += sample * channel_tiles * part_tiles;

  float weights[2 * kPartTiles][4];
  {
    Row rows[2 * kPartTiles];
#pragma unroll
    for (int r = 0; r < 2 * kPartTiles; ++r) {
      rows[r] = row_of_map(in.assignment, in.voxels, sample, r / 2 * 8 + 2 * t + r % 2);
    }
    read_rows(rows, voxel, in.voxels, whole, weights);
  }
  if (in.from_logits) take_softmax(in, t, weights);
  Split<4> halves[2][kPartTiles];
  float of_weights[2][kPartTiles][4];  // the gradient of the weights, in the shape of sums
#pragma unroll
  for (int r = 0; r < kPartTiles; ++r) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const float two[2][4] = {
          {weights[2 * r][0], weights[2 * r][1], weights[2 * r][2], weights[2 * r][3]},
          {weights[2 * r + 1][0], weights[2 * r + 1][1], weights[2 * r + 1][2], weights[2 * r + 1][3]}};
      halves[p][r] = half_of(two, p);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t part = 8 * r + 2 * t + e % 2;
        of_weights[p][r][e] = part < in.parts ? offset[part] : 0.0f;
      }
    }
  }

  for (int64_t first = 0; first < channel_tiles; first += kAtOnce) {
    float features[2 * kAtOnce][4];
    {
      Row rows[2 * kAtOnce];
#pragma unroll
      for (int j = 0; j < 2 * kAtOnce; ++j) {
        rows[j] = row_of_channel(in, sample, (first + j / 2) * 8 + 2 * t + j % 2);
      }
      read_rows(rows, voxel, in.voxels, whole, features);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j >= channel_tiles) break;
      const int64_t channel = (first + j) * 8 + 2 * t;
      const Operand* tile = operands + (first + j) * part_tiles;
      const bool curved = kCurved && (first + j + 1) * 8 > in.plain;
      float distance[2][4], squared[2][4];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float own = channel + e < in.channels ? shift[channel + e] : 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          distance[e][i] = features[2 * j + e][i] - own;
          squared[e][i] = distance[e][i] * distance[e][i];
        }
      }
      float sums[2][4] = {}, curves[2][4] = {};
#pragma unroll
      for (int r = 0; r < kPartTiles; ++r) {
        if (r >= part_tiles) break;
        const Split<2> weighing = parts_of(tile[r].of_weights[lane]);
        const Split<2> direct = parts_of(tile[r].of_features[lane]);
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          multiply_add(sums[p], halves[p][r], weighing);
          multiply_add(of_weights[p][r], half_of(distance, p), direct);
        }
        if (!curved) continue;
        const Split<2> weighing_curves = parts_of(tile[r].curved_of_weights[lane]);
        const Split<2> of_squares = parts_of(tile[r].curved_of_features[lane]);
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          multiply_add(curves[p], halves[p][r], weighing_curves);
          multiply_add(of_weights[p][r], half_of(squared, p), of_squares);
        }
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float values[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          values[i] = sums[i / 2][i % 2 * 2 + e];
          if (curved) values[i] += 2 * distance[e][i] * curves[i / 2][i % 2 * 2 + e];
        }
        const int64_t c = channel + e, grey = c - in.features.rows;
        const Row out = grey >= 0 ? gradient_row(in.grey, gradient.grad_grey, in.voxels, sample, grey)
                                  : gradient_row(in.features, gradient.grad_features, in.voxels, sample, c);
        write_row(out, voxel, in.voxels, whole, values);
      }
    }
  }

  if (!gradient.grad_assignment) return;
  float means[4] = {};
  if (in.from_logits) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int r = 0; r < 2 * kPartTiles; ++r) {
        means[i] += weights[r][i] * of_weights[i / 2][r / 2][i % 2 * 2 + r % 2];
      }
      means[i] += __shfl_xor_sync(0xffffffffu, means[i], 1);
      means[i] += __shfl_xor_sync(0xffffffffu, means[i], 2);
    }
  }
#pragma unroll
  for (int r = 0; r < 2 * kPartTiles; ++r) {
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value = of_weights[i / 2][r / 2][i % 2 * 2 + r % 2];
      values[i] = in.from_logits ? weights[r][i] * (value - means[i]) : value;
    }
    const Row out =
        gradient_row(in.assignment, gradient.grad_assignment, in.voxels, sample, r / 2 * 8 + 2 * t + r % 2);
    write_row(out, voxel, in.voxels, whole, values);
  }
}

// A block per sample, a warp per part.
template <class Real>
__global__ void __launch_bounds__(kStepThreads) tables_kernel(SoftResultGradients in, SoftTables out) {
  const int64_t sample = blockIdx.x;
  for (int64_t c = threadIdx.x; c < in.channels; c += kStepThreads) {
    write_soft_shift<Real>(in, out, sample, c);
  }
  __syncthreads();  // the block's own writes are seen
  for (int64_t part = threadIdx.x / 32; part < in.parts; part += kStepThreads / 32) {
    const int64_t row = sample * in.parts + part;
    Real offset = 0;
    for (int64_t c = threadIdx.x % 32; c < in.channels; c += 32) {
      offset += write_soft_entry<Real>(in, out, sample, row, c);
    }
    for (int step = 16; step > 0; step /= 2) offset += __shfl_xor_sync(0xffffffffu, offset, step);
    if (threadIdx.x % 32 == 0) {
      static_cast<Real*>(out.offset)[row] = offset + entry_of<Real>(in.grad_mass, row);
    }
  }
}

template <bool kCurved>
cudaError_t launch_steps(const SoftInputs& in, const SoftGradient& gradient, const Operand* operands,
                         cudaStream_t stream) {
  const int64_t steps = (in.voxels + kStepVoxels - 1) / kStepVoxels;
  const int64_t blocks = (in.batch * steps + kStepThreads / 32 - 1) / (kStepThreads / 32);
  const bool aligned = rows_are_aligned(in) && is_aligned(gradient.grad_features) &&
                       is_aligned(gradient.grad_grey) && is_aligned(gradient.grad_assignment);
  auto kernel = in.parts <= 8 ? step_kernel<1, kCurved> : step_kernel<2, kCurved>;
  if constexpr (!kCurved) {
    if (in.parts > 16) kernel = step_kernel<4, false>;
  }
  return launch(kernel, unsigned(blocks), kStepThreads, 0, stream, in, gradient, operands, steps, aligned);
}

// As many parts as the registers hold.
bool on_matrix_units(const SoftInputs& in) {
  return !in.wide && in.parts <= (in.plain < in.channels ? 16 : 32);
}

}  // namespace

cudaError_t soft_tables_cuda(const SoftResultGradients& in, const SoftTables& out, cudaStream_t stream) {
  if (in.batch == 0) return cudaSuccess;
  return launch(in.wide ? tables_kernel<double> : tables_kernel<float>, unsigned(in.batch), kStepThreads, 0,
                stream, in, out);
}

size_t soft_gradient_scratch_cuda(const SoftInputs& in) {
  if (!on_matrix_units(in)) return scratch_of_columns(in);
  return in.batch * tiles_of(in.channels) * tiles_of(in.parts) * sizeof(Operand);
}

cudaError_t soft_gradient_cuda(const SoftInputs& in, const SoftGradient& gradient, void* scratch,
                               cudaStream_t stream) {
  if (!on_matrix_units(in)) return gradient_by_columns(in, gradient, scratch, stream);
  if (in.batch * in.voxels == 0) return cudaSuccess;
  auto* operands = static_cast<Operand*>(scratch);
  const int64_t fragments = in.batch * tiles_of(in.channels) * tiles_of(in.parts) * 32;
  if (fragments > 0) {
    const cudaError_t status = launch(operand_kernel, unsigned((fragments + kStepThreads - 1) / kStepThreads),
                                      kStepThreads, 0, stream, in, gradient, operands);
    if (status != cudaSuccess) return status;
  }
  return (in.plain < in.channels ? launch_steps<true> : launch_steps<false>)(in, gradient, operands, stream);
}

}  // namespace fastseg
