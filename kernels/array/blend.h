// SPDX-License-Identifier: BSD-3-Clause
// A tile blended into the running weighted mean of the tiles before it.
#pragma once

#include <cstdint>

namespace fastseg {

// Elements between neighbours along channel, z and y; x is contiguous.
struct BlendStrides {
  int64_t channel, z, y;
};

// What the tiles before count for along an axis, and all tiles, in units of the tile's own weight.
struct BlendInputs {
  const float* values;
  BlendStrides values_strides, mean_strides;
  int64_t channels, depth, height, width;
  const float *before_z, *before_y, *total_y, *before_x, *total_x;
};

// mean += weight (values - mean), weight = 1 / (1 + before_x + total_x (before_y + total_y before_z)). A
// weight of 1 gives exactly the value, and equal values stay as they are.
void blend_tile(const BlendInputs& in, float* mean);

}  // namespace fastseg
