// SPDX-License-Identifier: BSD-3-Clause
// region_pool on the CPU, forward: the units of work of one reduction. A file for each pair of reductions
// compiles them, side by side, as they are the most to compile of all kernels: four layouts in three widths
// of vectors each.
#pragma once

#include <cstring>
#include <vector>

#include "../region_pool.h"
#include "region_pool_rows.h"

namespace fastseg {

// Units [first, last) of a reduction, into their tables.
using PoolUnits = void(const RegionLabels& in, const RegionFeatures& features, const RegionUnits& units,
                       int64_t first, int64_t last, void* tables);
PoolUnits pool_mean, pool_variance, pool_minimum, pool_maximum, pool_stats;

namespace {

// The voxels of a tile, run by run of equal labels.
template <class Real, int kWidth, RegionReduce kReduce>
FASTSEG_ALWAYS_INLINE void add_tile(const Real* rows, int64_t stride, const uint32_t* labels, int count,
                                    int first, int64_t* counts, Row<Real, kWidth, kReduce>* table) {
  for (int v = 0; v < count;) {
    const uint32_t label = labels[v];
    int end = v + 1;
    while (end < count && labels[end] == label) ++end;
    table[label].add_run(rows + v * stride, stride, end - v, first + v, counts[label]);
    counts[label] += end - v;
    v = end;
  }
}

template <class Real, int kWidth, RegionReduce kReduce>
FASTSEG_ALWAYS_INLINE void clear_rows(Row<Real, kWidth, kReduce>* table, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) table[row].clear();
}

// One group of channels of a range of voxels, channels first.
template <class Real, int kWidth, RegionReduce kReduce>
FASTSEG_ALWAYS_INLINE void pool_group(const RegionLabels& in, const RegionFeatures& features, int64_t sample,
                                      int64_t group, int64_t begin, int64_t end, char* memory) {
  alignas(64) uint32_t labels[kTile];
  alignas(64) Real rows[kTile * kWidth];
  alignas(64) Real decoded[kWidth][kTile];
  auto* counts = reinterpret_cast<int64_t*>(memory);
  auto* table = reinterpret_cast<Row<Real, kWidth, kReduce>*>(memory + counts_bytes(in));
  std::memset(counts, 0, counts_bytes(in));
  clear_rows<Real, kWidth, kReduce>(table, in.num_regions + 1);
  for (int64_t at = begin; at < end; at += kTile) {
    const int count = int(std::min<int64_t>(kTile, end - at));
    decode_labels(in, sample * in.voxels + at, count, labels);
    const Real* channel[kWidth];
    for (int lane = 0; lane < kWidth; ++lane) {
      const int64_t c = std::min(group * kLanes + lane, in.channels - 1);
      const int64_t element = (sample * in.channels + c) * in.voxels + at;
      channel[lane] = decoded[lane];
      if (features.kind == kKindOf<Real>) {
        channel[lane] = static_cast<const Real*>(features.features) + element;
      } else {
        read_values(features.features, features.kind, element, count, decoded[lane]);
      }
    }
    const Real* voxels = channel[0];
    if constexpr (kWidth > 1) {
      make_rows<Real, kWidth>(channel, count, rows);
      voxels = rows;
    }
    add_tile<Real, kWidth, kReduce>(voxels, kWidth, labels, count, int(at - begin), counts, table);
  }
}

// All channels of a range of voxels, channels last: a voxel's channels are a row as they lie. Where the last
// group is not full, rows are copied, so that no lane reads past the end of the tensor.
template <class Real, RegionReduce kReduce>
FASTSEG_ALWAYS_INLINE void pool_channels_last(const RegionLabels& in, const RegionFeatures& features,
                                              int64_t sample, int64_t begin, int64_t end, char* memory) {
  alignas(64) uint32_t labels[kTile];
  const bool in_place = features.kind == kKindOf<Real> && in.channels % kLanes == 0;
  const int tile = int(std::clamp<int64_t>(kRows / in.channels, 8, kTile));
  std::vector<Real> copied(in_place ? 0 : tile * in.channels + kLanes);
  auto* counts = reinterpret_cast<int64_t*>(memory);
  std::memset(counts, 0, counts_bytes(in));
  const int64_t groups = groups_of(in);
  for (int64_t group = 0; group < groups; ++group) {
    clear_rows<Real, kLanes, kReduce>(
        reinterpret_cast<Row<Real, kLanes, kReduce>*>(memory + group_offset<Real>(in, kReduce, group)),
        in.num_regions + 1);
  }
  for (int64_t at = begin; at < end; at += tile) {
    const int count = int(std::min<int64_t>(tile, end - at));
    decode_labels(in, sample * in.voxels + at, count, labels);
    const int64_t element = (sample * in.voxels + at) * in.channels;
    const Real* rows = copied.data();
    if (in_place) {
      rows = static_cast<const Real*>(features.features) + element;
    } else {
      read_values(features.features, features.kind, element, int(count * in.channels), copied.data());
    }
    for (int64_t group = 0; group < groups; ++group) {
      auto* table =
          reinterpret_cast<Row<Real, kLanes, kReduce>*>(memory + group_offset<Real>(in, kReduce, group));
      const Real* lanes = rows + group * kLanes;
      add_tile<Real, kLanes, kReduce>(lanes, in.channels, labels, count, int(at - begin), counts, table);
      if (group + 1 < groups) {  // the next group meets the same voxels
        for (int v = 0; v < count; ++v) --counts[labels[v]];
      }
    }
  }
}

template <class Real, RegionReduce kReduce>
FASTSEG_ALWAYS_INLINE void pool_units_as(const RegionLabels& in, const RegionFeatures& features,
                                         const RegionUnits& units, int64_t first, int64_t last,
                                         void* tables) {
  for (int64_t unit = first; unit < last; ++unit) {  // units of the same voxels follow one another
    const int64_t group = unit % units.groups, partition = unit / units.groups % units.partitions;
    const int64_t sample = unit / units.groups / units.partitions;
    const int64_t begin = std::min(partition * units.partition_voxels, in.voxels);
    const int64_t end = std::min(begin + units.partition_voxels, in.voxels);
    char* memory = static_cast<char*>(tables) + unit * units.unit_bytes;
    const int lanes = lanes_of_group(in.channels, group);
    if (in.channels_last) {
      pool_channels_last<Real, kReduce>(in, features, sample, begin, end, memory);
    } else if (lanes == kLanes) {
      pool_group<Real, kLanes, kReduce>(in, features, sample, group, begin, end, memory);
    } else if (lanes == 4) {
      pool_group<Real, 4, kReduce>(in, features, sample, group, begin, end, memory);
    } else {
      pool_group<Real, 1, kReduce>(in, features, sample, group, begin, end, memory);
    }
  }
}

}  // namespace
}  // namespace fastseg

// Defines one of the functions above. float64, which checks gradients, is not worth the widths.
#define FASTSEG_POOL_UNITS(name, reduce)                                                                     \
  FASTSEG_CPU_CLONES static void name##_float(const RegionLabels& in, const RegionFeatures& features,        \
                                              const RegionUnits& units, int64_t first, int64_t last,         \
                                              void* tables) {                                                \
    pool_units_as<float, reduce>(in, features, units, first, last, tables);                                  \
  }                                                                                                          \
  void name(const RegionLabels& in, const RegionFeatures& features, const RegionUnits& units, int64_t first, \
            int64_t last, void* tables) {                                                                    \
    if (features.kind == ScalarKind::kFloat64) {                                                             \
      pool_units_as<double, reduce>(in, features, units, first, last, tables);                               \
    } else {                                                                                                 \
      name##_float(in, features, units, first, last, tables);                                                \
    }                                                                                                        \
  }
