// SPDX-License-Identifier: BSD-3-Clause
// region_pool on the CPU, forward: mean, variance, minimum and maximum in one pass.
#include "region_pool_units.h"

namespace fastseg {

FASTSEG_POOL_UNITS(pool_stats, RegionReduce::kStats)

}  // namespace fastseg
