// SPDX-License-Identifier: BSD-3-Clause
#include "array/blend.h"

#include "cpu_utils.h"

namespace fastseg {
namespace {

constexpr int64_t kRow = 512;  // weights of a row at a time: 2 KiB, for all channels

FASTSEG_ALWAYS_INLINE void blend_row(const BlendInputs& in, int64_t begin, int64_t count, float others,
                                     const float* values, float* mean) {
  float weights[kRow];
  for (int64_t x = 0; x < count; ++x) {
    weights[x] = 1.0f / (1.0f + in.before_x[begin + x] + others * in.total_x[begin + x]);
  }
  for (int64_t channel = 0; channel < in.channels; ++channel) {
    const float* from = values + channel * in.values_strides.channel;
    float* to = mean + channel * in.mean_strides.channel;
    for (int64_t x = 0; x < count; ++x) {
      // From the nearer end, as torch.lerp: exact at both.
      const bool near = weights[x] < 0.5f;
      const float weight = near ? weights[x] : weights[x] - 1.0f, base = near ? to[x] : from[x];
      to[x] = base + weight * (from[x] - to[x]);
    }
  }
}

FASTSEG_CPU_CLONES void blend_rows(const BlendInputs& in, float* mean) {
  for (int64_t z = 0; z < in.depth; ++z) {
    for (int64_t y = 0; y < in.height; ++y) {
      const float others = in.before_y[y] + in.total_y[y] * in.before_z[z];
      const float* values = in.values + z * in.values_strides.z + y * in.values_strides.y;
      float* to = mean + z * in.mean_strides.z + y * in.mean_strides.y;
      for (int64_t x = 0; x < in.width; x += kRow) {
        const int64_t count = in.width - x < kRow ? in.width - x : kRow;
        blend_row(in, x, count, others, values + x, to + x);
      }
    }
  }
}

}  // namespace

void blend_tile(const BlendInputs& in, float* mean) { blend_rows(in, mean); }

}  // namespace fastseg
