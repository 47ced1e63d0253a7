// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool on the CPU, backward: the gradients of the features, the grey image and the assignment in
// one pass, two products of small matrices with each tile. Read per voxel: weights and features once;
// written: their gradients.
#include <vector>

#include "../region_pool_soft.h"
#include "region_pool_soft_tiles.h"

namespace fastseg {
namespace {

constexpr int64_t kElementsOfTile = 65536;  // 256 KiB of a second-level cache
constexpr int64_t kVoxelsPerTask = 16384;

int tile_length(const SoftInputs& in) {
  const int64_t rows = 2 * in.channels + 3 * in.parts;
  return int(std::clamp<int64_t>(kElementsOfTile / rows, kStep, 8 * kStep) / kStep * kStep);
}

// factors[block][j * 4 + i] = table[j * stride_j + (block * 4 + i) * stride_i]: what combine_rows takes, four
// rows of results at a time.
template <class Real>
FASTSEG_ALWAYS_INLINE void pack(const Real* table, int64_t rows, int64_t columns, int64_t stride_i,
                                int64_t stride_j, Real scale, Real* factors) {
  for (int64_t block = 0; block < padded(rows, 4) / 4; ++block) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t row = block * 4 + i;
        factors[(block * columns + j) * 4 + i] =
            row < rows ? scale * table[row * stride_i + j * stride_j] : Real(0);
      }
    }
  }
}

template <class Real>
struct Memory {
  std::vector<Real> weights, values, squares, results, other;
  std::vector<Real> to_parts, to_parts_curved, to_channels, to_channels_curved;  // factors
  std::vector<const Real*> weight_rows, value_rows, square_rows;
  std::vector<Real> offset;

  Memory(const SoftInputs& in, int length)
      : weights((padded(in.parts, 4) + 2) * length),
        values(padded(in.channels, 4) * length),
        squares(padded(in.channels - in.plain, 4) * length),
        results(padded(in.parts, 4) * length),
        other(4 * length),
        to_parts(padded(in.parts, 4) * in.channels),
        to_parts_curved(padded(in.parts, 4) * (in.channels - in.plain)),
        to_channels(padded(in.channels, 4) * in.parts),
        to_channels_curved(padded(in.channels - in.plain, 4) * in.parts),
        weight_rows(padded(in.parts, 4)),
        value_rows(in.channels),
        square_rows(in.channels - in.plain),
        offset(padded(in.parts, 4)) {}
};

template <class Real>
FASTSEG_ALWAYS_INLINE void load_tables(const SoftInputs& in, const SoftGradient& gradient, int64_t sample,
                                       Memory<Real>& memory) {
  const int64_t parts = in.parts, channels = in.channels, curved = channels - in.plain;
  const Real* direct = static_cast<const Real*>(gradient.direct) + sample * parts * channels;
  const Real* squares = static_cast<const Real*>(gradient.curved) + sample * parts * curved;
  pack(direct, parts, channels, channels, 1, Real(1), memory.to_parts.data());
  pack(direct, channels, parts, 1, channels, Real(1), memory.to_channels.data());
  pack(squares, parts, curved, curved, 1, Real(1), memory.to_parts_curved.data());
  pack(squares, curved, parts, 1, curved, Real(2), memory.to_channels_curved.data());
  std::copy_n(static_cast<const Real*>(gradient.offset) + sample * parts, parts, memory.offset.data());
}

