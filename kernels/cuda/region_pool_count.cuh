// SPDX-License-Identifier: BSD-3-Clause
// How many voxels every region has, on CUDA.
#pragma once

#include "region_pool_stats.cuh"

namespace fastseg {
namespace {

constexpr int kMergeThreads = 256;
constexpr int kCountedRegions = 8192;  // histograms of this length lie in shared memory

// The voxels of every region, and the first voxel of every sample that counts. Integers add up to the same in
// any order, so these may be atomic.
__global__ void __launch_bounds__(kMergeThreads)
    count_kernel(RegionLabels in, unsigned long long* counts, unsigned long long* first) {
  __shared__ unsigned histogram[kCountedRegions];
  const bool shared = in.num_regions <= kCountedRegions;
  const int64_t sample = blockIdx.y;
  unsigned long long* of_sample = counts + sample * in.num_regions;
  if (shared) {
    for (int r = threadIdx.x; r < in.num_regions; r += kMergeThreads) histogram[r] = 0;
  }
  __syncthreads();  // the histogram is empty
  const int64_t step = int64_t(gridDim.x) * kMergeThreads;
  const int lane = threadIdx.x % 32;
  bool found = false;  // by this warp: later voxels come later
  for (int64_t base = int64_t(blockIdx.x) * kMergeThreads; base < in.voxels; base += step) {
    const int64_t v = base + threadIdx.x;
    const uint32_t row = v < in.voxels ? row_of(in, sample * in.voxels + v) : kNone;
    const unsigned counted = __ballot_sync(kFull, row != kNone);
    if (counted != 0 && !found) {
      if (lane == 0) atomicMin(&first[sample], (unsigned long long)(v + __ffs(int(counted)) - 1));
      found = true;
    }
    const unsigned same = __match_any_sync(kFull, row);
    if (row == kNone || (same & ((1u << lane) - 1u)) != 0) continue;  // the lowest lane adds
    if (shared) {
      atomicAdd(&histogram[row], unsigned(__popc(same)));
    } else {
      atomicAdd(&of_sample[row], (unsigned long long)__popc(same));
    }
  }
  __syncthreads();  // the histogram is complete
  if (!shared) return;
  for (int r = threadIdx.x; r < in.num_regions; r += kMergeThreads) {
    if (histogram[r]) atomicAdd(&of_sample[r], (unsigned long long)histogram[r]);
  }
}

}  // namespace
}  // namespace fastseg
