// SPDX-License-Identifier: BSD-3-Clause
// What the kernels of sums and means share.
#pragma once

#include "region_pool_stats.cuh"

namespace fastseg {
namespace {

// What one wave of blocks fills: the processors of an H200 and their shared memory. Not asked of the device,
// so that the order of sums depends on shapes alone.
constexpr int64_t kProcessors = 132, kProcessorBytes = 228 * 1024, kReservedBytes = 1024;

// Calls run with a value of the features' type, whose sums are float32; float64 is not among them.
template <class Run>
auto with_short_type(ScalarKind kind, Run run) {
  if (kind == ScalarKind::kBFloat16) return run(__nv_bfloat16());
  if (kind == ScalarKind::kFloat16) return run(__half());
  return run(float());
}

// For each lane of a warp a voxel of every 32 from start on; no label behind the end.
template <int kLabels>
__device__ __forceinline__ void read_labels(const RegionLabels& in, int64_t of_sample, int64_t start,
                                            int64_t end, uint64_t (&labels)[kLabels]) {
  with_label_type(in.label_kind, [&](auto type, auto) {
    const auto* ids = static_cast<const decltype(type)*>(in.regions) + of_sample;
#pragma unroll
    for (int i = 0; i < kLabels; ++i) {
      const int64_t voxel = start + i * 32 + threadIdx.x % 32;
      labels[i] = voxel < end ? uint64_t(ids[voxel]) : ~uint64_t(0);
    }
  });
}

}  // namespace
}  // namespace fastseg
