// SPDX-License-Identifier: BSD-3-Clause
// The gradient of region_pool on the CPU: every voxel takes what the row of its region says. Written per
// voxel and channel: the gradient once. Read: the label, once for every 8 channels; for the variance the
// feature.
#include <cstring>
#include <vector>

#include "../region_pool.h"
#include "region_pool_tiles.h"

namespace fastseg {
namespace {

constexpr int kTilesPerTask = 64;  // voxels of one task follow one another, so labels come from a cache

template <class Real>
struct Tables {
  const Real *base, *slope, *mean;
  int64_t channels;
  uint32_t num_regions;

  FASTSEG_ALWAYS_INLINE Real at(uint32_t label, int64_t channel, Real feature) const {
    const int64_t i = int64_t(label) * channels + channel;
    const Real value = base ? base[i] : Real(0);
    return slope ? value + slope[i] * (feature - mean[i]) : value;
  }
};

template <class Real>
FASTSEG_ALWAYS_INLINE Tables<Real> tables_of(const RegionLabels& in, const RegionGradient& gradient,
                                             int64_t sample) {
  const int64_t offset = sample * in.num_regions * in.channels;
  const auto* base = static_cast<const Real*>(gradient.base);
  const auto* slope = static_cast<const Real*>(gradient.slope);
  const auto* mean = static_cast<const Real*>(gradient.mean);
  return {base ? base + offset : nullptr, slope ? slope + offset : nullptr, mean ? mean + offset : nullptr,
          in.channels, uint32_t(in.num_regions)};
}

// One channel of a tile.
template <class Real>
FASTSEG_ALWAYS_INLINE void fill_channel(const Tables<Real>& tables, int64_t channel, const uint32_t* labels,
                                        const Real* features, int count, Real* out) {
  if (tables.slope) {
    for (int v = 0; v < count; ++v) {
      out[v] = labels[v] < tables.num_regions ? tables.at(labels[v], channel, features[v]) : Real(0);
    }
  } else {
    const Real* base = tables.base + channel;
    for (int v = 0; v < count; ++v) {
      out[v] = labels[v] < tables.num_regions ? base[int64_t(labels[v]) * tables.channels] : Real(0);
    }
  }
}

#if defined(__GNUC__)
alignas(32) constexpr float kNothing[8] = {};

FASTSEG_ALWAYS_INLINE const float* row_of(const Tables<float>& tables, uint32_t label, int64_t channel) {
  return label < tables.num_regions ? tables.base + int64_t(label) * tables.channels + channel : kNothing;
}

// Eight channels of a tile, eight voxels at a time: of one label, broadcast; else transposed from the rows.
FASTSEG_ALWAYS_INLINE void fill_eight_channels(const Tables<float>& tables, int64_t channel,
                                               const uint32_t* labels, int count, float* const (&out)[8]) {
  int v = 0;
  for (; v + 8 <= count; v += 8) {
    uint32_t differing = 0;
    for (int i = 1; i < 8; ++i) differing |= labels[v + i] ^ labels[v];
    if (differing == 0) {
      const float* values = row_of(tables, labels[v], channel);
      for (int lane = 0; lane < 8; ++lane) {
        const float value = values[lane];
        *reinterpret_cast<Lanes8*>(out[lane] + v) =
            Lanes8{value, value, value, value, value, value, value, value};
      }
      continue;
    }
    const float* from[8];
    float* to[8];
    for (int i = 0; i < 8; ++i) {
      from[i] = row_of(tables, labels[v + i], channel);
      to[i] = out[i] + v;
    }
    transpose_8x8(from, to);
  }
  for (; v < count; ++v) {
    const float* values = row_of(tables, labels[v], channel);
    for (int lane = 0; lane < 8; ++lane) out[lane][v] = values[lane];
  }
}
#endif

template <class Real>
FASTSEG_ALWAYS_INLINE void channels_first(const RegionLabels& in, const RegionFeatures& features,
                                          const RegionGradient& gradient, int64_t sample, int64_t group,
                                          int64_t begin, int64_t end, void* grad_features) {
  alignas(64) uint32_t labels[kTile];
  alignas(64) Real computed[kLanes][kTile];
  alignas(64) Real decoded[kTile];
  const Tables<Real> tables = tables_of<Real>(in, gradient, sample);
  const bool in_place = features.kind == kKindOf<Real>;
  const int64_t first = group * kLanes;
  const int lanes = int(std::min<int64_t>(kLanes, in.channels - first));
  for (int64_t at = begin; at < end; at += kTile) {
    const int count = int(std::min<int64_t>(kTile, end - at));
    decode_labels(in, sample * in.voxels + at, count, labels);
    const int64_t element = (sample * in.channels + first) * in.voxels + at;
    Real* out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      out[lane] = in_place && lane < lanes ? static_cast<Real*>(grad_features) + element + lane * in.voxels
                                           : computed[lane];
    }
    bool done = false;
#if defined(__GNUC__)
    if constexpr (sizeof(Real) == sizeof(float)) {
      done = lanes == kLanes && !tables.slope && tables.base;
      if (done) fill_eight_channels(tables, first, labels, count, out);
    }
#endif
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t lane_element = element + lane * in.voxels;
      if (!done && (tables.slope || tables.base)) {
        const Real* values = decoded;
        if (tables.slope && in_place) values = static_cast<const Real*>(features.features) + lane_element;
        if (tables.slope && !in_place) {
          read_values(features.features, features.kind, lane_element, count, decoded);
        }
        fill_channel(tables, first + lane, labels, values, count, out[lane]);
      } else if (!done) {
        std::memset(out[lane], 0, count * sizeof(Real));
      }
      if (!in_place) write_values(computed[lane], features.kind, lane_element, count, grad_features);
    }
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void channels_last(const RegionLabels& in, const RegionFeatures& features,
                                         const RegionGradient& gradient, int64_t sample, int64_t begin,
                                         int64_t end, void* grad_features) {
  alignas(64) uint32_t labels[kTile];
  const Tables<Real> tables = tables_of<Real>(in, gradient, sample);
  const bool in_place = features.kind == kKindOf<Real>;
  std::vector<Real> decoded(in_place ? 0 : in.channels), computed(in_place ? 0 : in.channels);
  for (int64_t at = begin; at < end; at += kTile) {
    const int count = int(std::min<int64_t>(kTile, end - at));
    decode_labels(in, sample * in.voxels + at, count, labels);
    for (int v = 0; v < count; ++v) {
      const int64_t element = (sample * in.voxels + at + v) * in.channels;
      Real* out = in_place ? static_cast<Real*>(grad_features) + element : computed.data();
      const bool counts = labels[v] < tables.num_regions;
      const int64_t row = int64_t(labels[v]) * in.channels;
      if (!counts || !(tables.base || tables.slope)) {
        std::memset(out, 0, in.channels * sizeof(Real));
      } else if (!tables.slope) {
        std::memcpy(out, tables.base + row, in.channels * sizeof(Real));
      } else {
        const Real* values = static_cast<const Real*>(features.features) + element;
        if (!in_place) {
          read_values(features.features, features.kind, element, int(in.channels), decoded.data());
          values = decoded.data();
        }
        for (int64_t c = 0; c < in.channels; ++c) out[c] = tables.at(labels[v], c, values[c]);
      }
      if (!in_place) write_values(out, features.kind, element, int(in.channels), grad_features);
    }
  }
}

int64_t tasks_per_sample(const RegionLabels& in) {
  return (in.voxels + kTile * kTilesPerTask - 1) / (kTile * kTilesPerTask);
}

template <class Real>
FASTSEG_ALWAYS_INLINE void run_tasks(const RegionLabels& in, const RegionFeatures& features,
                                     const RegionGradient& gradient, int64_t first, int64_t last,
                                     void* grad_features) {
  const int64_t groups = in.channels_last ? 1 : (in.channels + kLanes - 1) / kLanes;
  for (int64_t task = first; task < last; ++task) {
    const int64_t group = task % groups, range = task / groups % tasks_per_sample(in);
    const int64_t sample = task / groups / tasks_per_sample(in);
    const int64_t begin = range * kTile * kTilesPerTask;
    const int64_t end = std::min(begin + kTile * kTilesPerTask, in.voxels);
    if (in.channels_last) {
      channels_last<Real>(in, features, gradient, sample, begin, end, grad_features);
    } else {
      channels_first<Real>(in, features, gradient, sample, group, begin, end, grad_features);
    }
  }
}

FASTSEG_CPU_CLONES void run_tasks_float(const RegionLabels& in, const RegionFeatures& features,
                                        const RegionGradient& gradient, int64_t begin, int64_t end,
                                        void* grad_features) {
  run_tasks<float>(in, features, gradient, begin, end, grad_features);
}

// Where the extremes of a region lie. The value is computed anew, with the extremes' share: it is rounded
// once.
template <class Real>
void set_extrema(const RegionLabels& in, const RegionFeatures& features, const RegionGradient& gradient,
                 int64_t begin, int64_t end, void* grad_features) {
  const auto* of_minimum = static_cast<const Real*>(gradient.grad_minimum);
  const auto* of_maximum = static_cast<const Real*>(gradient.grad_maximum);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / in.num_regions;
    const Tables<Real> tables = tables_of<Real>(in, gradient, sample);
    for (int64_t c = 0; c < in.channels; ++c) {
      const int64_t at = row * in.channels + c;
      const int64_t lowest = of_minimum ? gradient.argmin[at] : -1,
                    highest = of_maximum ? gradient.argmax[at] : -1;
      const auto set = [&](int64_t voxel, Real share) {
        const int64_t element = in.channels_last ? (sample * in.voxels + voxel) * in.channels + c
                                                 : (sample * in.channels + c) * in.voxels + voxel;
        Real feature = 0;
        if (tables.slope) read_values(features.features, features.kind, element, 1, &feature);
        const Real value = tables.at(uint32_t(row % in.num_regions), c, feature) + share;
        write_values(&value, features.kind, element, 1, grad_features);
      };
      if (lowest >= 0) set(lowest, of_minimum[at] + (lowest == highest ? of_maximum[at] : Real(0)));
      if (highest >= 0 && highest != lowest) set(highest, of_maximum[at]);
    }
  }
}

template <class Real>
void divide_rows(const RegionLabels& in, const RegionShares& shares, int64_t begin, int64_t end) {
  const auto divide = [&](const void* grads, void* table, Real factor) {
    if (grads == nullptr) return;
    for (int64_t row = begin; row < end; ++row) {
      const Real size = Real(std::max<int64_t>(shares.count[row], 1));
      for (int64_t at = row * in.channels; at < (row + 1) * in.channels; ++at) {
        static_cast<Real*>(table)[at] = factor * static_cast<const Real*>(grads)[at] / size;
      }
    }
  };
  divide(shares.grad_mean, shares.base, 1);
  divide(shares.grad_variance, shares.slope, 2);
}

}  // namespace

