// SPDX-License-Identifier: BSD-3-Clause
// What soft region_pool on the CPU works on: tiles of voxels whose weights and features are rows, one per
// part or channel, in the caches; and products of such tiles, 4 x 4 vectors at a time in registers.
#pragma once

#include <algorithm>
#include <cmath>

#include "../cpu_utils.h"
#include "../elementary.h"
#include "../region_pool_soft.h"

namespace fastseg {
namespace {

constexpr int kStep = 64;  // tiles are whole multiples of it: four vectors of 16 float32

template <class Real>
constexpr ScalarKind kKindOf = sizeof(Real) == sizeof(double) ? ScalarKind::kFloat64 : ScalarKind::kFloat32;

#if defined(__GNUC__)
template <class Real>
struct VectorOf {
  using type [[gnu::vector_size(64), gnu::aligned(sizeof(Real)), gnu::may_alias]] = Real;
};
#endif
template <class Real>
using Vector = typename VectorOf<Real>::type;
template <class Real>
constexpr int kLanes = 64 / sizeof(Real);

inline int64_t padded(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Row j of voxels [begin, begin + count) of a sample; what follows up to `length` is 0.
template <class Real>
FASTSEG_ALWAYS_INLINE void read_row(const SoftMap& map, int64_t voxels, int64_t sample, int64_t j,
                                    int64_t begin, int count, int length, Real* out) {
  if (!map.last) {
    read_values(map.values, map.kind, (sample * map.rows + j) * voxels + begin, count, out);
  } else {
    const int64_t first = (sample * voxels + begin) * map.rows + j;
    for (int v = 0; v < count; ++v) read_values(map.values, map.kind, first + v * map.rows, 1, out + v);
  }
  for (int v = count; v < length; ++v) out[v] = Real(0);
}

template <class Real>
FASTSEG_ALWAYS_INLINE void write_row(const SoftMap& map, int64_t voxels, int64_t sample, int64_t j,
                                     int64_t begin, int count, const Real* from, void* out) {
  if (!map.last) {
    write_values(from, map.kind, (sample * map.rows + j) * voxels + begin, count, out);
  } else {
    const int64_t first = (sample * voxels + begin) * map.rows + j;
    for (int v = 0; v < count; ++v) write_values(from + v, map.kind, first + v * map.rows, 1, out);
  }
}

// The row where it lies if it is Real, whole and channels first, else a copy of it.
template <class Real>
FASTSEG_ALWAYS_INLINE const Real* row_of(const SoftMap& map, int64_t voxels, int64_t sample, int64_t j,
                                         int64_t begin, int count, int length, Real* buffer) {
  if (!map.last && count == length && map.kind == kKindOf<Real>) {
    return static_cast<const Real*>(map.values) + (sample * map.rows + j) * voxels + begin;
  }
  read_row(map, voxels, sample, j, begin, count, length, buffer);
  return buffer;
}

// Channels count on from the features to the grey image.
FASTSEG_ALWAYS_INLINE const SoftMap& map_of(const SoftInputs& in, int64_t& channel) {
  if (channel < in.features.rows) return in.features;
  channel -= in.features.rows;
  return in.grey;
}

// Pointers to the weights A of a tile, row by row, to a whole number of four rows; weights beyond the last
// voxel and rows beyond the last part are 0. `memory` holds padded(parts, 4) + 2 rows.
template <class Real>
FASTSEG_ALWAYS_INLINE void load_weights(const SoftInputs& in, int64_t sample, int64_t begin, int count,
                                        int length, Real* memory, const Real** rows) {
  const int64_t parts = in.parts, all = padded(parts, 4);
  for (int64_t k = 0; k < all; ++k) {
    Real* buffer = memory + k * length;
    if (k >= parts) {
      std::fill_n(buffer, length, Real(0));
      rows[k] = buffer;
    } else {
      rows[k] = row_of(in.assignment, in.voxels, sample, k, begin, count, length, buffer);
    }
  }
  if (!in.from_logits) return;
  Real *largest = memory + all * length, *sum = largest + length;
  std::copy_n(rows[0], length, largest);
  for (int64_t k = 1; k < parts; ++k) {
    for (int v = 0; v < length; ++v) largest[v] = rows[k][v] > largest[v] ? rows[k][v] : largest[v];
  }
  std::fill_n(sum, length, Real(0));
  for (int64_t k = 0; k < parts; ++k) {
    Real* weights = memory + k * length;
    const Real* logits = rows[k];
    for (int v = 0; v < length; ++v) {
      weights[v] = exp_negative(largest[v] - logits[v]);
      sum[v] += weights[v];
    }
    rows[k] = weights;
  }
  for (int v = 0; v < length; ++v) sum[v] = v < count ? Real(1) / sum[v] : Real(0);
  for (int64_t k = 0; k < parts; ++k) {
    Real* weights = memory + k * length;
    for (int v = 0; v < length; ++v) weights[v] *= sum[v];
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE Real sum_of_lanes(const Vector<Real>& vector) {
  Real lanes[kLanes<Real>];
  std::memcpy(lanes, &vector, sizeof lanes);
  for (int width = kLanes<Real> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// out[i][j] = sum over the voxels of left[i] * right[j].
template <class Real>
FASTSEG_ALWAYS_INLINE void inner_products(const Real* const* left, const Real* const* right, int length,
                                          Real (&out)[4][4]) {
  Vector<Real> sums[4][4] = {};
  for (int v = 0; v < length; v += kLanes<Real>) {
    Vector<Real> l[4], r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      l[i] = *reinterpret_cast<const Vector<Real>*>(left[i] + v);
      r[i] = *reinterpret_cast<const Vector<Real>*>(right[i] + v);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sums[i][j] += l[i] * r[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) out[i][j] = sum_of_lanes<Real>(sums[i][j]);
  }
}

// out[i] = start[i] + sum over j of factors[j * 4 + i] * rows[j], for four rows of `length` voxels.
template <class Real>
FASTSEG_ALWAYS_INLINE void combine_rows(const Real* factors, const Real* const* rows, int64_t count,
                                        const Real* start, int length, Real* const (&out)[4]) {
  for (int v = 0; v < length; v += 4 * kLanes<Real>) {
    Vector<Real> sums[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) sums[i][n] = Vector<Real>{} + start[i];
    }
    for (int64_t j = 0; j < count; ++j) {
      Vector<Real> row[4];
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        row[n] = *reinterpret_cast<const Vector<Real>*>(rows[j] + v + n * kLanes<Real>);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) sums[i][n] += factors[j * 4 + i] * row[n];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        *reinterpret_cast<Vector<Real>*>(out[i] + v + n * kLanes<Real>) = sums[i][n];
      }
    }
  }
}

}  // namespace
}  // namespace fastseg