template <class Real>
FASTSEG_ALWAYS_INLINE void grad_of_assignment(const SoftInputs& in, int64_t sample, int64_t begin, int count,
                                              int length, Memory<Real>& memory, void* out) {
  const int64_t parts = in.parts, channels = in.channels, curved = channels - in.plain;
  const Real nothing[4] = {};
  Real* grads = memory.results.data();
  for (int64_t k = 0; k < parts; k += 4) {
    Real* const rows[4] = {grads + k * length, grads + (k + 1) * length, grads + (k + 2) * length,
                           grads + (k + 3) * length};
    combine_rows(memory.to_parts.data() + k * channels, memory.value_rows.data(), channels,
                 memory.offset.data() + k, length, rows);
    if (curved == 0) continue;
    Real* other = memory.other.data();
    Real* const others[4] = {other, other + length, other + 2 * length, other + 3 * length};
    combine_rows(memory.to_parts_curved.data() + k * curved, memory.square_rows.data(), curved, nothing,
                 length, others);
    for (int i = 0; i < 4; ++i) {
      for (int v = 0; v < length; ++v) rows[i][v] += others[i][v];
    }
  }
  if (in.from_logits) {
    Real* mean = memory.other.data();
    std::fill_n(mean, length, Real(0));
    for (int64_t k = 0; k < parts; ++k) {
      const Real *weights = memory.weight_rows[k], *grad = grads + k * length;
      for (int v = 0; v < length; ++v) mean[v] += weights[v] * grad[v];
    }
    for (int64_t k = 0; k < parts; ++k) {
      const Real* weights = memory.weight_rows[k];
      Real* grad = grads + k * length;
      for (int v = 0; v < length; ++v) grad[v] = weights[v] * (grad[v] - mean[v]);
    }
  }
  for (int64_t k = 0; k < parts; ++k) {
    write_row(in.assignment, in.voxels, sample, k, begin, count, grads + k * length, out);
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void grad_of_channels(const SoftInputs& in, const SoftGradient& gradient,
                                            int64_t sample, int64_t begin, int count, int length,
                                            Memory<Real>& memory) {
  const int64_t parts = in.parts, channels = in.channels;
  const Real nothing[4] = {};
  Real* own = memory.results.data();  // at least four rows
  Real* other = memory.other.data();
  Real* const rows[4] = {own, own + length, own + 2 * length, own + 3 * length};
  Real* const others[4] = {other, other + length, other + 2 * length, other + 3 * length};
  // Blocks of four begin at 0 for the direct factors and at `plain` for the curved ones: the two are apart.
  for (int64_t c = 0; c < channels; c += 4) {
    combine_rows(memory.to_channels.data() + c * parts, memory.weight_rows.data(), parts, nothing, length,
                 rows);
    for (int64_t i = 0; i < 4 && c + i < channels; ++i) {
      int64_t row = c + i;
      const int64_t bent = row - in.plain;
      const SoftMap& map = map_of(in, row);
      void* out = &map == &in.features ? gradient.grad_features : gradient.grad_grey;
      if (!out) continue;
      if (bent >= 0) {
        if (bent % 4 == 0 || i == 0) {
          combine_rows(memory.to_channels_curved.data() + bent / 4 * 4 * parts, memory.weight_rows.data(),
                       parts, nothing, length, others);
        }
        const Real *twice = others[bent % 4], *values = memory.value_rows[c + i];
        for (int v = 0; v < length; ++v) rows[i][v] += twice[v] * values[v];
      }
      write_row(map, in.voxels, sample, row, begin, count, rows[i], out);
    }
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void run_tasks(const SoftInputs& in, const SoftGradient& gradient, int64_t first,
                                     int64_t last) {
  const int tile = tile_length(in);
  const int64_t per_sample = (in.voxels + kVoxelsPerTask - 1) / kVoxelsPerTask;
  Memory<Real> memory(in, tile);
  for (int64_t task = first; task < last; ++task) {
    const int64_t sample = task / per_sample, start = task % per_sample * kVoxelsPerTask;
    const int64_t end = std::min(start + kVoxelsPerTask, in.voxels);
    if (task == first || start == 0) load_tables(in, gradient, sample, memory);
    const Real* shifts = static_cast<const Real*>(gradient.shift) + sample * in.channels;
    for (int64_t at = start; at < end; at += tile) {
      const int count = int(std::min<int64_t>(tile, end - at)), length = int(padded(count, kStep));
      load_weights(in, sample, at, count, length, memory.weights.data(), memory.weight_rows.data());
      for (int64_t c = 0; c < in.channels; ++c) {
        Real* distances = memory.values.data() + c * length;
        int64_t row = c;
        const SoftMap& map = map_of(in, row);
        const Real* values = row_of(map, in.voxels, sample, row, at, count, length, distances);
        for (int v = 0; v < length; ++v) distances[v] = values[v] - shifts[c];
        memory.value_rows[c] = distances;
        if (c < in.plain) continue;
        Real* squares = memory.squares.data() + (c - in.plain) * length;
        for (int v = 0; v < length; ++v) squares[v] = distances[v] * distances[v];
        memory.square_rows[c - in.plain] = squares;
      }
      if (gradient.grad_assignment) {
        grad_of_assignment(in, sample, at, count, length, memory, gradient.grad_assignment);
      }
      if (gradient.grad_features || gradient.grad_grey) {
        grad_of_channels(in, gradient, sample, at, count, length, memory);
      }
    }
  }
}

FASTSEG_CPU_CLONES void run_tasks_float(const SoftInputs& in, const SoftGradient& gradient, int64_t begin,
                                        int64_t end) {
  run_tasks<float>(in, gradient, begin, end);
}

FASTSEG_CPU_CLONES void run_tasks_double(const SoftInputs& in, const SoftGradient& gradient, int64_t begin,
                                         int64_t end) {
  run_tasks<double>(in, gradient, begin, end);
}

}  // namespace

int64_t soft_gradient_tasks_cpu(const SoftInputs& in) {
  return in.batch * ((in.voxels + kVoxelsPerTask - 1) / kVoxelsPerTask);
}

void soft_gradient_cpu(const SoftInputs& in, const SoftGradient& gradient, int64_t begin, int64_t end) {
  (in.wide ? run_tasks_double : run_tasks_float)(in, gradient, begin, end);
}

}  // namespace fastseg
