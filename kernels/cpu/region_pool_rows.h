// SPDX-License-Identifier: BSD-3-Clause
// The rows of the tables in which the CPU kernels of region_pool gather what a region's voxels hold: the
// parts a row is made of, how a run of voxels goes in, and how the rows of several tables become one.
#pragma once

#include <type_traits>

#include "region_pool_tiles.h"

namespace fastseg {
namespace {

template <class Real, int kWidth>
struct Totals {
  int64_t count;
  double sum[kWidth], squares[kWidth];
  Real extreme[2][kWidth];  // minimum, maximum
  int64_t argument[2][kWidth];
};

// Parts of a row. add_run takes in `length` voxels, the first with index `first`, after `before` others;
// merge_into what a range of `count` voxels that begins at `start` holds, ranges in ascending order.
template <class Real, int kWidth>
struct SumPart {
  double sum[kWidth];

  FASTSEG_ALWAYS_INLINE void clear() {
    for (int lane = 0; lane < kWidth; ++lane) sum[lane] = 0;
  }
  FASTSEG_ALWAYS_INLINE void add_run(const Real* rows, int64_t stride, int length, int, int64_t) {
    double run[kWidth];
    for (int lane = 0; lane < kWidth; ++lane) run[lane] = double(rows[lane]);
    for (int v = 1; v < length; ++v) {
      for (int lane = 0; lane < kWidth; ++lane) run[lane] += double(rows[v * stride + lane]);
    }
    for (int lane = 0; lane < kWidth; ++lane) sum[lane] += run[lane];
  }
  FASTSEG_ALWAYS_INLINE void merge_into(Totals<Real, kWidth>& totals, int64_t, int64_t) const {
    for (int lane = 0; lane < kWidth; ++lane) totals.sum[lane] += sum[lane];
  }
};

// Chan, Golub, LeVeque 1983: squares of a and b together are theirs + (mean_b - mean_a)^2 n_a n_b / (n_a +
// n_b).
FASTSEG_ALWAYS_INLINE double merged_squares(double sum, double squares, double mean_b, double squares_b,
                                            double inverse, double factor) {
  const double difference = mean_b - sum * inverse;
  return squares + squares_b + difference * difference * factor;
}

// Sum, and sum of squared distances from the mean. Without the pragmas GCC unrolls the lanes first, finds no
// vectors in them then, and takes twice as long.
template <class Real, int kWidth>
struct MomentPart {
  double sum[kWidth], squares[kWidth];

  FASTSEG_ALWAYS_INLINE void clear() {
    for (int lane = 0; lane < kWidth; ++lane) sum[lane] = squares[lane] = 0;
  }
  FASTSEG_ALWAYS_INLINE void add_run(const Real* rows, int64_t stride, int length, int, int64_t before) {
    double run[kWidth], distance[kWidth], square[kWidth];  // distances from the first value of the run
#pragma omp simd
    for (int lane = 0; lane < kWidth; ++lane) {
      run[lane] = double(rows[lane]);
      distance[lane] = square[lane] = 0;
    }
    for (int v = 1; v < length; ++v) {
#pragma omp simd
      for (int lane = 0; lane < kWidth; ++lane) {
        const double value = double(rows[v * stride + lane]);
        const double from_first = value - double(rows[lane]);
        run[lane] += value;
        distance[lane] += from_first;
        square[lane] += from_first * from_first;
      }
    }
    const double inverse = before > 0 ? 1 / double(before) : 0, inverse_length = 1 / double(length);
    const double factor = before > 0 ? double(before) * length / double(before + length) : 0;
#pragma omp simd
    for (int lane = 0; lane < kWidth; ++lane) {
      const double mean = double(rows[lane]) + distance[lane] * inverse_length;
      const double own = square[lane] - distance[lane] * distance[lane] * inverse_length;
      squares[lane] = merged_squares(sum[lane], squares[lane], mean, own, inverse, factor);
      sum[lane] += run[lane];
    }
  }
  FASTSEG_ALWAYS_INLINE void merge_into(Totals<Real, kWidth>& totals, int64_t count, int64_t) const {
    const double n_a = double(totals.count), n_b = double(count);
    if (count == 0) return;
    const double inverse = n_a > 0 ? 1 / n_a : 0, factor = n_a * n_b / (n_a + n_b);
    for (int lane = 0; lane < kWidth; ++lane) {
      totals.squares[lane] = merged_squares(totals.sum[lane], totals.squares[lane], sum[lane] / n_b,
                                            squares[lane], inverse, factor);
      totals.sum[lane] += sum[lane];
    }
  }
};

// A NaN beats every number and is not beaten; of equals the first stays.
template <bool kMaximum, class Real>
FASTSEG_ALWAYS_INLINE bool beats(Real value, Real other) {
  return (kMaximum ? value > other : value < other) | ((value != value) & (other == other));
}

template <class Real, int kWidth, bool kMaximum>
struct ExtremePart {
  using Index = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;  // as wide as Real, to vectorise
  Real extreme[kWidth];
  Index argument[kWidth];  // from the begin of the range; -1: none yet

