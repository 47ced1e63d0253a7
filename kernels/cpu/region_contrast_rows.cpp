// SPDX-License-Identifier: BSD-3-Clause
// region_contrast on the CPU, what is done once per row: lengths, losses, gradients; see
// ../region_contrast.h.
#include <cmath>
#include <limits>

#include "../cpu_utils.h"
#include "../region_contrast.h"

namespace fastseg {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Rows with a square length below this are the zero vector to "cosine": similarity 0 to all, gradient 0.
constexpr double kShortestSquare = 1e-24;

// log(1 + exp(x)), all digits however small it is.
double softplus(double x) { return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

// The loss, less log(positives) where they are in the denominator. With a single positive among the
// denominator it is softplus(log-sum-exp of the negatives - z of the positive): nothing cancels where the
// positive is sure.
template <class Real>
double excess_of(const ContrastSums<Real>& sums, int64_t positives, bool all) {
  const double shift = sums.shift, mean = sums.positive_z / double(positives);
  if (!all) return sums.negatives == 0 ? -kInfinity : shift - mean + std::log(sums.negatives);
  if (positives == 1) {
    return sums.negatives == 0 ? 0.0 : softplus(shift - mean + std::log(sums.negatives));
  }
  return shift - mean + std::log((sums.negatives + sums.positives) / double(positives));
}

template <class Real>
FASTSEG_ALWAYS_INLINE void finish_gradient(ContrastSimilarity similarity, const Real* rows, const Real* scale,
                                           const Real* totals, int64_t size, int64_t begin, int64_t end,
                                           Real* gradient) {
  for (int64_t i = begin; i < end; ++i) {
    const Real* row = rows + i * size;
    Real* result = gradient + i * size;
    Real along = totals ? totals[i] : Real(0);
    if (similarity == ContrastSimilarity::kCosine) {  // the part along the row changes no angle
      Real product = 0;
#pragma omp simd reduction(+ : product)
      for (int64_t d = 0; d < size; ++d) product += row[d] * result[d];
      along = product * scale[i] * scale[i];
    }
#pragma omp simd
    for (int64_t d = 0; d < size; ++d) result[d] -= along * row[d];
  }
}

FASTSEG_CPU_CLONES void finish_gradient_float(ContrastSimilarity similarity, const float* rows,
                                              const float* scale, const float* totals, int64_t size,
                                              int64_t begin, int64_t end, float* gradient) {
  finish_gradient<float>(similarity, rows, scale, totals, size, begin, end, gradient);
}

}  // namespace

template <class Real>
double contrast_finish_rows_cpu(const ContrastSums<Real>* sums, const int64_t* positives, double temperature,
                                ContrastDenominator denominator, int64_t begin, int64_t end, Real* loss,
                                Real* stats, int64_t stride, int64_t* count) {
  const bool all = denominator == ContrastDenominator::kAll;
  double total = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t found = positives[i];
    double mean = 0, excess = -kInfinity, tilt = 0, log_sum = 0;
    if (found > 0) {
      mean = sums[i].positive_z / double(found);
      excess = excess_of(sums[i], found, all);
    }
    const bool counts = excess != -kInfinity;
    if (counts) {
      const double weight = sums[i].negatives + (all ? sums[i].positives : 0);
      tilt = weight == 0 ? 0 : ((mean - sums[i].shift) - sums[i].tilt / weight) / temperature;
      log_sum = sums[i].shift + std::log(weight);
      loss[i] = Real(excess + (all ? std::log(double(found)) : 0));
      total += loss[i];
      ++*count;
    } else {
      loss[i] = Real(0);
    }
    stats[kContrastPositives * stride + i] = Real(found);
    stats[kContrastMean * stride + i] = Real(mean);
    stats[kContrastExcess * stride + i] = Real(excess);
    stats[kContrastTilt * stride + i] = Real(tilt);
    stats[kContrastLogSum * stride + i] = Real(log_sum);
    stats[kContrastRest * stride + i] = Real(log_sum - double(Real(log_sum)));
  }
  return total;
}

