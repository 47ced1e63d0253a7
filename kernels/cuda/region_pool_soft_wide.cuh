// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool on CUDA in float64, forward: a product of weights and features over the voxels. A block
// takes a range of voxels, 16 parts and 32 channels; tiles of 64 voxels come into shared memory, weights
// behind their softmax, and each of the 8 warps multiplies 8 of the voxels, a lane 4 parts by 4 channels in
// registers. From time to time the warps add what they have, in turn, to float64 sums; a second kernel merges
// the ranges in order. So results are the same bit for bit. Read per voxel: features once for 16 parts,
// weights once for 32 channels.
#pragma once

#include "region_pool_soft_maps.cuh"

namespace fastseg {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kParts = 16, kChannels = 32;  // of a block
constexpr int kTile = 64;                   // voxels
constexpr int kPerLane = 4;                 // parts, and channels
constexpr int kTilesPerFlush = 64;          // a lane adds 512 products in Real at most
constexpr int64_t kUnits = 1024;            // blocks, to fill the largest GPUs several times
constexpr int64_t kFewestVoxels = 2048;     // of a range

// What a block leaves: relative to the shift, for channels that have a variance.
struct Table {
  double mass[kParts], shift[kChannels];
  double sum[kParts * kChannels], squares[kParts * kChannels];
};

struct Plan {
  int64_t partitions, partition_voxels, part_blocks, channel_blocks, units;
};

Plan make_plan(const SoftInputs& in) {
  Plan plan{};
  plan.part_blocks = (in.parts + kParts - 1) / kParts;
  plan.channel_blocks = std::max<int64_t>(1, (in.channels + kChannels - 1) / kChannels);
  const int64_t others = std::max<int64_t>(1, in.batch * plan.part_blocks * plan.channel_blocks);
  plan.partitions = std::max<int64_t>(1, std::min((kUnits + others - 1) / others, in.voxels / kFewestVoxels));
  plan.partition_voxels = ((in.voxels + plan.partitions - 1) / plan.partitions + kTile - 1) / kTile * kTile;
  plan.units = in.batch * plan.partitions * plan.part_blocks * plan.channel_blocks;
  return plan;
}

struct Tiles {
  alignas(16) double weights[kTile][kParts + kPerLane];  // padded against bank conflicts
  alignas(16) double values[kTile][kChannels + kPerLane];
  double largest[kTile][kThreads / kTile], sum[kTile][kThreads / kTile];  // of a quarter of the logits each
  double shift[kChannels];
  double mass[kParts], sums[kParts * kChannels], squares[kParts * kChannels];
};

// The mean of the first tile of the range, so that a common offset of all values costs no digits.
__device__ __forceinline__ void find_shift(const SoftInputs& in, int64_t sample, int64_t first_channel,
                                           int64_t begin, int64_t end, Tiles& tiles) {
  const int lane = threadIdx.x % 32;
  for (int c = threadIdx.x / 32; c < kChannels; c += kWarps) {
    double sum = 0;
    const int64_t channel = first_channel + c;
    const int count = int(end - begin < kTile ? end - begin : kTile);
    if (channel >= in.plain && channel < in.channels) {
      for (int v = lane; v < count; v += 32) sum += read_channel<double>(in, sample, channel, begin + v);
    }
    for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, delta);
    const double mean = count > 0 ? sum / double(count) : double(0);
    if (lane == 0) tiles.shift[c] = mean - mean == double(0) ? mean : double(0);  // not NaN, not inf
  }
}

