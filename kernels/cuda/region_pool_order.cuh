// SPDX-License-Identifier: BSD-3-Clause
// The voxels of tiles, sorted by region on CUDA: once for all channels, for region_pool_sorted.cu.
#pragma once

#include "region_pool_ranges.cuh"

namespace fastseg {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kTile = 4096, kOwn = kTile / kThreads;  // voxels; of a thread
constexpr int kMostTiles = 512;                       // of a partition

constexpr int kPlaceBits = 12;  // of a voxel in its tile
static_assert(kTile == 1 << kPlaceBits && kOwn % 4 == 0);

// A link: whether the voxel is the first or the last of its region in the tile; from bit 2 on its place in
// the tile, from bit 16 on its row of the table.
constexpr uint32_t kFirst = 1, kLast = 2;
constexpr int kPlaceShift = 2, kRowShift = 16;

struct SortedPlan {
  int64_t tiles, partitions, partition_tiles;  // of a sample, of a sample, of a partition
  int64_t ranges, rows;                        // of regions, of a range
};

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;

// Block: a tile. A radix sort of its rows, from the lowest digit on: a warp finds which of its voxels have
// equal digits, the block where those of a digit begin.
__global__ void __launch_bounds__(kThreads, 2)
    order_kernel(RegionLabels in, SortedPlan plan, uint32_t* links, uint32_t* begins) {
  __shared__ uint32_t sorted[kTile];
  __shared__ uint32_t places[kWarps][kDigits];
  __shared__ uint32_t sums[kDigits / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, thread = int(threadIdx.x);
  const int64_t tile = blockIdx.x, sample = tile / plan.tiles;
  const auto none = uint32_t(in.num_regions);
  const uint32_t before = (1u << lane) - 1u;
  uint64_t labels[kOwn];
  read_labels(in, sample * in.voxels, tile % plan.tiles * kTile + warp * kOwn * 32, in.voxels, labels);
  uint32_t keys[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const uint32_t row = labels[i] < uint64_t(none) ? uint32_t(labels[i]) : none;
    keys[i] = row << kPlaceBits | uint32_t((warp * kOwn + i) * 32 + lane);
  }
#pragma unroll 1
  for (int shift = kPlaceBits; none >> (shift - kPlaceBits) != 0; shift += kDigitBits) {
    uint32_t* const own = places[warp];
    for (int d = lane; d < kDigits; d += 32) own[d] = 0;
    __syncwarp();  // nothing is counted yet
    uint32_t ranks[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const uint32_t digit = keys[i] >> shift & (kDigits - 1);
      const unsigned same = __match_any_sync(kFull, digit);
      const uint32_t counted = own[digit];
      ranks[i] = counted + uint32_t(__popc(same & before));
      __syncwarp();  // all have read
      if ((same & before) == 0) own[digit] = counted + uint32_t(__popc(same));
      __syncwarp();  // counted, for the next 32
    }
    __syncthreads();  // all warps have counted
    uint32_t total = 0, sum = 0;
    if (thread < kDigits) {
      for (int w = 0; w < kWarps; ++w) total += places[w][thread];
      sum = total;
      for (int delta = 1; delta < 32; delta *= 2) {
        const uint32_t other = __shfl_up_sync(kFull, sum, delta);
        if (lane >= delta) sum += other;
      }
      if (lane == 31) sums[warp] = sum;
    }
    __syncthreads();  // the sums of the warps are in
    if (thread < kDigits) {
      uint32_t begin = sum - total;
      for (int w = 0; w < warp; ++w) begin += sums[w];
      for (int w = 0; w < kWarps; ++w) {
        const uint32_t count = places[w][thread];
        places[w][thread] = begin;
        begin += count;
      }
    }
    __syncthreads();  // the places are in
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sorted[own[keys[i] >> shift & (kDigits - 1)] + ranks[i]] = keys[i];
    __syncthreads();  // sorted by this digit
#pragma unroll
    for (int i = 0; i < kOwn; ++i) keys[i] = sorted[(warp * kOwn + i) * 32 + lane];
  }

#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int at = (warp * kOwn + i) * 32 + lane;
    const uint32_t row = keys[i] >> kPlaceBits;
    const bool first = at == 0 || sorted[at - 1] >> kPlaceBits != row;
    const bool last = row != none && (at == kTile - 1 || sorted[at + 1] >> kPlaceBits != row);
    links[tile * kTile + at] = (first ? kFirst : 0u) | (last ? kLast : 0u) | keys[i] % kTile << kPlaceShift |
                               row % uint32_t(plan.rows) << kRowShift;
  }
  if (thread > plan.ranges) return;
  const int64_t row = thread * plan.rows < in.num_regions ? thread * plan.rows : in.num_regions;
  int begin = 0;  // of the range, by bisection
  for (int step = kTile; step > 0; step /= 2) {
    if (begin + step <= kTile && sorted[begin + step - 1] >> kPlaceBits < row) begin += step;
  }
  begins[tile * (plan.ranges + 1) + thread] = uint32_t(begin);
}

}  // namespace
}  // namespace fastseg