template <class Real>
void contrast_prepare_upstream_cpu(const Real* stats, int64_t stride, const Real* grad, int64_t grad_stride,
                                   double grad_scale, ContrastDenominator denominator, int64_t begin,
                                   int64_t end, const ContrastUpstream<Real>& upstream) {
  const bool all = denominator == ContrastDenominator::kAll;
  for (int64_t i = begin; i < end; ++i) {
    const double positives = stats[kContrastPositives * stride + i];
    const double excess = stats[kContrastExcess * stride + i];
    const bool counts = excess != -kInfinity;
    const double g = counts ? double(grad[i * grad_stride]) * grad_scale : 0.0;
    const double scale = g * std::exp(-double(stats[kContrastRest * stride + i]));
    const bool single = all && positives == 1;
    upstream.log_sum[i] = stats[kContrastLogSum * stride + i];
    upstream.neg_scale[i] = counts ? Real(scale) : Real(0);
    upstream.pos_scale[i] = counts && all && !single ? Real(scale) : Real(0);
    upstream.pos_offset[i] = !counts  ? Real(0)
                             : single ? Real(g * std::expm1(-excess))
                                      : Real(-g / positives);
  }
}

template <class Real>
void contrast_finish_gradient_cpu(ContrastSimilarity similarity, const Real* rows, const Real* scale,
                                  const Real* totals, int64_t size, int64_t begin, int64_t end,
                                  Real* gradient) {
  if (similarity == ContrastSimilarity::kDot) return;
  if constexpr (sizeof(Real) == sizeof(float)) {
    finish_gradient_float(similarity, rows, scale, totals, size, begin, end, gradient);
  } else {
    finish_gradient<Real>(similarity, rows, scale, totals, size, begin, end, gradient);
  }
}

template <class Real>
void contrast_pack_rows_cpu(const void* from, ScalarKind kind, const int64_t* kept, int64_t size,
                            int64_t begin, int64_t end, Real* rows) {
  for (int64_t k = begin; k < end; ++k) {
    read_values(from, kind, kept[k] * size, int(size), rows + k * size);
  }
}

template <class Real>
void contrast_unpack_rows_cpu(const Real* rows, const int64_t* kept, int64_t size, int64_t begin, int64_t end,
                              ScalarKind kind, void* to) {
  for (int64_t k = begin; k < end; ++k) {
    write_values(rows + k * size, kind, kept[k] * size, int(size), to);
  }
}

template <class Real>
void contrast_measure_rows_cpu(ContrastSimilarity similarity, const Real* rows, int64_t size,
                               double temperature, int64_t begin, int64_t end, Real* scale, Real* offset) {
  for (int64_t i = begin; i < end; ++i) {
    const Real* row = rows + i * size;
    double square = 0;
    if (similarity != ContrastSimilarity::kDot) {
#pragma omp simd reduction(+ : square)
      for (int64_t d = 0; d < size; ++d) square += double(row[d]) * double(row[d]);
    }
    scale[i] = Real(1);
    offset[i] = Real(0);
    if (similarity == ContrastSimilarity::kCosine) {
      scale[i] = square < kShortestSquare ? Real(0) : Real(1 / std::sqrt(square));
    } else if (similarity == ContrastSimilarity::kNegMse) {
      offset[i] = Real(-square / (double(size) * temperature));
    }
  }
}

#define FASTSEG_INSTANTIATE(Real)                                                                            \
  template double contrast_finish_rows_cpu(const ContrastSums<Real>*, const int64_t*, double,                \
                                           ContrastDenominator, int64_t, int64_t, Real*, Real*, int64_t,     \
                                           int64_t*);                                                        \
  template void contrast_prepare_upstream_cpu(const Real*, int64_t, const Real*, int64_t, double,            \
                                              ContrastDenominator, int64_t, int64_t,                         \
                                              const ContrastUpstream<Real>&);                                \
  template void contrast_finish_gradient_cpu(ContrastSimilarity, const Real*, const Real*, const Real*,      \
                                             int64_t, int64_t, int64_t, Real*);                              \
  template void contrast_pack_rows_cpu(const void*, ScalarKind, const int64_t*, int64_t, int64_t, int64_t,   \
                                       Real*);                                                               \
  template void contrast_unpack_rows_cpu(const Real*, const int64_t*, int64_t, int64_t, int64_t, ScalarKind, \
                                         void*);                                                             \
  template void contrast_measure_rows_cpu(ContrastSimilarity, const Real*, int64_t, double, int64_t,         \
                                          int64_t, Real*, Real*);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)

}  // namespace fastseg
