// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool on CUDA, forward: a product of weights and features over the voxels, on the matrix units
// (float64: region_pool_soft_wide.cuh). A warp takes 16 parts, up to 40 channels and 32 voxels at a time.
// Lane 4 g + t reads voxels 8 t .. 8 t + 7 of parts g, g + 8 and of channels g, g + 8, ... straight into the
// registers in which mma.m16n8k8 wants its operands: a sum over voxels does not mind in which order they
// come, so k and k + 4 of step s are voxels 8 t + 2 s and 8 t + 2 s + 1. The softmax is taken there, by
// shuffles over g. Float32 is three products of TF32; features of 16 bits are exact in TF32 and take two.
//
// Sums are float32 over 512 voxels, then over those of the warp, then float64; a second kernel adds the
// ranges. Nothing is added atomically, so results are the same bit for bit. For a variance features are taken
// relative to their mean at the begin of the range. Read per voxel: features once for 16 parts, weights for
// 40 channels.
#include "matrix_units.cuh"
#include "region_pool_soft_rows.cuh"
#include "region_pool_soft_wide.cuh"

namespace fastseg {
namespace {

constexpr int kBlockThreads = 128, kBlockWarps = kBlockThreads / 32;
constexpr int kMostTiles = 5;               // of 8 channels: 32 and a grey image
constexpr int kStepVoxels = 32;             // of a warp
constexpr int kStepsPerFlush = 16;          // from registers to the sums in shared memory
constexpr int64_t kMostUnits = 1024;        // blocks, unless ranges became longer than kMostVoxels
constexpr int64_t kFewest = 1024;           // voxels of a range
constexpr int64_t kMostVoxels = 32 * 1024;  // so that 8192 are added in float32 at most
constexpr int kMergeSlices = 32;

// Blocks a multiprocessor holds: registers without spilling, and 48 KiB of loads on their way at least.
template <int kTiles, bool kCurved>
constexpr int kResident = kTiles <= 2               ? (kCurved ? 3 : 4)
                          : kTiles == 4 && !kCurved ? 3
                                                    : 2;

struct MatrixPlan {
  int64_t partitions, partition_voxels, part_blocks, channel_blocks, units, unit_doubles;
  int tiles;  // of a channel block
  bool curved, normalisers, aligned;

  // Where a unit's table has what.
  __host__ __device__ int64_t columns() const { return tiles * 8; }
  __host__ __device__ int64_t shifts() const { return kParts; }
  __host__ __device__ int64_t sums() const { return shifts() + columns(); }
  __host__ __device__ int64_t squares() const { return sums() + kParts * columns(); }
};

MatrixPlan make_matrix_plan(const SoftInputs& in) {
  MatrixPlan plan{};
  const int64_t tiles = std::max<int64_t>(1, (in.channels + 7) / 8);
  plan.channel_blocks = (tiles + kMostTiles - 1) / kMostTiles;
  const int64_t needed = (tiles + plan.channel_blocks - 1) / plan.channel_blocks;
  plan.tiles = int(needed == 3 ? 4 : needed);
  plan.part_blocks = (in.parts + kParts - 1) / kParts;
  const int64_t others = std::max<int64_t>(1, in.batch * plan.part_blocks * plan.channel_blocks);
  const int64_t few = std::min((kMostUnits + others - 1) / others, in.voxels / kFewest);
  plan.partitions = std::max({int64_t(1), few, (in.voxels + kMostVoxels - 1) / kMostVoxels});
  const int64_t step = kBlockWarps * kStepVoxels;
  plan.partition_voxels = ((in.voxels + plan.partitions - 1) / plan.partitions + step - 1) / step * step;
  plan.units = in.batch * plan.partitions * plan.part_blocks * plan.channel_blocks;
  plan.curved = in.plain < in.channels;
  plan.normalisers = in.from_logits && plan.part_blocks > 1;
  plan.aligned = rows_are_aligned(in);
  plan.unit_doubles = plan.squares() + (plan.curved ? kParts * plan.columns() : 0);
  return plan;
}

// Behind the tables of the units: the largest logit of every voxel and what the sum
// of its exponentials divides by, where a block sees but some of the parts.
float* normalisers_in(double* scratch, const MatrixPlan& plan) {
  return reinterpret_cast<float*>(scratch + plan.units * plan.unit_doubles);
}

__global__ void __launch_bounds__(kBlockThreads) normaliser_kernel(SoftInputs in, float* normalisers) {
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= in.batch * in.voxels) return;
  const int64_t sample = index / in.voxels, voxel = index - sample * in.voxels;
  float largest = -INFINITY, sum = 0;
  for (int64_t k = 0; k < in.parts; ++k) largest = fmaxf(largest, read_part<float>(in, sample, k, voxel));
  for (int64_t k = 0; k < in.parts; ++k) sum += expf(read_part<float>(in, sample, k, voxel) - largest);
  normalisers[2 * index] = largest;
  normalisers[2 * index + 1] = 1.0f / sum;
}

// What a lane holds of 32 voxels.
template <int kTiles>
struct Operands {
  float rows[2 + kTiles][8];  // weights of two parts, then channels
};

template <int kTiles, bool kCurved>
struct Sums {
  float mass[2], sums[kTiles][4], squares[kCurved ? kTiles : 1][4];
  static constexpr int kCount = 2 + 4 * kTiles * (kCurved ? 2 : 1);

  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) {  // in the order of the shared memory
    int slot = 0;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) visit(sums[j][i], slot++);
    }
