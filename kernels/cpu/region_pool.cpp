// SPDX-License-Identifier: BSD-3-Clause
// region_pool on the CPU, forward. Each unit of work has a table of its own: a row per region with a group of
// channels side by side, so that a voxel adds one vector, whatever its label, and a run of equal labels along
// the voxels adds one vector in all. Tables of a sample are merged in a fixed order. Sums are float64: the
// conversions hide behind memory, and ten million voxels of one region keep their digits.
// Read per voxel: its features once, its label once for every 8 channels (mostly from a cache).
#include "../region_pool.h"

#include "region_pool_units.h"

namespace fastseg {
namespace {

constexpr int64_t kUnits = 32;            // enough to keep a few dozen threads busy
constexpr int64_t kFewestVoxels = 16384;  // of a range
constexpr int64_t kVoxelsPerRow = 32;     // so that no table outweighs the voxels

template <class Real>
struct Outputs {
  Real *mean, *variance, *extreme[2];
  int64_t *count, *argument[2];
};

// One group of channels of one region, from the tables of all ranges of its sample.
template <class Real, int kWidth, RegionReduce kReduce>
void merge_row(const RegionLabels& in, const RegionUnits& units, RegionReduce reduce, const char* tables,
               int64_t sample, int64_t region, int64_t group, const Outputs<Real>& out) {
  Totals<Real, kWidth> totals{};
  for (auto& argument : totals.argument) std::fill_n(argument, kWidth, -1);
  for (int64_t partition = 0; partition < units.partitions; ++partition) {
    const int64_t unit =
        (sample * units.partitions + partition) * units.groups + (in.channels_last ? 0 : group);
    const char* memory = tables + unit * units.unit_bytes;
    const int64_t count = reinterpret_cast<const int64_t*>(memory)[region];
    const auto* table =
        reinterpret_cast<const Row<Real, kWidth, kReduce>*>(memory + group_offset<Real>(in, reduce, group));
    table[region].merge_into(totals, count, partition * units.partition_voxels);
    totals.count += count;
  }
  const int64_t row = sample * in.num_regions + region, at = row * in.channels + group * kLanes;
  const int lanes = int(std::min<int64_t>(kWidth, in.channels - group * kLanes));
  const double inverse = totals.count > 0 ? 1 / double(totals.count) : 0;
  const double mean_of_sum = reduce == RegionReduce::kSum ? 1 : inverse;
  if (group == 0) out.count[row] = totals.count;
  for (int lane = 0; lane < lanes; ++lane) {
    if (out.mean) out.mean[at + lane] = totals.count > 0 ? Real(totals.sum[lane] * mean_of_sum) : Real(0);
    if (out.variance) out.variance[at + lane] = Real(totals.squares[lane] * inverse);
    for (int i = 0; i < 2; ++i) {
      if (!out.extreme[i]) continue;
      out.extreme[i][at + lane] = totals.extreme[i][lane];
      out.argument[i][at + lane] = totals.argument[i][lane];
    }
  }
}

template <class Real, RegionReduce kReduce>
void merge_rows(const RegionLabels& in, const RegionUnits& units, RegionReduce reduce, const char* tables,
                int64_t begin, int64_t end, const Outputs<Real>& out) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / in.num_regions, region = row % in.num_regions;
    if (in.channels == 0) out.count[row] = 0;
    for (int64_t group = 0; group < groups_of(in); ++group) {
      const int lanes = in.channels_last ? kLanes : lanes_of_group(in.channels, group);
      if (lanes == kLanes) {
        merge_row<Real, kLanes, kReduce>(in, units, reduce, tables, sample, region, group, out);
      } else if (lanes == 4) {
        merge_row<Real, 4, kReduce>(in, units, reduce, tables, sample, region, group, out);
      } else {
        merge_row<Real, 1, kReduce>(in, units, reduce, tables, sample, region, group, out);
      }
    }
  }
}

template <class Real>
void merge(const RegionLabels& in, RegionReduce reduce, const RegionUnits& units, const void* memory,
           const RegionResults& results, int64_t begin, int64_t end) {
  const auto* tables = static_cast<const char*>(memory);
  const auto real = [](void* array) { return static_cast<Real*>(array); };
  const Outputs<Real> out{real(results.mean),
                          real(results.variance),
                          {real(results.minimum), real(results.maximum)},
                          results.count,
                          {results.argmin, results.argmax}};
  switch (reduce) {
    case RegionReduce::kSum:
    case RegionReduce::kMean:
      return merge_rows<Real, RegionReduce::kMean>(in, units, reduce, tables, begin, end, out);
    case RegionReduce::kVariance:
      return merge_rows<Real, RegionReduce::kVariance>(in, units, reduce, tables, begin, end, out);
    case RegionReduce::kMin:
      return merge_rows<Real, RegionReduce::kMin>(in, units, reduce, tables, begin, end, out);
    case RegionReduce::kMax:
      return merge_rows<Real, RegionReduce::kMax>(in, units, reduce, tables, begin, end, out);
    case RegionReduce::kStats:
      return merge_rows<Real, RegionReduce::kStats>(in, units, reduce, tables, begin, end, out);
  }
}

}  // namespace

RegionUnits region_pool_units_cpu(const RegionLabels& in, const RegionFeatures& features,
                                  RegionReduce reduce) {
  RegionUnits units{};
  units.groups = in.channels_last ? std::min<int64_t>(groups_of(in), 1) : groups_of(in);
  units.partitions = region_partitions(in, in.batch * units.groups, kUnits, kFewestVoxels, kVoxelsPerRow);
  const int64_t per_partition = (in.voxels + units.partitions - 1) / units.partitions;
  units.partition_voxels = (per_partition + kTile - 1) / kTile * kTile;
  units.units = in.batch * units.partitions * units.groups;
  const bool wide = features.kind == ScalarKind::kFloat64;
  const int lanes = in.channels_last ? kLanes : lanes_of_group(in.channels, 0);
  const size_t row = wide ? row_bytes<double>(reduce, lanes) : row_bytes<float>(reduce, lanes);
  const int64_t groups_in_unit = in.channels_last ? groups_of(in) : 1;
  units.unit_bytes = counts_bytes(in) + (row * (in.num_regions + 1) * groups_in_unit + 63) / 64 * 64;
  return units;
}

void region_pool_cpu(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce,
                     const RegionUnits& units, int64_t begin, int64_t end, void* tables) {
  switch (reduce) {
    case RegionReduce::kSum:
    case RegionReduce::kMean:
      return pool_mean(in, features, units, begin, end, tables);
    case RegionReduce::kVariance:
      return pool_variance(in, features, units, begin, end, tables);
    case RegionReduce::kMin:
      return pool_minimum(in, features, units, begin, end, tables);
    case RegionReduce::kMax:
      return pool_maximum(in, features, units, begin, end, tables);
    case RegionReduce::kStats:
      return pool_stats(in, features, units, begin, end, tables);
  }
}

void region_pool_merge_cpu(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce,
                           const RegionUnits& units, const void* tables, const RegionResults& results,
                           int64_t begin, int64_t end) {
  if (features.kind == ScalarKind::kFloat64) {
    merge<double>(in, reduce, units, tables, results, begin, end);
  } else {
    merge<float>(in, reduce, units, tables, results, begin, end);
  }
}

}  // namespace fastseg
