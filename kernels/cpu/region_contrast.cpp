// SPDX-License-Identifier: BSD-3-Clause
// region_contrast on the CPU, forward: from a tile of products to sums of exponentials.
// A tile lies in the second-level cache; its loops run along the columns, so that sums over a row are
// reductions and sums over a column are arrays in the first-level cache. Two exponentials per pair and
// direction are most of the work: about 2 cycles forward and 3 backward per pair with AVX-512, against D / 16
// of the multiplication.
#include "../region_contrast.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../elementary.h"
#include "region_contrast_tile.h"

namespace fastseg {
namespace {

template <class Real>
FASTSEG_ALWAYS_INLINE Real largest(Real a, Real b) {
  return b > a ? b : a;  // NaN in b is passed over: it comes back in the sums
}

// Moves the sums to a new shift, not below the old one.
template <class Real>
FASTSEG_ALWAYS_INLINE void raise_shift(ContrastSums<Real>& sums, Real shift, bool all) {
  if (!(shift > sums.shift)) return;
  const double change = double(sums.shift) - double(shift);
  const double factor = std::exp(change);
  if (factor > 0) {  // else there was nothing, or nothing that counts beside the new one
    sums.tilt = factor * (sums.tilt + (sums.negatives + (all ? sums.positives : 0)) * change);
  } else {
    sums.tilt = 0;
  }
  sums.negatives *= factor;
  sums.positives *= factor;
  sums.shift = shift;
}

// Sums along the columns of one tile, one number per candidate.
template <class Real>
struct Columns {
  alignas(64) Real shift[kContrastBlock];
  alignas(64) Real negatives[kContrastBlock];
  alignas(64) Real positives[kContrastBlock];
  alignas(64) Real positive_z[kContrastBlock];
  alignas(64) Real tilt[kContrastBlock];
};

// Writes z and finds the largest of the denominator, of the row and of every column.
template <class Real, bool kAll, bool kBoth>
FASTSEG_ALWAYS_INLINE Real find_shifts(Real* values, int begin, int end, Real factor, Real offset, int32_t id,
                                       int32_t group, const ContrastSide<Real>& to, Real* col_shift) {
  const Real none = -std::numeric_limits<Real>::infinity();
  Real shift = none;
#pragma omp simd reduction(max : shift)
  for (int j = begin; j < end; ++j) {
    const Real z = values[j] * (factor * to.scale[j]) + (offset + to.offset[j]);
    values[j] = z;
    const bool positive = to.ids[j] == id;
    const bool negative = (to.groups[j] == group) & !positive;
    const Real counted = (negative | (kAll & positive)) ? z : none;
    shift = largest(shift, counted);
    if (kBoth) col_shift[j] = largest(col_shift[j], counted);
  }
  return shift;
}

template <class Real, bool kAll, bool kBoth, bool kTilt>
FASTSEG_ALWAYS_INLINE void add_row(const Real* values, int begin, int end, int32_t id, int32_t group,
                                   const ContrastSide<Real>& to, ContrastSums<Real>& sums,
                                   Columns<Real>& cols) {
  const Real shift = sums.shift;
  Real negatives = 0, positives = 0, positive_z = 0, tilt = 0;
#pragma omp simd reduction(+ : negatives, positives, positive_z, tilt)
  for (int j = begin; j < end; ++j) {
    const Real z = values[j];
    const bool positive = to.ids[j] == id;
    const bool negative = (to.groups[j] == group) & !positive;
    const bool counted = negative | (kAll & positive);
    const Real e = exp_negative(shift - z);
    negatives += negative ? e : Real(0);
    if (kAll) positives += positive ? e : Real(0);
    positive_z += positive ? z : Real(0);
    if (kTilt) tilt += counted ? e * (z - shift) : Real(0);
    if (kBoth) {
      const Real f = exp_negative(cols.shift[j] - z);
      cols.negatives[j] += negative ? f : Real(0);
      if (kAll) cols.positives[j] += positive ? f : Real(0);
      cols.positive_z[j] += positive ? z : Real(0);
      if (kTilt) cols.tilt[j] += counted ? f * (z - cols.shift[j]) : Real(0);
    }
  }
  sums.negatives += negatives;
  sums.positives += positives;
  sums.positive_z += positive_z;
  sums.tilt += tilt;
}

template <class Real, bool kAll, bool kBoth, bool kTilt>
FASTSEG_ALWAYS_INLINE void add_tile(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                                    const ContrastSide<Real>& to, Real factor, ContrastSums<Real>* row_sums,
                                    ContrastSums<Real>* col_sums) {
  Columns<Real> cols;
  const int width = int(tile.col_end - tile.col_begin);
  if (kBoth) {
    for (int j = 0; j < width; ++j) cols.shift[j] = col_sums[tile.col_begin + j].shift;
    for (Real* array : {cols.negatives, cols.positives, cols.positive_z, cols.tilt}) {
      std::fill_n(array, width, Real(0));
    }
  }
  for (int64_t i = tile.row_begin; i < tile.row_end; ++i) {
    Real* values = tile.values + (i - tile.row_begin) * width;
    const Stretches parts = stretches_of(tile, i);
    Real shift = row_sums[i].shift;
    for (int part = 0; part < parts.count; ++part) {
      const Real found =
          find_shifts<Real, kAll, kBoth>(values, parts.begin[part], parts.end[part], factor * rows.scale[i],
                                         rows.offset[i], rows.ids[i], rows.groups[i], to, cols.shift);
      shift = largest(shift, found);
    }
    raise_shift(row_sums[i], shift, kAll);
  }
  for (int64_t i = tile.row_begin; i < tile.row_end; ++i) {
    const Real* values = tile.values + (i - tile.row_begin) * width;
    const Stretches parts = stretches_of(tile, i);
    for (int part = 0; part < parts.count; ++part) {
      add_row<Real, kAll, kBoth, kTilt>(values, parts.begin[part], parts.end[part], rows.ids[i],
                                        rows.groups[i], to, row_sums[i], cols);
    }
  }
  if (!kBoth) return;
  for (int j = 0; j < width; ++j) {
    ContrastSums<Real>& sums = col_sums[tile.col_begin + j];
    raise_shift(sums, cols.shift[j], kAll);
    sums.negatives += cols.negatives[j];
    sums.positives += cols.positives[j];
    sums.positive_z += cols.positive_z[j];
    sums.tilt += cols.tilt[j];
  }
}

template <class Real, bool kAll>
FASTSEG_ALWAYS_INLINE void add_tile(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                                    const ContrastSide<Real>& to, Real factor, bool with_tilt,
                                    ContrastSums<Real>* row_sums, ContrastSums<Real>* col_sums) {
  if (col_sums && with_tilt) {
    add_tile<Real, kAll, true, true>(tile, rows, to, factor, row_sums, col_sums);
  } else if (col_sums) {
    add_tile<Real, kAll, true, false>(tile, rows, to, factor, row_sums, col_sums);
  } else if (with_tilt) {
    add_tile<Real, kAll, false, true>(tile, rows, to, factor, row_sums, nullptr);
  } else {
    add_tile<Real, kAll, false, false>(tile, rows, to, factor, row_sums, nullptr);
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void add_tile(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                                    const ContrastSide<Real>& candidates, Real factor, bool all,
                                    bool with_tilt, ContrastSums<Real>* row_sums,
                                    ContrastSums<Real>* col_sums) {
  const ContrastSide<Real> to = side_of_tile(tile, candidates);
  all ? add_tile<Real, true>(tile, rows, to, factor, with_tilt, row_sums, col_sums)
      : add_tile<Real, false>(tile, rows, to, factor, with_tilt, row_sums, col_sums);
}

FASTSEG_CPU_CLONES void add_tile_float(const ContrastTile<float>& tile, const ContrastSide<float>& rows,
                                       const ContrastSide<float>& candidates, float factor, bool all,
                                       bool with_tilt, ContrastSums<float>* row_sums,
                                       ContrastSums<float>* col_sums) {
  add_tile<float>(tile, rows, candidates, factor, all, with_tilt, row_sums, col_sums);
}

}  // namespace

template <class Real>
void contrast_add_tile_cpu(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                           const ContrastSide<Real>& candidates, Real factor, ContrastDenominator denominator,
                           bool with_tilt, ContrastSums<Real>* row_sums, ContrastSums<Real>* col_sums) {
  const bool all = denominator == ContrastDenominator::kAll;
  if constexpr (sizeof(Real) == sizeof(float)) {
    add_tile_float(tile, rows, candidates, factor, all, with_tilt, row_sums, col_sums);
  } else {
    add_tile<Real>(tile, rows, candidates, factor, all, with_tilt, row_sums, col_sums);
  }
}

#define FASTSEG_INSTANTIATE(Real)                                                                 \
  template void contrast_add_tile_cpu(const ContrastTile<Real>&, const ContrastSide<Real>&,       \
                                      const ContrastSide<Real>&, Real, ContrastDenominator, bool, \
                                      ContrastSums<Real>*, ContrastSums<Real>*);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)

}  // namespace fastseg
