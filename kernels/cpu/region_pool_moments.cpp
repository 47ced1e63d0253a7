// SPDX-License-Identifier: BSD-3-Clause
// region_pool on the CPU, forward: sums, means and variances.
#include "region_pool_units.h"

namespace fastseg {

FASTSEG_POOL_UNITS(pool_mean, RegionReduce::kMean)
FASTSEG_POOL_UNITS(pool_variance, RegionReduce::kVariance)

}  // namespace fastseg
