// SPDX-License-Identifier: BSD-3-Clause
// region_contrast on the CPU: the products of a few rows, for which calling a library of matrices would cost
// more than the products.
#include "../cpu_utils.h"
#include "../region_contrast.h"

namespace fastseg {

template <class Real>
void contrast_products_cpu(const Real* left, const Real* right, int64_t rows, int64_t cols, int64_t size,
                           Real* products) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const Real *one = left + i * size, *other = right + j * size;
      Real sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < size; ++d) sum += one[d] * other[d];
      products[i * cols + j] = sum;
    }
  }
}

template <class Real>
void contrast_weighted_sums_cpu(const Real* coefficients, int64_t rows, int64_t cols, bool transposed,
                                const Real* right, int64_t size, Real* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const Real coefficient = coefficients[i * cols + j];
      const Real* from = right + (transposed ? i : j) * size;
      Real* to = sums + (transposed ? j : i) * size;
#pragma omp simd
      for (int64_t d = 0; d < size; ++d) to[d] += coefficient * from[d];
    }
  }
}

#define FASTSEG_INSTANTIATE(Real)                                                                  \
  template void contrast_products_cpu(const Real*, const Real*, int64_t, int64_t, int64_t, Real*); \
  template void contrast_weighted_sums_cpu(const Real*, int64_t, int64_t, bool, const Real*, int64_t, Real*);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)

}  // namespace fastseg