#pragma unroll
    for (int j = 0; j < (kCurved ? kTiles : 0); ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) visit(squares[j][i], slot++);
    }
    visit(mass[0], slot++);
    visit(mass[1], slot++);
  }
};

// The softmax over the parts of each of a lane's 8 voxels: its own two and those of
// the other g.
__device__ __forceinline__ void take_softmax(float (&first)[8], float (&second)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float largest = fmaxf(first[i], second[i]);
    for (int delta = 4; delta < 32; delta *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, delta));
    }
    first[i] = expf(first[i] - largest);
    second[i] = expf(second[i] - largest);
    float sum = first[i] + second[i];
    for (int delta = 4; delta < 32; delta *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, delta);
    const float inverse = 1.0f / sum;
    first[i] *= inverse;
    second[i] *= inverse;
  }
}

template <int kTiles>
struct Lane {
  Row rows[2 + kTiles];
  float shift[kTiles];
  bool counts[2];            // whether there is such a part
  const float* normalisers;  // of the sample; null: the block has all parts
};

template <int kTiles>
__device__ __forceinline__ Operands<kTiles> read_operands(const SoftInputs& in, const Lane<kTiles>& lane,
                                                          int64_t start, int64_t end, bool aligned) {
  Operands<kTiles> operands;
  const int64_t voxel = start + threadIdx.x % 4 * 8;
  read_rows(lane.rows, voxel, end, aligned && start + kStepVoxels <= end, operands.rows);
  if (in.from_logits) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (!lane.counts[r]) operands.rows[r][i] = -INFINITY;
      }
    }
    if (lane.normalisers) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const bool inside = voxel + i < end;
        const float largest = inside ? lane.normalisers[2 * (voxel + i)] : 0.0f;
        const float inverse = inside ? lane.normalisers[2 * (voxel + i) + 1] : 0.0f;
        operands.rows[0][i] = expf(operands.rows[0][i] - largest) * inverse;
        operands.rows[1][i] = expf(operands.rows[1][i] - largest) * inverse;
      }
    } else {
      take_softmax(operands.rows[0], operands.rows[1]);
    }
  }
  if (start + kStepVoxels > end) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (voxel + i >= end) operands.rows[0][i] = operands.rows[1][i] = 0.0f;
    }
  }
  return operands;
}

// kExact: the channels fit TF32. Of tiles before `first_curved` no squares are
// asked for.
template <bool kExact, int kTiles, bool kCurved>
__device__ __forceinline__ void add_products(const Operands<kTiles>& operands, int first_curved,
                                             Sums<kTiles, kCurved>& sums) {
#pragma unroll
  for (int s = 0; s < 8; s += 2) {
    const auto& w = operands.rows;
    const Split<4> a = split<4>({w[0][s], w[1][s], w[0][s + 1], w[1][s + 1]});
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const float b[2] = {operands.rows[2 + j][s], operands.rows[2 + j][s + 1]};
      if constexpr (kExact) {
        multiply_add(sums.sums[j], a, b);
      } else {
        multiply_add(sums.sums[j], a, split(b));
      }
      if constexpr (kCurved) {
        if (j >= first_curved) multiply_add(sums.squares[j], a, split<2>({b[0] * b[0], b[1] * b[1]}));
      }
    }
  }
}

