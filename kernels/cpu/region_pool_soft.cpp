// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool on the CPU, forward: a product of the weights of a tile of voxels and its features, tile
// after tile, the softmax taken in the cache. Products are float32 within a tile and float64 across tiles.
// For the variance, features are taken relative to their mean over the tile, and tiles are merged as Chan et
// al. do, so that a large common offset costs no digits. Read per voxel: weights once for every 64 channels,
// features once.
#include "../region_pool_soft.h"

#include <vector>

#include "region_pool_soft_tiles.h"

namespace fastseg {
namespace {

constexpr int64_t kBlock = 64;             // channels of a unit
constexpr int64_t kUnits = 32;             // enough to keep a few dozen threads busy
constexpr int64_t kFewestVoxels = 8192;    // of a unit
constexpr int64_t kWeightsOfTile = 65536;  // elements: 256 KiB of a second-level cache

// The table of a unit: mass (parts), then per part and channel the mean, or for plain channels the sum, then
// the same of the weighted squared distances from the mean.
struct Table {
  double *mass, *mean, *squares;
};

Table table_of(const SoftInputs& in, double* memory) {
  return {memory, memory + in.parts, memory + in.parts * (1 + kBlock)};
}

int tile_length(const SoftInputs& in) {
  return int(std::clamp<int64_t>(kWeightsOfTile / padded(in.parts, 4), 4 * kStep, 16 * kStep) / kStep *
             kStep);
}

template <class Real>
struct Memory {
  std::vector<Real> weights, values, squares;
  const Real* weight_rows[kMaxSoftParts];
  const Real *value_rows[kBlock], *square_rows[kBlock];
  Real shift[kBlock], mass[kMaxSoftParts];
};

// Weighted moments of a tile, mass and sums of d = f - shift and of d^2, join those of the tiles before.
FASTSEG_ALWAYS_INLINE void merge_moments(double before, double mass, double sum, double sum_of_squares,
                                         double shift, double& mean, double& squares) {
  const double distance = sum / mass, difference = shift + distance - mean, all = before + mass;
  const double own = sum_of_squares - sum * distance;
  mean += difference * (mass / all);
  squares += (own < 0 ? 0 : own) + difference * difference * (before * (mass / all));
}

// Channels [first, first + channels) of one tile.
template <class Real>
FASTSEG_ALWAYS_INLINE void add_tile(const SoftInputs& in, int64_t sample, int64_t first, int channels,
                                    int64_t begin, int count, int length, Memory<Real>& memory,
                                    const Table& table) {
  load_weights(in, sample, begin, count, length, memory.weights.data(), memory.weight_rows);
  const int all = int(padded(channels, 4));
  for (int c = 0; c < all; ++c) {
    Real* buffer = memory.values.data() + c * length;
    Real* squares = memory.squares.data() + c * length;
    memory.shift[c] = 0;
    memory.value_rows[c] = buffer;
    memory.square_rows[c] = squares;
    if (c >= channels) {
      std::fill_n(buffer, length, Real(0));
      std::fill_n(squares, length, Real(0));
      continue;
    }
    int64_t row = first + c;
    const bool plain = row < in.plain;
    const SoftMap& map = map_of(in, row);
    const Real* values = row_of(map, in.voxels, sample, row, begin, count, length, buffer);
    if (plain) {
      memory.value_rows[c] = values;
      continue;
    }
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int v = 0; v < length; ++v) sum += values[v];  // beyond count they are 0
    const Real shift = sum / Real(count);
    for (int v = 0; v < length; ++v) {
      const Real distance = values[v] - shift;
      buffer[v] = distance;
      squares[v] = distance * distance;
    }
    memory.shift[c] = shift;
  }
  const int64_t parts = in.parts;
  for (int64_t k = 0; k < parts; ++k) {
    const Real* weights = memory.weight_rows[k];
    Real mass = 0;
#pragma omp simd reduction(+ : mass)
    for (int v = 0; v < length; ++v) mass += weights[v];
    memory.mass[k] = mass;
  }
  for (int c = 0; c < all; c += 4) {
    const bool curved = first + std::min(c + 3, channels - 1) >= in.plain;
    for (int64_t k = 0; k < parts; k += 4) {
      Real sums[4][4], squares[4][4] = {};
      inner_products<Real>(memory.weight_rows + k, memory.value_rows + c, length, sums);
      if (curved) inner_products<Real>(memory.weight_rows + k, memory.square_rows + c, length, squares);
      for (int i = 0; i < 4 && k + i < parts; ++i) {
        const double before = table.mass[k + i], mass = double(memory.mass[k + i]);
        for (int j = 0; j < 4 && c + j < channels; ++j) {
          const int64_t at = (k + i) * kBlock + c + j;
          if (first + c + j < in.plain) {
            table.mean[at] += double(sums[i][j]);
          } else if (mass != 0) {
            merge_moments(before, mass, sums[i][j], squares[i][j], memory.shift[c + j], table.mean[at],
                          table.squares[at]);
          }
        }
      }
    }
  }
  for (int64_t k = 0; k < parts; ++k) table.mass[k] += double(memory.mass[k]);
}

template <class Real>
FASTSEG_ALWAYS_INLINE void pool_units(const SoftInputs& in, const SoftUnits& units, int64_t first_unit,
                                      int64_t last_unit, double* tables) {
  const int length = tile_length(in);
  Memory<Real> memory;
  memory.weights.resize((padded(in.parts, 4) + 2) * length);
  memory.values.resize(kBlock * length);
  memory.squares.resize(kBlock * length);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const int64_t block = unit % units.blocks, partition = unit / units.blocks % units.partitions;
    const int64_t sample = unit / units.blocks / units.partitions;
    const int channels = int(std::min(kBlock, in.channels - block * kBlock));
    const int64_t begin = std::min(partition * units.partition_voxels, in.voxels);
    const int64_t end = std::min(begin + units.partition_voxels, in.voxels);
    double* table = tables + unit * units.unit_doubles;
    std::fill_n(table, units.unit_doubles, 0.0);
    for (int64_t at = begin; at < end; at += length) {
      const int count = int(std::min<int64_t>(length, end - at));
      add_tile(in, sample, block * kBlock, channels, at, count, int(padded(count, kStep)), memory,
               table_of(in, table));
    }
  }
}

