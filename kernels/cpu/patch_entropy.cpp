// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy on the CPU, forward. A unit of work is one row of cells: the voxels of its rows are added up
// position by position, in arrays that stay in the first-level cache, and once per row of cells the positions
// are added up to cells and the cells to windows along w. Memory read per voxel: its value, once.
#include "../patch_entropy.h"

#include <algorithm>
#include <vector>

#include "../cpu_utils.h"
#include "../patch_entropy_math.h"

namespace fastseg {
namespace {

constexpr int kBlock = 512;     // voxels of a row that are worked on at once
constexpr int kFloatRows = 32;  // rows that are added up in Real; their sums are added up in float64

template <class Real>
constexpr ScalarKind kKindOf = sizeof(Real) == sizeof(double) ? ScalarKind::kFloat64 : ScalarKind::kFloat32;

// The sums at each position of a block: of entropies, of confidences of every channel, of valid voxels.
template <class Real>
struct Sums {
  int quantities;
  std::vector<Real> real;           // (quantities, kBlock)
  std::vector<double> total;        // (quantities, w)
  std::vector<Real> cells;          // of one row
  std::vector<int32_t> begin, end;  // of each cell of a row
  std::vector<Real> values;         // (channels, kBlock): decoded, then exponentials
  std::vector<Real> voxel[4];       // (kBlock): largest, others, weighted, reciprocal sum
  std::vector<int32_t> where;       // (kBlock): the channel of the largest
};

template <class Real, bool kFromLogits, bool kMasked>
FASTSEG_ALWAYS_INLINE void add_binary(const Real* values, const uint8_t* mask, int count, Real* entropy,
                                      Real* confidence, Real* valid_count) {
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const VoxelEntropy<Real> voxel = binary_entropy<Real, kFromLogits>(values[i]);
    if constexpr (kMasked) {
      const bool valid = mask[i] != 0;
      entropy[i] += valid ? voxel.entropy : Real(0);  // selected, not multiplied: 0 * NaN is NaN
      confidence[i] += valid ? voxel.confidence : Real(0);
      valid_count[i] += valid ? Real(1) : Real(0);
    } else {
      entropy[i] += voxel.entropy;
      confidence[i] += voxel.confidence;
    }
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void add_valid(const Real* values, const uint8_t* mask, int count, Real* sum) {
  if (mask) {
#pragma omp simd
    for (int i = 0; i < count; ++i) sum[i] += mask[i] != 0 ? values[i] : Real(0);
  } else {
#pragma omp simd
    for (int i = 0; i < count; ++i) sum[i] += values[i];
  }
}

// values (channels, kBlock) are probabilities and become those that are within [0, 1].
template <class Real>
FASTSEG_ALWAYS_INLINE void entropy_of_probabilities(int channels, int count, Real* values, Real* entropy) {
  std::fill_n(entropy, count, Real(0));
  for (int k = 0; k < channels; ++k) {
    Real* of_class = values + k * kBlock;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      entropy[i] += categorical_term(of_class[i]);
      of_class[i] = clamp_unit(of_class[i]);
    }
  }
}

// values (channels, kBlock) are logits and become probabilities.
template <class Real>
FASTSEG_ALWAYS_INLINE void entropy_of_logits(int channels, int count, Sums<Real>& sums, Real* entropy) {
  Real *values = sums.values.data(), *largest = sums.voxel[0].data(), *others = sums.voxel[1].data();
  Real *weighted = sums.voxel[2].data(), *reciprocal = sums.voxel[3].data();
  int32_t* where = sums.where.data();
  for (int i = 0; i < count; ++i) {
    largest[i] = values[i];
    where[i] = 0;
    others[i] = weighted[i] = Real(0);
  }
  for (int k = 1; k < channels; ++k) {
    const Real* of_class = values + k * kBlock;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      where[i] = of_class[i] > largest[i] ? k : where[i];
      largest[i] = of_class[i] > largest[i] ? of_class[i] : largest[i];
    }
  }
  for (int k = 0; k < channels; ++k) {
    Real* of_class = values + k * kBlock;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const Real distance = softmax_distance(of_class[i], largest[i]);
      const Real exponential = exp_negative(distance);
      others[i] += where[i] == k ? exponential - Real(1) : exponential;  // NaN if infinite
      weighted[i] += distance * exponential;
      of_class[i] = exponential;
    }
  }
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    entropy[i] = Softmax<Real>{largest[i], others[i], weighted[i]}.entropy();
    reciprocal[i] = Real(1) / (Real(1) + others[i]);
  }
  for (int k = 0; k < channels; ++k) {
    Real* of_class = values + k * kBlock;
#pragma omp simd
    for (int i = 0; i < count; ++i) of_class[i] *= reciprocal[i];
  }
}

