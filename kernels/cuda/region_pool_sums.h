// SPDX-License-Identifier: BSD-3-Clause
// Sums and means on CUDA, channels first: of up to 512 regions in region_pool_columns.cu, of more in
// region_pool_sorted.cu.
#pragma once

#include "../region_pool.h"

namespace fastseg {

// Block u has group u % groups, a group of `columns` channels, of range u / groups: the ranges of a sample
// follow one another. Its sums lie as (num_regions, columns) at u * num_regions * columns.
struct RangePlan {
  int64_t columns, groups, partitions, partition_voxels, units;
};

// Adds up the sums of all ranges, and writes what is asked for. `counts` are of the ranges, (num_regions)
// each; if null, those of the regions are in results.count already.
cudaError_t merge_ranges(const RegionLabels& labels, const RangePlan& plan, bool mean, const float* sums,
                         const uint32_t* counts, const RegionResults& results, cudaStream_t stream);

bool takes_columns(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce);
size_t column_scratch(const RegionLabels& labels, const RegionFeatures& features);
cudaError_t pool_columns(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce,
                         const RegionResults& results, void* scratch, cudaStream_t stream);

bool takes_sorted(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce);
size_t sorted_scratch(const RegionLabels& labels, const RegionFeatures& features);
cudaError_t pool_sorted(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce,
                        const RegionResults& results, void* scratch, cudaStream_t stream);

}  // namespace fastseg