// The same voxel by voxel in plain float32, so that inf stays inf: split, it would
// be inf - inf.
template <int kTiles, bool kCurved>
__device__ __forceinline__ void add_products_singly(const Operands<kTiles>& operands,
                                                    Sums<kTiles, kCurved>& sums) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int from = 0; from < 4; ++from) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float w[2] = {__shfl_sync(0xffffffffu, operands.rows[0][i], 4 * g + from),
                          __shfl_sync(0xffffffffu, operands.rows[1][i], 4 * g + from)};
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float d = __shfl_sync(0xffffffffu, operands.rows[2 + j][i], 4 * (2 * t + e) + from);
          for (int r = 0; r < 2; ++r) {
            sums.sums[j][2 * r + e] += w[r] * d;
            if constexpr (kCurved) sums.squares[j][2 * r + e] += w[r] * d * d;
          }
        }
      }
    }
  }
}

// A warp's steps of the range, into its own stretch of the shared memory, where
// each lane has its own column.
template <int kTiles, bool kCurved, bool kSingly>
__device__ __forceinline__ void add_range(const SoftInputs& in, const Lane<kTiles>& lane, int64_t begin,
                                          int64_t end, bool aligned, bool exact, int first_curved,
                                          float* staged) {
  Sums<kTiles, kCurved> sums;
  sums.each([&](float& value, int slot) { value = staged[slot * 32] = 0.0f; });
  int steps = 0;
  for (int64_t start = begin; start < end; start += kBlockWarps * kStepVoxels) {
    Operands<kTiles> operands = read_operands(in, lane, start, end, aligned);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sums.mass[0] += operands.rows[0][i];
      sums.mass[1] += operands.rows[1][i];
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 8; ++i) operands.rows[2 + j][i] -= lane.shift[j];
    }
    if constexpr (kSingly) {
      add_products_singly(operands, sums);
    } else if (exact) {
      add_products<true>(operands, first_curved, sums);
    } else {
      add_products<false>(operands, first_curved, sums);
    }
    if (++steps % kStepsPerFlush == 0) {
      sums.each([&](float& value, int slot) {
        staged[slot * 32] += value;
        value = 0.0f;
      });
    }
  }
  sums.each([&](float& value, int slot) { staged[slot * 32] += value; });
}