void region_shares_cpu(const RegionLabels& in, ScalarKind kind, const RegionShares& shares, int64_t begin,
                       int64_t end) {
  const auto divide = kind == ScalarKind::kFloat64 ? divide_rows<double> : divide_rows<float>;
  divide(in, shares, begin, end);
}

int64_t region_gradient_tasks_cpu(const RegionLabels& in) {
  return in.batch * tasks_per_sample(in) * (in.channels_last ? 1 : (in.channels + kLanes - 1) / kLanes);
}

void region_gradient_cpu(const RegionLabels& in, const RegionFeatures& features,
                         const RegionGradient& gradient, int64_t begin, int64_t end, void* grad_features) {
  if (features.kind == ScalarKind::kFloat64) {
    run_tasks<double>(in, features, gradient, begin, end, grad_features);
  } else {
    run_tasks_float(in, features, gradient, begin, end, grad_features);
  }
}

void region_gradient_extrema_cpu(const RegionLabels& in, const RegionFeatures& features,
                                 const RegionGradient& gradient, int64_t begin, int64_t end,
                                 void* grad_features) {
  if (features.kind == ScalarKind::kFloat64) {
    set_extrema<double>(in, features, gradient, begin, end, grad_features);
  } else {
    set_extrema<float>(in, features, gradient, begin, end, grad_features);
  }
}

}  // namespace fastseg
