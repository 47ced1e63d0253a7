// SPDX-License-Identifier: BSD-3-Clause
// How the CPU kernels of region_pool walk over the voxels: in tiles short enough for the first-level cache,
// whose labels become row numbers and whose features become rows, one per voxel, with a group of channels
// side by side.
#pragma once

#include <algorithm>

#include "../cpu_utils.h"
#include "../region_pool.h"

namespace fastseg {
namespace {

constexpr int kTile = 256;    // voxels; with kLanes float32 channels 8 KiB
constexpr int kLanes = 8;     // channels that move together: one cache line of float64 sums
constexpr int kRows = 16384;  // channels last: at most this many elements in a tile

template <class Real>
constexpr ScalarKind kKindOf = sizeof(Real) == sizeof(double) ? ScalarKind::kFloat64 : ScalarKind::kFloat32;

inline size_t bytes_of(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kUint8:
      return 1;
    case ScalarKind::kFloat64:
      return 8;
    case ScalarKind::kFloat32:
      return 4;
    default:
      return 2;
  }
}

// Compared in their own width, unsigned: a negative id is as far out of range as one that is too large.
template <class Wide, class Id>
FASTSEG_ALWAYS_INLINE void decode_ids(const void* regions, int64_t begin, int count, uint32_t num_regions,
                                      uint32_t* rows) {
  const Id* ids = static_cast<const Id*>(regions) + begin;
  for (int i = 0; i < count; ++i) {
    const Wide id = Wide(ids[i]);
    rows[i] = id < num_regions ? uint32_t(id) : num_regions;
  }
}

// The row of each voxel; num_regions for those that take no part.
FASTSEG_ALWAYS_INLINE void decode_labels(const RegionLabels& in, int64_t begin, int count, uint32_t* rows) {
  const uint32_t num_regions = uint32_t(in.num_regions);
  switch (in.label_kind) {
    case LabelKind::kUint8:
      return decode_ids<uint32_t, uint8_t>(in.regions, begin, count, num_regions, rows);
    case LabelKind::kInt8:
      return decode_ids<uint32_t, int8_t>(in.regions, begin, count, num_regions, rows);
    case LabelKind::kUint16:
      return decode_ids<uint32_t, uint16_t>(in.regions, begin, count, num_regions, rows);
    case LabelKind::kInt16:
      return decode_ids<uint32_t, int16_t>(in.regions, begin, count, num_regions, rows);
    case LabelKind::kUint32:
      return decode_ids<uint32_t, uint32_t>(in.regions, begin, count, num_regions, rows);
    case LabelKind::kInt32:
      return decode_ids<uint32_t, int32_t>(in.regions, begin, count, num_regions, rows);
    case LabelKind::kUint64:
      return decode_ids<uint64_t, uint64_t>(in.regions, begin, count, num_regions, rows);
    case LabelKind::kInt64:
      return decode_ids<uint64_t, int64_t>(in.regions, begin, count, num_regions, rows);
  }
}

// Channels are taken in groups of kLanes while more than four are left, then four, or the last one alone.
// Lanes beyond the last channel repeat it and are dropped in the end.
FASTSEG_ALWAYS_INLINE int lanes_of_group(int64_t channels, int64_t group) {
  const int64_t left = channels - group * kLanes;
  return left > 4 ? kLanes : left > 1 ? 4 : 1;
}

#if defined(__GNUC__)
using Lanes8 [[gnu::vector_size(32), gnu::aligned(4), gnu::may_alias]] = float;

// to[j][i] = from[i][j] for 8 x 8 values: pairs, then pairs of pairs, then halves change places.
FASTSEG_ALWAYS_INLINE void transpose_8x8(const float* const (&from)[8], float* const (&to)[8]) {
  Lanes8 r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = *reinterpret_cast<const Lanes8*>(from[i]);
  for (int i = 0; i < 8; i += 2) {
    s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = __builtin_shufflevector(s[i], s[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 1] = __builtin_shufflevector(s[i], s[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    r[i + 2] = __builtin_shufflevector(s[i + 1], s[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 3] = __builtin_shufflevector(s[i + 1], s[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    *reinterpret_cast<Lanes8*>(to[i]) = __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    *reinterpret_cast<Lanes8*>(to[i + 4]) =
        __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#endif

// rows[v * kWidth + lane] = channel[lane][v].
template <class Real, int kWidth>
FASTSEG_ALWAYS_INLINE void make_rows(const Real* const (&channel)[kWidth], int count, Real* rows) {
  int v = 0;
#if defined(__GNUC__)
  if constexpr (kWidth == 8 && sizeof(Real) == sizeof(float)) {
    for (; v + 8 <= count; v += 8) {
      const float* from[8];
      float* to[8];
      for (int i = 0; i < 8; ++i) {
        from[i] = channel[i] + v;
        to[i] = rows + (v + i) * 8;
      }
      transpose_8x8(from, to);
    }
  }
#endif
  for (; v < count; ++v) {
    for (int lane = 0; lane < kWidth; ++lane) rows[v * kWidth + lane] = channel[lane][v];
  }
}

}  // namespace
}  // namespace fastseg