// Block: a range of voxels of a sample, 16 parts, a block of channels. Blocks of
// the same voxels are neighbours.
template <int kTiles, bool kCurved>
__global__ void __launch_bounds__(kBlockThreads, kResident<kTiles, kCurved>)
    product_kernel(SoftInputs in, MatrixPlan plan, const float* normalisers, double* tables) {
  extern __shared__ float staged[];  // [warp][slot][lane]
  using OwnSums = Sums<kTiles, kCurved>;
  const int64_t channel_block = blockIdx.x % plan.channel_blocks;
  const int64_t part_block = blockIdx.x / plan.channel_blocks % plan.part_blocks;
  const int64_t rest = blockIdx.x / plan.channel_blocks / plan.part_blocks;
  const int64_t sample = rest / plan.partitions, begin = rest % plan.partitions * plan.partition_voxels;
  const int64_t end = begin + plan.partition_voxels < in.voxels ? begin + plan.partition_voxels : in.voxels;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

  Lane<kTiles> lane;
  lane.normalisers = plan.normalisers ? normalisers + 2 * sample * in.voxels : nullptr;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t part = part_block * kParts + g + 8 * r;
    lane.rows[r] = row_of_map(in.assignment, in.voxels, sample, part);
    lane.counts[r] = part < in.parts;
  }
  const int64_t first_channel = channel_block * plan.columns();
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    lane.rows[2 + j] = row_of_channel(in, sample, first_channel + 8 * j + g);
    lane.shift[j] = 0.0f;
  }
  if constexpr (kCurved) {  // the mean of the first voxels: a common offset of all
                            // values costs no digits
    const int64_t count = end - begin < kStepVoxels ? end - begin : kStepVoxels;
    const Operands<kTiles> first = read_operands(in, lane, begin, end, plan.aligned);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += first.rows[2 + j][i];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float mean = count > 0 ? sum / float(count) : 0.0f;
      const bool finite = mean - mean == 0.0f;
      if (finite && first_channel + 8 * j + g >= in.plain) lane.shift[j] = mean;
    }
  }

  const bool halves =
      in.features.kind != ScalarKind::kFloat32 && (in.grey.rows == 0 || in.grey.kind != ScalarKind::kFloat32);
  const int64_t plain_tiles = (in.plain - first_channel) / 8;
  const int first_curved = in.plain <= first_channel ? 0 : plain_tiles < kTiles ? int(plain_tiles) : kTiles;
  float* own = staged + warp * OwnSums::kCount * 32 + threadIdx.x % 32;
  const int64_t start = begin + warp * kStepVoxels;
  add_range<kTiles, kCurved, false>(in, lane, start, end, plan.aligned, halves && !kCurved, first_curved,
                                    own);
  bool finite = true;
  for (int slot = 0; slot < OwnSums::kCount; ++slot) {
    finite = finite && own[slot * 32] - own[slot * 32] == 0.0f;
  }
  if (__any_sync(0xffffffffu, !finite)) {
    add_range<kTiles, kCurved, true>(in, lane, start, end, plan.aligned, false, first_curved, own);
  }

  double* table = tables + blockIdx.x * plan.unit_doubles;
  if constexpr (kCurved) {
    if (warp == 0 && t == 0) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) table[plan.shifts() + 8 * j + g] = double(lane.shift[j]);
    }
  }
  __syncthreads();  // all warps have added what they have
  for (int entry = threadIdx.x; entry < (OwnSums::kCount - 2) * 32; entry += kBlockThreads) {
    double sum = 0;
    for (int w = 0; w < kBlockWarps; ++w) sum += double(staged[w * OwnSums::kCount * 32 + entry]);
    const int slot = entry / 32, part = entry % 32 / 4 + slot % 4 / 2 * 8;
    const int column = slot / 4 % kTiles * 8 + entry % 4 * 2 + slot % 2;
    const int64_t at = slot / 4 < kTiles ? plan.sums() : plan.squares();
    table[at + part * plan.columns() + column] = sum;
  }
  if (threadIdx.x < kParts) {  // lanes 4 g .. 4 g + 3 have a share each of the mass
                               // of parts g and g + 8
    double mass = 0;
    const int at = (OwnSums::kCount - 2 + threadIdx.x / 8) * 32 + threadIdx.x % 8 * 4;
    for (int w = 0; w < kBlockWarps; ++w) {
      for (int i = 0; i < 4; ++i) mass += double(staged[w * OwnSums::kCount * 32 + at + i]);
    }
    table[threadIdx.x] = mass;
  }
}

