// SPDX-License-Identifier: BSD-3-Clause
// Sums and means on CUDA, channels first: of up to 512 regions in region_pool_columns.cu, of more in
// region_pool_sorted.cu.
#pragma once

#include "../region_pool.h"

namespace fastseg {

bool takes_columns(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce);
size_t column_scratch(const RegionLabels& labels, const RegionFeatures& features);
cudaError_t pool_columns(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce,
                         const RegionResults& results, void* scratch, cudaStream_t stream);

bool takes_sorted(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce);
size_t sorted_scratch(const RegionLabels& labels, const RegionFeatures& features);
cudaError_t pool_sorted(const RegionLabels& labels, const RegionFeatures& features, RegionReduce reduce,
                        const RegionResults& results, void* scratch, cudaStream_t stream);

}  // namespace fastseg