__device__ __forceinline__ void load_tile(const SoftInputs& in, int64_t sample, int64_t first_part,
                                          int64_t first_channel, int64_t start, int count, Tiles& tiles) {
  const int v = threadIdx.x % kTile, quarter = threadIdx.x / kTile;
  const bool inside = v < count;
  const int quarters = kThreads / kTile;
  if (in.from_logits) {
    double largest = -INFINITY, sum = 0;
    for (int64_t k = quarter; inside && k < in.parts; k += quarters) {
      const double logit = read_part<double>(in, sample, k, start + v);
      if (logit > largest || logit != logit) largest = logit;
    }
    tiles.largest[v][quarter] = largest;
    __syncthreads();  // the largest of all quarters are in
    for (int q = 0; q < quarters; ++q) {
      const double other = tiles.largest[v][q];
      if (other > largest || other != other) largest = other;
    }
    for (int64_t k = quarter; inside && k < in.parts; k += quarters) {
      sum += exponential(read_part<double>(in, sample, k, start + v) - largest);
    }
    tiles.sum[v][quarter] = sum;
    __syncthreads();  // the sums of all quarters are in
    sum = 0;
    for (int q = 0; q < quarters; ++q) sum += tiles.sum[v][q];
    for (int k = quarter; k < kParts; k += quarters) {
      const bool counts = inside && first_part + k < in.parts;
      tiles.weights[v][k] =
          counts ? exponential(read_part<double>(in, sample, first_part + k, start + v) - largest) / sum
                 : double(0);
    }
  } else {
    for (int k = quarter; k < kParts; k += quarters) {
      const bool counts = inside && first_part + k < in.parts;
      tiles.weights[v][k] = counts ? read_part<double>(in, sample, first_part + k, start + v) : double(0);
    }
  }
  for (int c = quarter; c < kChannels; c += quarters) {
    const bool counts = inside && first_channel + c < in.channels;
    tiles.values[v][c] =
        counts ? read_channel<double>(in, sample, first_channel + c, start + v) - tiles.shift[c] : double(0);
  }
}

struct Products {
  double mass[kPerLane], sums[kPerLane][kPerLane], squares[kPerLane][kPerLane];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      mass[i] = 0;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) sums[i][j] = squares[i][j] = 0;
    }
  }

  __device__ __forceinline__ void add(const Tiles& tiles, int part, int channel, bool curved) {
    for (int v = threadIdx.x / 32; v < kTile; v += kWarps) {
      const auto weight = *reinterpret_cast<const Lanes<double, kPerLane>*>(&tiles.weights[v][part]);
      const auto value = *reinterpret_cast<const Lanes<double, kPerLane>*>(&tiles.values[v][channel]);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        mass[i] += weight.value[i];
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          const double product = weight.value[i] * value.value[j];
          sums[i][j] += product;
          if (curved) squares[i][j] += product * value.value[j];
        }
      }
    }
  }

  // Into the sums of the block, one warp after the other.
  __device__ __forceinline__ void flush(Tiles& tiles, int part, int channel) {
    for (int warp = 0; warp < kWarps; ++warp) {
      if (threadIdx.x / 32 == warp) {
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          if (channel == 0) tiles.mass[part + i] += double(mass[i]);
#pragma unroll
          for (int j = 0; j < kPerLane; ++j) {
            const int at = (part + i) * kChannels + channel + j;
            tiles.sums[at] += double(sums[i][j]);
            tiles.squares[at] += double(squares[i][j]);
          }
        }
      }
      __syncthreads();  // the next warp's turn
    }
    clear();
  }
};

