// SPDX-License-Identifier: BSD-3-Clause
// How the lanes of a warp bring their voxels into the warp's own table, always in the same order.
#pragma once

#include "region_pool_stats.cuh"

namespace fastseg {
namespace {

constexpr int kVector = 4;  // voxels of a lane

// A row per lane, or kNone, goes into the warp's table: equal rows side by side by a segmented scan; of rows
// that are left several times, the lower lane first.
template <class Stat>
__device__ __forceinline__ void add_lanes(uint32_t row, Stat stat, Stat* table) {
  const int lane = threadIdx.x % 32;
  const uint32_t before = __shfl_up_sync(kFull, row, 1);
  const unsigned heads = __ballot_sync(kFull, lane == 0 || row != before);
  if (heads == 1u) {  // one row in all lanes: most steps, where regions are coherent
    if (row == kNone) return;
    for (int delta = 16; delta > 0; delta /= 2) stat.merge(shuffle_down(stat, delta));
    if (lane == 0) table[row].merge(stat);
    __syncwarp();  // the next step may add to the same entry from another lane
    return;
  }
  const int start = 31 - __clz(int(heads & (kFull >> (31 - lane))));
  for (int delta = 1; delta < 32; delta *= 2) {
    Stat sum = shuffle_up(stat, delta);
    if (lane - delta < start) continue;
    sum.merge(stat);
    stat = sum;
  }
  const bool last = lane == 31 || ((heads >> (lane + 1)) & 1u);
  const bool adds = last && row != kNone;
  const unsigned same = __match_any_sync(kFull, adds ? row : 0x80000000u | unsigned(lane));
  const int rank = __popc(same & ((1u << lane) - 1u));
  for (int turn = 0; __any_sync(kFull, adds && rank >= turn); ++turn) {
    if (adds && rank == turn) table[row].merge(stat);
    __syncwarp();  // entries of equal row are added to in turn
  }
}

// kVector consecutive voxels per lane: neighbours of equal row join the later one, then one call per slot.
template <class Stat, class T>
__device__ __forceinline__ void add_voxels(const T* features, const uint32_t* rows, int at, int count,
                                           bool vectors, RealOf<T> shift, int first, Stat* table) {
  using Real = RealOf<T>;
  Lanes<T, kVector> values{};
  uint32_t row[kVector];
  Stat stat[kVector];
  if (vectors && at + kVector <= count) {
    values = *reinterpret_cast<const Lanes<T, kVector>*>(features + at);
  } else {
    for (int i = 0; i < kVector; ++i) {
      if (at + i < count) values.value[i] = features[at + i];
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    row[i] = at + i < count ? rows[at + i] : kNone;
    stat[i] = stat_of<Stat, Real>(to_real<Real>(values.value[i]), shift, first + at + i);
  }
#pragma unroll
  for (int i = 0; i + 1 < kVector; ++i) {
    if (row[i] != row[i + 1]) continue;
    stat[i].merge(stat[i + 1]);
    stat[i + 1] = stat[i];
    row[i] = kNone;
  }
#pragma unroll 1
  for (int slot = 0; slot < kVector; ++slot) {  // one copy of the code, and registers that move up
    if (__any_sync(kFull, row[0] != kNone)) add_lanes(row[0], stat[0], table);
#pragma unroll
    for (int i = 0; i + 1 < kVector; ++i) {
      row[i] = row[i + 1];
      stat[i] = stat[i + 1];
    }
  }
}

}  // namespace
}  // namespace fastseg