// Adds count voxels from `voxel` on, of the sample (and channel) `group`, to the sums of their positions.
template <class Real>
FASTSEG_ALWAYS_INLINE void add_voxels(const PatchEntropyInputs& in, int64_t group, int64_t voxel, int count,
                                      Sums<Real>& sums) {
  Real* entropy = sums.real.data();
  Real* confidence = entropy + kBlock;
  Real* valid_count = entropy + (sums.quantities - 1) * kBlock;
  const int64_t per_channel = in.voxels();
  const uint8_t* mask = nullptr;
  if (in.mask) {
    const bool shared = !in.mask_per_channel && !in.categorical;
    mask = in.mask + (shared ? group / in.channels : group) * per_channel + voxel;
  }
  if (!in.categorical) {
    const int64_t begin = group * per_channel + voxel;
    const Real* values = sums.values.data();
    if (in.kind == kKindOf<Real>) {
      values = static_cast<const Real*>(in.values) + begin;
    } else {
      read_values(in.values, in.kind, begin, count, sums.values.data());
    }
    if (in.from_logits && mask) {
      add_binary<Real, true, true>(values, mask, count, entropy, confidence, valid_count);
    } else if (in.from_logits) {
      add_binary<Real, true, false>(values, mask, count, entropy, confidence, valid_count);
    } else if (mask) {
      add_binary<Real, false, true>(values, mask, count, entropy, confidence, valid_count);
    } else {
      add_binary<Real, false, false>(values, mask, count, entropy, confidence, valid_count);
    }
    return;
  }
  const int channels = int(in.channels);
  for (int k = 0; k < channels; ++k) {
    read_values(in.values, in.kind, (group * channels + k) * per_channel + voxel, count,
                sums.values.data() + k * kBlock);
  }
  Real of_voxel[kBlock];
  if (in.from_logits) {
    entropy_of_logits(channels, count, sums, of_voxel);
  } else {
    entropy_of_probabilities(channels, count, sums.values.data(), of_voxel);
  }
  add_valid(of_voxel, mask, count, entropy);
  for (int k = 0; k < channels; ++k) {
    add_valid(sums.values.data() + k * kBlock, mask, count, confidence + k * kBlock);
  }
  if (mask) {
    for (int i = 0; i < count; ++i) valid_count[i] += mask[i] != 0 ? Real(1) : Real(0);
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void flush(int from, int count, int w, Sums<Real>& sums) {
  for (int q = 0; q < sums.quantities; ++q) {
    Real* real = sums.real.data() + q * kBlock;
    double* total = sums.total.data() + int64_t(q) * w + from;
    for (int i = 0; i < count; ++i) total[i] += double(real[i]);
    std::fill_n(real, count, Real(0));
  }
}

// Positions to cells, and cells to windows along w.
template <class Real>
FASTSEG_ALWAYS_INLINE void write_windows(const BoxPass& pass, const double* total, Sums<Real>& sums,
                                         Real* windows) {
  Real* cells = sums.cells.data();
  const int32_t *begin = sums.begin.data(), *end = sums.end.data();
  for (int32_t cell = 0; cell < pass.length; ++cell) {
    double sum = 0;
    for (int32_t i = begin[cell]; i < end[cell]; ++i) sum += total[i];
    cells[cell] = Real(sum);
  }
  for (int32_t group = 0; group < pass.groups(); ++group) box_sum_group<1>(pass, cells, windows, group, 1);
}

template <class Real>
FASTSEG_ALWAYS_INLINE void sum_cells(const PatchEntropyInputs& in, int64_t row_begin, int64_t row_end,
                                     double scale, Real* result) {
  const WindowAxis &d = in.axis[0], &h = in.axis[1], &w = in.axis[2];
  const int channels = in.categorical ? int(in.channels) : 1;
  const int covered = w.cells == 0 ? 0 : w.end(w.cells - 1);
  const BoxPass pass = forward_pass(w, 1, 1, scale);
  Sums<Real> sums;
  sums.quantities = 1 + channels + (in.mask ? 1 : 0);
  sums.real.assign(int64_t(sums.quantities) * kBlock, Real(0));
  sums.total.resize(int64_t(sums.quantities) * w.size);
  sums.cells.resize(w.cells);
  for (int32_t cell = 0; cell < w.cells; ++cell) {
    sums.begin.push_back(w.begin(cell));
    sums.end.push_back(w.end(cell));
  }
  sums.values.resize(int64_t(channels) * kBlock);
  if (in.categorical && in.from_logits) {
    for (auto& array : sums.voxel) array.resize(kBlock);
    sums.where.resize(kBlock);
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int32_t cell_h = int32_t(row % h.cells), cell_d = int32_t(row / h.cells % d.cells);
    const int64_t group = row / h.cells / d.cells;
    std::fill(sums.total.begin(), sums.total.end(), 0.0);
    for (int from = 0; from < covered; from += kBlock) {
      const int count = std::min(kBlock, covered - from);
      int rows = 0;
      for (int32_t z = d.begin(cell_d); z < d.end(cell_d); ++z) {
        for (int32_t y = h.begin(cell_h); y < h.end(cell_h); ++y) {
          add_voxels(in, group, (int64_t(z) * h.size + y) * w.size + from, count, sums);
          if (++rows % kFloatRows == 0) flush(from, count, w.size, sums);
        }
      }
      if (rows % kFloatRows != 0) flush(from, count, w.size, sums);
    }
    for (int q = 0; q < sums.quantities; ++q) {
      int64_t plane = group;
      if (q > 0) plane = in.entropy_planes() + group * channels + (q - 1);
      if (q > channels) plane = in.entropy_planes() + in.confidence_planes() + group;
      Real* windows = result + ((plane * d.cells + cell_d) * h.cells + cell_h) * w.windows;
      write_windows(pass, sums.total.data() + int64_t(q) * w.size, sums, windows);
    }
  }
}

FASTSEG_CPU_CLONES void sum_cells_float(const PatchEntropyInputs& in, int64_t row_begin, int64_t row_end,
                                        double scale, float* sums) {
  sum_cells<float>(in, row_begin, row_end, scale, sums);
}

}  // namespace

void patch_entropy_cells_cpu(const PatchEntropyInputs& in, int64_t row_begin, int64_t row_end, double scale,
                             void* sums) {
  if (in.kind == ScalarKind::kFloat64) {
    sum_cells<double>(in, row_begin, row_end, scale, static_cast<double*>(sums));
  } else {
    sum_cells_float(in, row_begin, row_end, scale, static_cast<float*>(sums));
  }
}

}  // namespace fastseg
