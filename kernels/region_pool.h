// SPDX-License-Identifier: BSD-3-Clause
// region_pool: statistics of the features of every region of a label volume, and their gradients.
// The contract between the torch glue and the kernels; the soft form is in region_pool_soft.h.
//
// A voxel's region is its label if that lies in [0, num_regions); any other voxel takes no part. Feature c of
// voxel p of sample b lies at (b * channels + c) * voxels + p, or, channels last, at (b * voxels + p) *
// channels + c. Tables lie as (batch, num_regions, channels), in Real: float64 for float64 features, else
// float32.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "contract.h"

namespace fastseg {

enum class RegionReduce : int { kSum, kMean, kVariance, kMin, kMax, kStats };
enum class LabelKind : int { kUint8, kInt8, kUint16, kInt16, kUint32, kInt32, kUint64, kInt64 };

struct RegionLabels {
  const void* regions;  // (batch, voxels)
  LabelKind label_kind;
  int64_t batch, channels, voxels, num_regions;  // num_regions from 1 to 2^31 - 1
  bool channels_last;
};

struct RegionFeatures {
  const void* features;
  ScalarKind kind;  // not kUint8
};

// Null where the reduction does not ask for it. Regions without a voxel hold 0, and -1 as argument.
struct RegionResults {
  int64_t* count;   // (batch, num_regions)
  void* mean;       // for kSum: the sum
  void* variance;   // sum of (f - mean)^2 / count
  void* minimum;    // NaN if any value is
  void* maximum;    // NaN if any value is
  int64_t* argmin;  // lowest voxel that holds it
  int64_t* argmax;
};

// d/df(p) = base + slope * (f(p) - mean), and what the minimum and maximum add at their arguments.
struct RegionGradient {
  const void* base;          // table; null: 0
  const void* slope;         // table; null: 0, and mean and features are not read
  const void* mean;          // table
  const void* grad_minimum;  // table; null: none
  const void* grad_maximum;
  const int64_t* argmin;
  const int64_t* argmax;
};

// What a voxel has of the gradients of its region's mean and variance: each over the region's size, that of
// the variance twice.
struct RegionShares {
  const int64_t* count;                   // (batch, num_regions)
  const void *grad_mean, *grad_variance;  // tables; null: none
  void *base, *slope;                     // tables, for RegionGradient
};

// How often a sample is cut into ranges of voxels that are reduced apart and then merged in order. It depends
// on shapes alone, so results do not depend on how many threads there are. `units` ranges keep them busy,
// unless ranges became shorter than fewest_voxels, or their tables longer than a row for every voxels_per_row
// voxels.
inline int64_t region_partitions(const RegionLabels& labels, int64_t others, int64_t units,
                                 int64_t fewest_voxels, int64_t voxels_per_row) {
  const int64_t wanted = (units + others - 1) / std::max<int64_t>(others, 1);
  const int64_t most =
      std::min(labels.voxels / fewest_voxels, labels.voxels / (voxels_per_row * labels.num_regions));
  const int64_t least = (labels.voxels >> 30) + 1;  // indices within a range have 32 bits
  return std::max(std::min(wanted, most), least);
}

// CPU. One unit is a range of voxels of one sample and a group of channels (channels last: all of them).
struct RegionUnits {
  int64_t partitions, partition_voxels, groups, units;
  size_t unit_bytes;  // of its table; unit i has its at i * unit_bytes
};
RegionUnits region_pool_units_cpu(const RegionLabels& labels, const RegionFeatures& features,
                                  RegionReduce reduce);
void region_pool_cpu(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce,
                     const RegionUnits& units, int64_t begin, int64_t end, void* tables);
// Rows [begin, end) of the batch * num_regions rows of the results, from the tables of all units.
void region_pool_merge_cpu(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce,
                           const RegionUnits& units, const void* tables, const RegionResults& results,
                           int64_t begin, int64_t end);
// Rows [begin, end) of the tables.
void region_shares_cpu(const RegionLabels& labels, ScalarKind kind, const RegionShares& shares, int64_t begin,
                       int64_t end);
// Tasks [begin, end) of region_gradient_tasks_cpu; and then, for the extremes, rows of the tables.
int64_t region_gradient_tasks_cpu(const RegionLabels& labels);
void region_gradient_cpu(const RegionLabels& labels, const RegionFeatures& features,
                         const RegionGradient& gradient, int64_t begin, int64_t end, void* grad_features);
void region_gradient_extrema_cpu(const RegionLabels& labels, const RegionFeatures& features,
                                 const RegionGradient& gradient, int64_t begin, int64_t end,
                                 void* grad_features);

#if defined(FASTSEG_WITH_CUDA) || defined(FASTSEG_CUDA_EMULATION)
// CUDA. `scratch` takes region_pool_scratch_cuda bytes; no call waits for the device.
size_t region_pool_scratch_cuda(const RegionLabels& labels, const RegionFeatures& features,
                                RegionReduce reduce);
cudaError_t region_pool_cuda(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce,
                             const RegionResults& results, void* scratch, cudaStream_t stream);
cudaError_t region_shares_cuda(const RegionLabels& labels, ScalarKind kind, const RegionShares& shares,
                               cudaStream_t stream);
cudaError_t region_gradient_cuda(const RegionLabels& labels, const RegionFeatures& features,
                                 const RegionGradient& gradient, void* grad_features, cudaStream_t stream);
#endif

}  // namespace fastseg
