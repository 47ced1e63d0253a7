// SPDX-License-Identifier: BSD-3-Clause
// region_contrast on the CPU, backward: a tile of products turns into coefficients of the next
// multiplication.
#include "../elementary.h"
#include "region_contrast_tile.h"

namespace fastseg {
namespace {

// Coefficients of one row. A positive's exponential is capped, as it may lie far above its denominator where
// that holds the negatives alone, and is then multiplied by 0.
template <class Real, bool kBoth>
FASTSEG_ALWAYS_INLINE Real row_coefficients(Real* values, int begin, int end, int64_t i, Real factor,
                                            Real offset, int32_t id, int32_t group,
                                            const ContrastSide<Real>& to,
                                            const ContrastUpstream<Real>& of_rows,
                                            const ContrastUpstream<Real>& of_candidates, Real* col_totals) {
  const Real log_sum = of_rows.log_sum[i], pos_scale = of_rows.pos_scale[i];
  const Real pos_offset = of_rows.pos_offset[i], neg_scale = of_rows.neg_scale[i];
  Real total = 0;
#pragma omp simd reduction(+ : total)
  for (int j = begin; j < end; ++j) {
    const Real slope = factor * to.scale[j];
    const Real z = values[j] * slope + (offset + to.offset[j]);
    const bool positive = to.ids[j] == id;
    const bool negative = (to.groups[j] == group) & !positive;
    const Real below = log_sum - z;
    const Real e = exp_negative(below < Real(0) ? Real(0) : below);
    Real for_positive = pos_scale * e + pos_offset, for_negative = neg_scale * e;
    if (kBoth) {
      const Real below_too = of_candidates.log_sum[j] - z;
      const Real f = exp_negative(below_too < Real(0) ? Real(0) : below_too);
      for_positive += of_candidates.pos_scale[j] * f + of_candidates.pos_offset[j];
      for_negative += of_candidates.neg_scale[j] * f;
    }
    const Real slope_of_loss = positive ? for_positive : negative ? for_negative : Real(0);
    const Real coefficient = slope_of_loss * slope;
    values[j] = coefficient;
    total += coefficient;
    if (col_totals) col_totals[j] += coefficient;
  }
  return total;
}

template <class Real, bool kBoth>
FASTSEG_ALWAYS_INLINE void coefficients(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                                        const ContrastSide<Real>& candidates, Real factor,
                                        const ContrastUpstream<Real>& of_rows,
                                        const ContrastUpstream<Real>& of_candidates, Real* row_totals,
                                        Real* col_totals) {
  const ContrastSide<Real> to = side_of_tile(tile, candidates);
  const int width = int(tile.col_end - tile.col_begin);
  for (int64_t i = tile.row_begin; i < tile.row_end; ++i) {
    Real* values = tile.values + (i - tile.row_begin) * width;
    const Stretches parts = stretches_of(tile, i);
    if (parts.count == 2) values[parts.end[0]] = Real(0);
    Real total = 0;
    for (int part = 0; part < parts.count; ++part) {
      total += row_coefficients<Real, kBoth>(values, parts.begin[part], parts.end[part], i,
                                             factor * rows.scale[i], rows.offset[i], rows.ids[i],
                                             rows.groups[i], to, of_rows, of_candidates, col_totals);
    }
    if (row_totals) row_totals[i] += total;
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void coefficients(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                                        const ContrastSide<Real>& candidates, Real factor,
                                        const ContrastUpstream<Real>& of_rows,
                                        const ContrastUpstream<Real>* of_candidates, Real* row_totals,
                                        Real* col_totals) {
  if (col_totals) col_totals += tile.col_begin;
  if (!of_candidates) {
    coefficients<Real, false>(tile, rows, candidates, factor, of_rows, {}, row_totals, col_totals);
    return;
  }
  const int64_t at = tile.col_begin;
  const ContrastUpstream<Real> shifted{of_candidates->log_sum + at, of_candidates->pos_scale + at,
                                       of_candidates->pos_offset + at, of_candidates->neg_scale + at};
  coefficients<Real, true>(tile, rows, candidates, factor, of_rows, shifted, row_totals, col_totals);
}

FASTSEG_CPU_CLONES void coefficients_float(const ContrastTile<float>& tile, const ContrastSide<float>& rows,
                                           const ContrastSide<float>& candidates, float factor,
                                           const ContrastUpstream<float>& of_rows,
                                           const ContrastUpstream<float>* of_candidates, float* row_totals,
                                           float* col_totals) {
  coefficients<float>(tile, rows, candidates, factor, of_rows, of_candidates, row_totals, col_totals);
}

}  // namespace

template <class Real>
void contrast_coefficients_cpu(const ContrastTile<Real>& tile, const ContrastSide<Real>& rows,
                               const ContrastSide<Real>& candidates, Real factor,
                               const ContrastUpstream<Real>& of_rows,
                               const ContrastUpstream<Real>* of_candidates, Real* row_totals,
                               Real* col_totals) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    coefficients_float(tile, rows, candidates, factor, of_rows, of_candidates, row_totals, col_totals);
  } else {
    coefficients<Real>(tile, rows, candidates, factor, of_rows, of_candidates, row_totals, col_totals);
  }
}

#define FASTSEG_INSTANTIATE(Real)                                                                         \
  template void contrast_coefficients_cpu(const ContrastTile<Real>&, const ContrastSide<Real>&,           \
                                          const ContrastSide<Real>&, Real, const ContrastUpstream<Real>&, \
                                          const ContrastUpstream<Real>*, Real*, Real*);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)

}  // namespace fastseg
