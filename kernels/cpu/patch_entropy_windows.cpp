// SPDX-License-Identifier: BSD-3-Clause
// Sums of cells over windows, and of windows over cells, on the CPU: many neighbours at once; and the
// division of window sums by their counts.
#include "../patch_entropy_windows.h"

#include <algorithm>
#include <limits>

#include "../cpu_utils.h"
#include "../patch_entropy.h"

namespace fastseg {
namespace {

constexpr int kColumns = 128;  // neighbours whose sums along h or d are formed together

template <class Real>
FASTSEG_ALWAYS_INLINE void sum_boxes(const BoxPass& pass, int64_t begin, int64_t end, const Real* source,
                                     Real* target) {
  const int64_t blocks = (pass.inner + kColumns - 1) / kColumns, groups = pass.groups();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t column = unit / groups % blocks * kColumns, outer = unit / groups / blocks;
    const int width = int(std::min<int64_t>(kColumns, pass.inner - column));
    box_sum_group<kColumns>(pass, source + outer * pass.length * pass.inner + column,
                            target + outer * pass.target_length * pass.inner + column, int32_t(unit % groups),
                            width);
  }
}

FASTSEG_CPU_CLONES void sum_boxes_float(const BoxPass& pass, int64_t begin, int64_t end, const float* source,
                                        float* target) {
  sum_boxes<float>(pass, begin, end, source, target);
}

template <class Real>
void divide_sums(const PatchEntropyInputs& in, int64_t begin, int64_t end, const PatchEntropyMeans& sums) {
  const int64_t windows = in.windows();
  while (begin < end) {
    const int64_t plane = begin / windows, first = plane * windows, last = std::min(end, first + windows);
    Real* const of_plane = sums.of_plane<Real>(in, plane);
    const Real* const counts = sums.of_plane<Real>(in, in.count_plane(plane));
    for (int64_t i = begin - first; i < last - first; ++i) {
      const Real count = counts[i];
      of_plane[i] = count < Real(in.min_count) ? std::numeric_limits<Real>::quiet_NaN() : of_plane[i] / count;
    }
    begin = last;
  }
}

}  // namespace

int64_t box_sum_units_cpu(const BoxPass& pass) {
  return pass.outer * ((pass.inner + kColumns - 1) / kColumns) * pass.groups();
}

void box_sum_cpu(const BoxPass& pass, bool is_double, int64_t begin, int64_t end, const void* source,
                 void* target) {
  if (is_double) {
    sum_boxes(pass, begin, end, static_cast<const double*>(source), static_cast<double*>(target));
  } else {
    sum_boxes_float(pass, begin, end, static_cast<const float*>(source), static_cast<float*>(target));
  }
}

void patch_entropy_divide_cpu(const PatchEntropyInputs& in, int64_t begin, int64_t end,
                              const PatchEntropyMeans& sums) {
  in.kind == ScalarKind::kFloat64 ? divide_sums<double>(in, begin, end, sums)
                                  : divide_sums<float>(in, begin, end, sums);
}

}  // namespace fastseg