__global__ void __launch_bounds__(kThreads, 2) pool_kernel(SoftInputs in, Plan plan, Table* tables) {
  __shared__ Tiles tiles;
  const int64_t channel_block = blockIdx.x % plan.channel_blocks;
  const int64_t part_block = blockIdx.x / plan.channel_blocks % plan.part_blocks;
  const int64_t rest = blockIdx.x / plan.channel_blocks / plan.part_blocks;
  const int64_t sample = rest / plan.partitions, begin = rest % plan.partitions * plan.partition_voxels;
  const int64_t end = begin + plan.partition_voxels < in.voxels ? begin + plan.partition_voxels : in.voxels;
  const int64_t first_part = part_block * kParts, first_channel = channel_block * kChannels;
  const int part = threadIdx.x % 32 / 8 * kPerLane, channel = threadIdx.x % 8 * kPerLane;
  const bool curved = first_channel + kChannels > in.plain && in.plain < in.channels;
  for (int i = threadIdx.x; i < kParts * kChannels; i += kThreads) tiles.sums[i] = tiles.squares[i] = 0;
  if (threadIdx.x < kParts) tiles.mass[threadIdx.x] = 0;
  find_shift(in, sample, first_channel, begin, end, tiles);
  Products products;
  products.clear();
  int since_flush = 0;
  for (int64_t start = begin; start < end; start += kTile) {
    __syncthreads();  // the shift is in, and all warps are done with the tile before
    load_tile(in, sample, first_part, first_channel, start, int(end - start < kTile ? end - start : kTile),
              tiles);
    __syncthreads();  // the tile is in
    products.add(tiles, part, channel, curved);
    if (++since_flush == kTilesPerFlush) {
      products.flush(tiles, part, channel);
      since_flush = 0;
    }
  }
  __syncthreads();  // the sums are 0 even where there was no tile
  products.flush(tiles, part, channel);
  Table& table = tables[blockIdx.x];
  for (int i = threadIdx.x; i < kParts * kChannels; i += kThreads) {
    table.sum[i] = tiles.sums[i];
    table.squares[i] = tiles.squares[i];
  }
  if (threadIdx.x < kParts) table.mass[threadIdx.x] = tiles.mass[threadIdx.x];
  if (threadIdx.x < kChannels) table.shift[threadIdx.x] = double(tiles.shift[threadIdx.x]);
}

// One thread per part and channel; that of channel 0 also writes the mass.
__global__ void __launch_bounds__(kThreads)
    merge_kernel(SoftInputs in, Plan plan, const Table* tables, SoftResults results) {
  const int64_t columns = in.channels > 0 ? in.channels : 1;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= in.batch * in.parts * columns) return;
  const int64_t c = index % columns, row = index / columns, k = row % in.parts, sample = row / in.parts;
  double mass = 0, mean = 0, squares = 0;
  for (int64_t partition = 0; partition < plan.partitions; ++partition) {
    const int64_t unit =
        ((sample * plan.partitions + partition) * plan.part_blocks + k / kParts) * plan.channel_blocks +
        c / kChannels;
    const Table& table = tables[unit];
    const double own = table.mass[k % kParts], sum = table.sum[k % kParts * kChannels + c % kChannels];
    if (c < in.plain) {
      mean += sum;  // divided in the end
    } else if (own != 0) {
      const double distance = sum / own, difference = table.shift[c % kChannels] + distance - mean;
      const double spread = table.squares[k % kParts * kChannels + c % kChannels] - sum * distance;
      mean += difference * (own / (mass + own));
      squares += (spread < 0 ? 0 : spread) + difference * difference * (mass * (own / (mass + own)));
    }
    mass += own;
  }
  if (c == 0) static_cast<double*>(results.mass)[row] = double(mass);
  if (in.channels == 0) return;
  if (c < in.plain) mean = mass != 0 ? mean / mass : 0.0;
  static_cast<double*>(results.mean)[row * columns + c] = double(mass != 0 ? mean : 0.0);
  if (c >= in.plain) {
    static_cast<double*>(results.variance)[row * (columns - in.plain) + c - in.plain] =
        double(mass != 0 ? squares / mass : 0.0);
  }
}

cudaError_t pool_wide(const SoftInputs& in, const SoftResults& results, Table* tables, cudaStream_t stream) {
  const Plan plan = make_plan(in);
  if (plan.units == 0) return cudaSuccess;
  const cudaError_t status = launch(pool_kernel, unsigned(plan.units), kThreads, 0, stream, in, plan, tables);
  if (status != cudaSuccess) return status;
  const int64_t entries = in.batch * in.parts * std::max<int64_t>(1, in.channels);
  return launch(merge_kernel, unsigned((entries + kThreads - 1) / kThreads), kThreads, 0, stream, in, plan,
                tables, results);
}

}  // namespace
}  // namespace fastseg
