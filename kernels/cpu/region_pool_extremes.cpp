// SPDX-License-Identifier: BSD-3-Clause
// region_pool on the CPU, forward: minima and maxima.
#include "region_pool_units.h"

namespace fastseg {

FASTSEG_POOL_UNITS(pool_minimum, RegionReduce::kMin)
FASTSEG_POOL_UNITS(pool_maximum, RegionReduce::kMax)

}  // namespace fastseg
