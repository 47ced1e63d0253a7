// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy on the CPU, backward. The gradients of the windows are summed to cells by box_sum_cpu; here
// each row of voxels takes those of its cells and multiplies them by the slopes at its values. Per voxel:
// its value is read and its gradient written, once.
#include <algorithm>
#include <vector>

#include "../cpu_utils.h"
#include "../patch_entropy.h"
#include "../patch_entropy_math.h"

namespace fastseg {
namespace {

// What a thread needs for a row of voxels of all channels that are worked on together.
template <class Real>
struct Row {
  int channels;
  std::vector<Real> grad;    // (1 + channels, w): of the entropy, of the confidence of every channel
  std::vector<Real> values;  // (channels, w)
  std::vector<Real> result;  // (channels, w)
  std::vector<Real> largest, others, weighted, mean;
  std::vector<int32_t> begin, end;  // of each cell of a row
};

// Upstream gradients of one row of cells, repeated for every voxel; 0 between windows.
template <class Real>
FASTSEG_ALWAYS_INLINE void expand(const Row<Real>& row, int w, const Real* of_cells, Real* of_voxels) {
  std::fill_n(of_voxels, w, Real(0));
  for (size_t cell = 0; cell < row.begin.size(); ++cell) {
    for (int32_t i = row.begin[cell]; i < row.end[cell]; ++i) of_voxels[i] = of_cells[cell];
  }
}

template <class Real, bool kFromLogits>
FASTSEG_ALWAYS_INLINE void binary_gradient(const Real* values, const Real* grad, int w, Real* result) {
#pragma omp simd
  for (int i = 0; i < w; ++i) {
    const VoxelEntropy<Real> slope = binary_slopes<Real, kFromLogits>(values[i]);
    const Real of_entropy = grad[i], of_confidence = grad[w + i];
    const Real gradient = of_entropy * slope.entropy + of_confidence * slope.confidence;
    const bool none = of_entropy == Real(0) && of_confidence == Real(0);
    result[i] = none ? Real(0) : gradient;  // also where the slope is NaN
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void probability_gradient(int w, Row<Real>& row) {
  const Real* of_entropy = row.grad.data();
  for (int k = 0; k < row.channels; ++k) {
    const Real *values = row.values.data() + int64_t(k) * w, *of_confidence = of_entropy + int64_t(k + 1) * w;
    Real* result = row.result.data() + int64_t(k) * w;
#pragma omp simd
    for (int i = 0; i < w; ++i) {
      const bool inside = !(values[i] < Real(0)) && !(values[i] > Real(1));
      const Real gradient =
          of_entropy[i] * categorical_slope(values[i]) + (inside ? of_confidence[i] : Real(0));
      const bool none = of_entropy[i] == Real(0) && of_confidence[i] == Real(0);
      result[i] = none ? Real(0) : gradient;
    }
  }
}

// With p = exp(-a) / S and H in bits: dH/dz_k = p_k ((a_k + log S) log2(e) - H), and the confidences give
// p_k (g_k - sum_j g_j p_j).
template <class Real>
FASTSEG_ALWAYS_INLINE void softmax_gradient(int w, Row<Real>& row) {
  const Real* of_entropy = row.grad.data();
  Real *largest = row.largest.data(), *others = row.others.data(), *mean = row.mean.data();
  Real* weighted = row.weighted.data();
  std::copy_n(row.values.data(), w, largest);
  for (int k = 1; k < row.channels; ++k) {
    const Real* values = row.values.data() + int64_t(k) * w;
#pragma omp simd
    for (int i = 0; i < w; ++i) largest[i] = values[i] > largest[i] ? values[i] : largest[i];
  }
  std::fill_n(others, w, Real(-1));  // the largest one's 1 is among the summands
  std::fill_n(weighted, w, Real(0));
  std::fill_n(mean, w, Real(0));
  for (int k = 0; k < row.channels; ++k) {
    const Real *values = row.values.data() + int64_t(k) * w, *of_confidence = of_entropy + int64_t(k + 1) * w;
    Real* result = row.result.data() + int64_t(k) * w;
#pragma omp simd
    for (int i = 0; i < w; ++i) {
      const Real distance = softmax_distance(values[i], largest[i]);
      const Real exponential = exp_negative(distance);
      others[i] += exponential;
      weighted[i] += distance * exponential;
      mean[i] += of_confidence[i] == Real(0) ? Real(0) : of_confidence[i] * exponential;
      result[i] = exponential;
    }
  }
  for (int k = 0; k < row.channels; ++k) {
    const Real *values = row.values.data() + int64_t(k) * w, *of_confidence = of_entropy + int64_t(k + 1) * w;
    Real* result = row.result.data() + int64_t(k) * w;
#pragma omp simd
    for (int i = 0; i < w; ++i) {
      const Real sum = Real(1) + others[i];
      const Real distance = softmax_distance(values[i], largest[i]);
      const Real above_mean = kLog2E<Real> * (distance - weighted[i] / sum);  // -log2 p_k - H
      const Real gradient = of_entropy[i] * above_mean + (of_confidence[i] - mean[i] / sum);
      const bool none = of_entropy[i] == Real(0) && of_confidence[i] == Real(0) && mean[i] == Real(0);
      result[i] = none ? Real(0) : result[i] / sum * gradient;
    }
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void write_rows(const PatchEntropyInputs& in, const Real* grad_cells, int64_t row_begin,
                                      int64_t row_end, void* grad_values) {
  const WindowAxis &d = in.axis[0], &h = in.axis[1], &w = in.axis[2];
  const int64_t voxels = in.voxels(), cells = in.cells();
  Row<Real> row;
  row.channels = in.categorical ? int(in.channels) : 1;
  row.grad.resize(int64_t(1 + row.channels) * w.size);
  row.values.resize(int64_t(row.channels) * w.size);
  row.result.resize(int64_t(row.channels) * w.size);
  if (in.categorical && in.from_logits) {
    for (auto* array : {&row.largest, &row.others, &row.weighted, &row.mean}) array->resize(w.size);
  }
  for (int32_t cell = 0; cell < w.cells; ++cell) {
    row.begin.push_back(w.begin(cell));
    row.end.push_back(w.end(cell));
  }
  int64_t expanded = -1;
  for (int64_t number = row_begin; number < row_end; ++number) {
    const int32_t y = int32_t(number % h.size), z = int32_t(number / h.size % d.size);
    const int64_t group = number / h.size / d.size;
    const int32_t cell_d = d.cell_of(z), cell_h = h.cell_of(y);
    const int64_t voxel = (int64_t(z) * h.size + y) * w.size;
    if (cell_d < 0 || cell_h < 0) {
      std::fill(row.result.begin(), row.result.end(), Real(0));
    } else {
      const int64_t cell_row = ((group * d.cells) + cell_d) * h.cells + cell_h;
      if (cell_row != expanded) {
        expanded = cell_row;
        const int64_t within = (int64_t(cell_d) * h.cells + cell_h) * w.cells;
        expand(row, w.size, grad_cells + group * cells + within, row.grad.data());
        for (int k = 0; k < row.channels; ++k) {
          const int64_t plane = in.entropy_planes() + group * row.channels + k;
          expand(row, w.size, grad_cells + plane * cells + within, row.grad.data() + int64_t(1 + k) * w.size);
        }
      }
      for (int k = 0; k < row.channels; ++k) {
        read_values(in.values, in.kind, (group * row.channels + k) * voxels + voxel, w.size,
                    row.values.data() + int64_t(k) * w.size);
      }
      if (in.categorical && in.from_logits) {
        softmax_gradient(w.size, row);
      } else if (in.categorical) {
        probability_gradient(w.size, row);
      } else if (in.from_logits) {
        binary_gradient<Real, true>(row.values.data(), row.grad.data(), w.size, row.result.data());
      } else {
        binary_gradient<Real, false>(row.values.data(), row.grad.data(), w.size, row.result.data());
      }
      if (in.mask) {
        const bool shared = !in.mask_per_channel && !in.categorical;
        const uint8_t* mask = in.mask + (shared ? group / in.channels : group) * voxels + voxel;
        for (int k = 0; k < row.channels; ++k) {
          Real* result = row.result.data() + int64_t(k) * w.size;
          for (int i = 0; i < w.size; ++i) result[i] = mask[i] != 0 ? result[i] : Real(0);
        }
      }
    }
    for (int k = 0; k < row.channels; ++k) {
      write_values(row.result.data() + int64_t(k) * w.size, in.kind,
                   (group * row.channels + k) * voxels + voxel, w.size, grad_values);
    }
  }
}

FASTSEG_CPU_CLONES void write_rows_float(const PatchEntropyInputs& in, const float* grad_cells,
                                         int64_t row_begin, int64_t row_end, void* grad_values) {
  write_rows<float>(in, grad_cells, row_begin, row_end, grad_values);
}

template <class Real>
void scale_upstream(const PatchEntropyInputs& in, const PatchEntropyUpstream& upstream, int64_t begin,
                    int64_t end, Real* grad_sums) {
  const int64_t windows = in.windows();
  const Real share = Real(1.0 / double(in.patch_voxels()));
  while (begin < end) {
    const int64_t plane = begin / windows, first = plane * windows, last = std::min(end, first + windows);
    const Real* const grad = upstream.of_plane<const Real>(in, plane);
    const Real* const counts = upstream.of_plane<const Real>(in, in.count_plane(plane));
    for (int64_t i = begin - first; i < last - first; ++i) {
      Real& sum = grad_sums[first + i];
      if (!grad) {
        sum = Real(0);
      } else if (!counts) {
        sum = grad[i] * share;
      } else {
        sum = counts[i] < Real(in.min_count) ? Real(0) : grad[i] / counts[i];  // NaN windows pass on nothing
      }
    }
    begin = last;
  }
}

}  // namespace

void patch_entropy_upstream_cpu(const PatchEntropyInputs& in, const PatchEntropyUpstream& upstream,
                                int64_t begin, int64_t end, void* grad_sums) {
  if (in.kind == ScalarKind::kFloat64) {
    scale_upstream(in, upstream, begin, end, static_cast<double*>(grad_sums));
  } else {
    scale_upstream(in, upstream, begin, end, static_cast<float*>(grad_sums));
  }
}

void patch_entropy_gradient_cpu(const PatchEntropyInputs& in, const void* grad_cells, int64_t row_begin,
                                int64_t row_end, void* grad_values) {
  if (in.kind == ScalarKind::kFloat64) {
    write_rows(in, static_cast<const double*>(grad_cells), row_begin, row_end, grad_values);
  } else {
    write_rows_float(in, static_cast<const float*>(grad_cells), row_begin, row_end, grad_values);
  }
}

}  // namespace fastseg