  FASTSEG_ALWAYS_INLINE void clear() {
    for (int lane = 0; lane < kWidth; ++lane) {
      extreme[lane] = 0;
      argument[lane] = -1;
    }
  }
  FASTSEG_ALWAYS_INLINE void add_run(const Real* rows, int64_t stride, int length, int first, int64_t) {
    for (int v = 0; v < length; ++v) {
      for (int lane = 0; lane < kWidth; ++lane) {
        const Real value = rows[v * stride + lane];
        const bool taken = (argument[lane] < 0) | beats<kMaximum>(value, extreme[lane]);
        extreme[lane] = taken ? value : extreme[lane];
        argument[lane] = taken ? Index(first + v) : argument[lane];
      }
    }
  }
  FASTSEG_ALWAYS_INLINE void merge_into(Totals<Real, kWidth>& totals, int64_t, int64_t start) const {
    auto& best = totals.extreme[kMaximum];
    auto& where = totals.argument[kMaximum];
    for (int lane = 0; lane < kWidth; ++lane) {
      if (argument[lane] < 0) continue;
      if (where[lane] >= 0 && !beats<kMaximum>(extreme[lane], best[lane])) continue;
      best[lane] = extreme[lane];
      where[lane] = start + argument[lane];
    }
  }
};

template <class... Parts>
struct RowOf : Parts... {
  FASTSEG_ALWAYS_INLINE void clear() { (Parts::clear(), ...); }
  template <class... A>
  FASTSEG_ALWAYS_INLINE void add_run(A... arguments) {
    (Parts::add_run(arguments...), ...);
  }
  template <class Totals, class... A>
  FASTSEG_ALWAYS_INLINE void merge_into(Totals& totals, A... arguments) const {
    (Parts::merge_into(totals, arguments...), ...);
  }
};

template <class Real, int kWidth, RegionReduce kReduce>
auto row_of() {
  if constexpr (kReduce == RegionReduce::kVariance)
    return RowOf<MomentPart<Real, kWidth>>{};
  else if constexpr (kReduce == RegionReduce::kMin)
    return RowOf<ExtremePart<Real, kWidth, false>>{};
  else if constexpr (kReduce == RegionReduce::kMax)
    return RowOf<ExtremePart<Real, kWidth, true>>{};
  else if constexpr (kReduce == RegionReduce::kStats)
    return RowOf<MomentPart<Real, kWidth>, ExtremePart<Real, kWidth, false>,
                 ExtremePart<Real, kWidth, true>>{};
  else
    return RowOf<SumPart<Real, kWidth>>{};
}
template <class Real, int kWidth, RegionReduce kReduce>
using Row = decltype(row_of<Real, kWidth, kReduce>());

// A table: the count of every region, then, group after group, a row per region. One row more than there are
// regions takes the voxels that count nowhere.
inline size_t counts_bytes(const RegionLabels& in) { return (size_t(in.num_regions + 1) * 8 + 63) / 64 * 64; }

inline int64_t groups_of(const RegionLabels& in) { return (in.channels + kLanes - 1) / kLanes; }

template <class Real, int kWidth, RegionReduce kReduce>
constexpr size_t kRowBytes = sizeof(Row<Real, kWidth, kReduce>);

template <class Real>
size_t row_bytes(RegionReduce reduce, int lanes) {
  const size_t per_lane = reduce == RegionReduce::kVariance ? kRowBytes<Real, 1, RegionReduce::kVariance>
                          : reduce == RegionReduce::kMin || reduce == RegionReduce::kMax
                              ? kRowBytes<Real, 1, RegionReduce::kMin>
                          : reduce == RegionReduce::kStats ? kRowBytes<Real, 1, RegionReduce::kStats>
                                                           : kRowBytes<Real, 1, RegionReduce::kMean>;
  return per_lane * lanes;
}

// Where the rows of a group lie in the table of its unit; channels last, one unit has all groups.
template <class Real>
size_t group_offset(const RegionLabels& in, RegionReduce reduce, int64_t group) {
  const size_t per_group = row_bytes<Real>(reduce, kLanes) * (in.num_regions + 1);
  return counts_bytes(in) + (in.channels_last ? group * per_group : 0);
}

}  // namespace
}  // namespace fastseg