// A block per part and 8 channels: thread 8 s + c adds up every kMergeSlices-th
// range of channel c, relative to the shift of the first range; float64 has digits
// to spare for that.
__global__ void __launch_bounds__(8 * kMergeSlices)
    sum_kernel(SoftInputs in, MatrixPlan plan, const double* tables, SoftResults results) {
  __shared__ double shares[kMergeSlices][8][3];
  const int c = threadIdx.x % 8, slice = threadIdx.x / 8;
  const int64_t tiles = plan.channel_blocks * plan.tiles, tile = blockIdx.x % tiles, row = blockIdx.x / tiles;
  const int64_t k = row % in.parts, sample = row / in.parts, channel = tile * 8 + c;
  const int64_t column = channel % plan.columns();
  const int64_t entry = k % kParts * plan.columns() + column;
  const int64_t stride = plan.part_blocks * plan.channel_blocks * plan.unit_doubles;
  const double* table = tables + sample * plan.partitions * stride +
                        (k / kParts * plan.channel_blocks + channel / plan.columns()) * plan.unit_doubles;
  const double shift = plan.curved ? table[plan.shifts() + column] : 0.0;
  double mass = 0, sum = 0, squares = 0;
  for (int64_t p = slice; p < plan.partitions; p += kMergeSlices) {
    const double* own = table + p * stride;
    const double own_mass = own[k % kParts], own_sum = own[plan.sums() + entry];
    mass += own_mass;
    sum += own_sum;
    if (plan.curved) {
      const double move = own[plan.shifts() + column] - shift;
      sum += own_mass * move;
      squares += own[plan.squares() + entry] + move * (2 * own_sum + own_mass * move);
    }
  }
  shares[slice][c][0] = mass;
  shares[slice][c][1] = sum;
  shares[slice][c][2] = squares;
  __syncthreads();  // all shares are in
  if (slice > 0) return;
  for (int s = 1; s < kMergeSlices; ++s) {
    mass += shares[s][c][0];
    sum += shares[s][c][1];
    squares += shares[s][c][2];
  }
  if (channel == 0) static_cast<float*>(results.mass)[row] = float(mass);
  if (channel >= in.channels) return;
  const double distance = mass != 0 ? sum / mass : 0.0;
  static_cast<float*>(results.mean)[row * in.channels + channel] = float(mass != 0 ? shift + distance : 0.0);
  if (channel < in.plain) return;
  const double variance = mass != 0 ? squares / mass - distance * distance : 0.0;
  static_cast<float*>(results.variance)[row * (in.channels - in.plain) + channel - in.plain] =
      float(variance < 0 ? 0.0 : variance);
}

template <int kTiles, bool kCurved>
cudaError_t launch_products(const SoftInputs& in, const MatrixPlan& plan, double* tables,
                            cudaStream_t stream) {
  const auto kernel = product_kernel<kTiles, kCurved>;
  const size_t bytes = kBlockWarps * Sums<kTiles, kCurved>::kCount * 32 * sizeof(float);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (status != cudaSuccess) return status;
  return launch(kernel, unsigned(plan.units), kBlockThreads, bytes, stream, in, plan,
                normalisers_in(tables, plan), tables);
}

template <bool kCurved>
cudaError_t launch_tiles(const SoftInputs& in, const MatrixPlan& plan, double* tables, cudaStream_t stream) {
  switch (plan.tiles) {
    case 1:
      return launch_products<1, kCurved>(in, plan, tables, stream);
    case 2:
      return launch_products<2, kCurved>(in, plan, tables, stream);
    case 4:
      return launch_products<4, kCurved>(in, plan, tables, stream);
    default:
      return launch_products<5, kCurved>(in, plan, tables, stream);
  }
}

cudaError_t pool_on_matrix_units(const SoftInputs& in, const SoftResults& results, double* tables,
                                 cudaStream_t stream) {
  const MatrixPlan plan = make_matrix_plan(in);
  if (plan.units == 0) return cudaSuccess;
  cudaError_t status = cudaSuccess;
  if (plan.normalisers && in.voxels > 0) {
    const int64_t blocks = (in.batch * in.voxels + kBlockThreads - 1) / kBlockThreads;
    status = launch(normaliser_kernel, unsigned(blocks), kBlockThreads, 0, stream, in,
                    normalisers_in(tables, plan));
    if (status != cudaSuccess) return status;
  }
  status = (plan.curved ? launch_tiles<true> : launch_tiles<false>)(in, plan, tables, stream);
  if (status != cudaSuccess) return status;
  const int64_t blocks = in.batch * in.parts * plan.channel_blocks * plan.tiles;
  return launch(sum_kernel, unsigned(blocks), 8 * kMergeSlices, 0, stream, in, plan, tables, results);
}

}  // namespace

size_t soft_pool_scratch_cuda(const SoftInputs& in) {
  if (in.wide) return make_plan(in).units * sizeof(Table);
  const MatrixPlan plan = make_matrix_plan(in);
  const size_t normalisers = plan.normalisers ? 2 * in.batch * in.voxels * sizeof(float) : 0;
  return plan.units * plan.unit_doubles * sizeof(double) + normalisers;
}

cudaError_t soft_pool_cuda(const SoftInputs& in, const SoftResults& results, void* scratch,
                           cudaStream_t stream) {
  if (in.wide) return pool_wide(in, results, static_cast<Table*>(scratch), stream);
  return pool_on_matrix_units(in, results, static_cast<double*>(scratch), stream);
}

}  // namespace fastseg