FASTSEG_CPU_CLONES void pool_units_float(const SoftInputs& in, const SoftUnits& units, int64_t begin,
                                         int64_t end, double* tables) {
  pool_units<float>(in, units, begin, end, tables);
}

FASTSEG_CPU_CLONES void pool_units_double(const SoftInputs& in, const SoftUnits& units, int64_t begin,
                                          int64_t end, double* tables) {
  pool_units<double>(in, units, begin, end, tables);
}

template <class Real>
void merge(const SoftInputs& in, const SoftUnits& units, const double* tables, const SoftResults& results) {
  const int64_t channels = in.channels, curved = channels - in.plain;
  for (int64_t row = 0; row < in.batch * in.parts; ++row) {
    const int64_t sample = row / in.parts, k = row % in.parts;
    for (int64_t c = -1; c < channels; ++c) {  // the mass first, which needs no channel
      const int64_t block = std::max<int64_t>(c, 0) / kBlock;
      double mass = 0, mean = 0, squares = 0;
      for (int64_t partition = 0; partition < units.partitions; ++partition) {
        const int64_t unit = (sample * units.partitions + partition) * units.blocks + block;
        const Table table = table_of(in, const_cast<double*>(tables) + unit * units.unit_doubles);
        const int64_t at = k * kBlock + c % kBlock;
        const double own = table.mass[k];
        if (c >= 0 && c < in.plain) mean += table.mean[at];
        if (c >= in.plain && own != 0) {
          const double difference = table.mean[at] - mean, all = mass + own;
          mean += difference * (own / all);
          squares += table.squares[at] + difference * difference * (mass * (own / all));
        }
        mass += own;
      }
      if (c < 0) {
        static_cast<Real*>(results.mass)[row] = Real(mass);
      } else {
        if (c < in.plain) mean = mass != 0 ? mean / mass : 0;
        static_cast<Real*>(results.mean)[row * channels + c] = Real(mass != 0 ? mean : 0);
        if (c >= in.plain) {
          static_cast<Real*>(results.variance)[row * curved + c - in.plain] =
              Real(mass != 0 ? squares / mass : 0);
        }
      }
    }
  }
}

}  // namespace

SoftUnits soft_pool_units_cpu(const SoftInputs& in) {
  SoftUnits units{};
  units.blocks = std::max<int64_t>(1, (in.channels + kBlock - 1) / kBlock);
  const int64_t others = std::max<int64_t>(1, in.batch * units.blocks);
  units.partitions =
      std::max<int64_t>(1, std::min((kUnits + others - 1) / others, in.voxels / kFewestVoxels));
  units.partition_voxels = padded((in.voxels + units.partitions - 1) / units.partitions, tile_length(in));
  units.units = in.batch * units.partitions * units.blocks;
  units.unit_doubles = in.parts * (1 + 2 * kBlock);
  return units;
}

void soft_pool_cpu(const SoftInputs& in, const SoftUnits& units, int64_t begin, int64_t end, double* tables) {
  (in.wide ? pool_units_double : pool_units_float)(in, units, begin, end, tables);
}

void soft_pool_merge_cpu(const SoftInputs& in, const SoftUnits& units, const double* tables,
                         const SoftResults& results) {
  (in.wide ? merge<double> : merge<float>)(in, units, tables, results);
}

}  // namespace fastseg
