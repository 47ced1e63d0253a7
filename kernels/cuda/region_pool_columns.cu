// SPDX-License-Identifier: BSD-3-Clause
// Sums and means of up to 512 regions on CUDA, channels first: lane = channel. A warp is a block of its own
// and takes a range of voxels; a lane has a column of a table in shared memory, so its sums need no atomics
// and no shuffles, and no two lanes meet in a bank. With few channels the lanes of a channel share the
// voxels: "streams". Tiles of features come by 16-byte loads along the voxels, those of the next tile under
// way while a warp works on this one, and turn through shared memory. Labels are read once, classed by fours
// for all channels: four of one region are one sum, of a run of them one entry is touched; four different
// ones touch their four entries side by side, not one after the other; the rest in turn.
//
// Sums are float32 over a tile, then over a range of 64 Ki voxels at most, then float64; the order never
// changes, so results are the same bit for bit. Counts are integers, in the same pass. Read per voxel: its
// label once for 32 channels, and its features.
#include "region_pool_ranges.cuh"
#include "region_pool_sums.h"

namespace fastseg {
namespace {

constexpr int64_t kMostColumnRegions = 512;  // three tables fit a multiprocessor of an H200
constexpr int64_t kFewestColumnVoxels = 1024, kMostColumnVoxels = 64 * 1024;  // of a range

// Block u has group u % groups, a group of `columns` channels, of range u / groups: the ranges of a sample
// follow one another. Its sums lie as (num_regions, columns) at u * num_regions * columns.
struct RangePlan {
  int64_t columns, groups, partitions, partition_voxels, units;
};

// Of four labels, in the upper bits of the first.
constexpr uint32_t kMixed = 0, kSame = 1u << 30, kDistinct = 2u << 30, kClass = 3u << 30;

int streams_of(const RegionLabels& in) {
  return in.channels > 16 ? 1 : in.channels > 4 ? 2 : in.channels > 1 ? 8 : 32;
}

// Blocks that the registers allow a multiprocessor without spilling.
constexpr int resident(int streams) { return streams == 1 || streams == 32 ? 8 : 12; }

// A tile has a row of voxels for each lane: 256 bytes on their way, where there are few warps, or 32 voxels.
template <class T, int kStreams>
struct ColumnTile {
  static constexpr int kVoxels = kStreams == 1 ? 256 / sizeof(T) : 32;
  static constexpr int kStep = kVoxels * kStreams;  // voxels of a tile
  static constexpr int kColumns = 32 / kStreams;
  static constexpr int kPieces = kVoxels / kLanes<T>;        // 16 bytes each; of a row, so also of a lane
  static constexpr int kLabels = kStep / 32;                 // of a lane
  static constexpr int kRow = kVoxels + kLanes<T>;           // padded against bank conflicts
  static constexpr int kLabelRow = kVoxels + kLanes<float>;  // likewise
  using Piece = Lanes<T, kLanes<T>>;

  float* table;     // (num_regions + 1, 32): the last row is of voxels that take no part
  T* values;        // (32, kRow)
  uint32_t* rows;   // (kStreams, kLabelRow): where a voxel's row of the table begins
  uint32_t* count;  // (num_regions + 1)

  static size_t bytes(int64_t num_regions) {
    return (num_regions + 1) * 33 * sizeof(float) + 32 * kRow * sizeof(T) +
           kStreams * kLabelRow * sizeof(uint32_t);
  }

  __device__ ColumnTile(double* memory, int64_t num_regions)
      : table(reinterpret_cast<float*>(memory)),
        values(reinterpret_cast<T*>(table + (num_regions + 1) * 32)),
        rows(reinterpret_cast<uint32_t*>(values + 32 * kRow)),
        count(rows + kStreams * kLabelRow) {}
};

template <class T>
size_t column_bytes(int streams, int64_t num_regions) {
  switch (streams) {
    case 1:
      return ColumnTile<T, 1>::bytes(num_regions);
    case 2:
      return ColumnTile<T, 2>::bytes(num_regions);
    case 8:
      return ColumnTile<T, 8>::bytes(num_regions);
    default:
      return ColumnTile<T, 32>::bytes(num_regions);
  }
}

template <class T>
RangePlan make_column_plan(const RegionLabels& in) {
  RangePlan plan{};
  const int streams = streams_of(in);
  plan.columns = 32 / streams;
  plan.groups = (in.channels + plan.columns - 1) / plan.columns;
  const int64_t bytes = column_bytes<T>(streams, in.num_regions) + kReservedBytes;
  const int64_t wave = kProcessors * std::min<int64_t>(resident(streams), kProcessorBytes / bytes);
  const int64_t others = std::max<int64_t>(1, in.batch * plan.groups);
  plan.partitions = std::max({int64_t(1), std::min(wave / others, in.voxels / kFewestColumnVoxels),
                              (in.voxels + kMostColumnVoxels - 1) / kMostColumnVoxels});
  const int64_t step = 1024;  // a multiple of every tile
  plan.partition_voxels = ((in.voxels + plan.partitions - 1) / plan.partitions + step - 1) / step * step;
  plan.units = in.batch * plan.partitions * plan.groups;
  return plan;
}

// Block: a range of voxels of a sample and a group of channels, groups of the same voxels one after the
// other. Lane: column lane % kColumns, stream lane / kColumns.
template <class T, int kStreams>
__global__ void __launch_bounds__(32, resident(kStreams))
    column_kernel(RegionLabels in, const T* features, RangePlan plan, bool vectors, float* sums,
                  uint32_t* counts) {
  using Tile = ColumnTile<T, kStreams>;
  using Piece = typename Tile::Piece;
  extern __shared__ double memory[];
  const Tile tile(memory, in.num_regions);
  const int lane = threadIdx.x;
  const unsigned group = blockIdx.x % unsigned(plan.groups), range = blockIdx.x / unsigned(plan.groups);
  const int64_t sample = range / unsigned(plan.partitions), first_channel = int64_t(group) * Tile::kColumns;
  const int64_t begin = range % unsigned(plan.partitions) * plan.partition_voxels;
  const int64_t end = begin + plan.partition_voxels < in.voxels ? begin + plan.partition_voxels : in.voxels;
  const T* of_group = features + (sample * in.channels + first_channel) * in.voxels;
  const int channels =
      int(in.channels - first_channel < Tile::kColumns ? in.channels - first_channel : Tile::kColumns);
  const auto none = uint32_t(in.num_regions) * 32;
  for (uint32_t i = lane; i < none + 32; i += 32) tile.table[i] = 0.0f;
  for (int r = lane; r <= in.num_regions; r += 32) tile.count[r] = 0;

  Piece pieces[Tile::kPieces];
  uint64_t labels[Tile::kLabels];
  const auto whole = [&](int64_t start) { return vectors && start + Tile::kStep <= end; };
  const auto read_pieces = [&](int64_t start) {
#pragma unroll
    for (int i = 0; i < Tile::kPieces; ++i) {
      const int row = (i * 32 + lane) / Tile::kPieces, column = row % Tile::kColumns;
      const int64_t voxel = start + row / Tile::kColumns * Tile::kVoxels + lane % Tile::kPieces * kLanes<T>;
      pieces[i] = {};
      if (column < channels)
        pieces[i] = *reinterpret_cast<const Piece*>(of_group + column * in.voxels + voxel);
    }
  };
  if (whole(begin)) read_pieces(begin);
  read_labels(in, sample * in.voxels, begin, end, labels);

  for (int64_t start = begin; start < end; start += Tile::kStep) {
    __syncwarp();  // all lanes are done with the tile before
    if (whole(start)) {
#pragma unroll
      for (int i = 0; i < Tile::kPieces; ++i) {
        const int row = (i * 32 + lane) / Tile::kPieces;
        *reinterpret_cast<Piece*>(tile.values + row * Tile::kRow + lane % Tile::kPieces * kLanes<T>) =
            pieces[i];
      }
    } else {
#pragma unroll 4
      for (int i = lane; i < 32 * Tile::kVoxels; i += 32) {
        const int row = i / Tile::kVoxels, v = i % Tile::kVoxels, column = row % Tile::kColumns;
        const int64_t voxel = start + row / Tile::kColumns * Tile::kVoxels + v;
        const bool inside = column < channels && voxel < end;
        tile.values[row * Tile::kRow + v] =
            inside ? of_group[column * in.voxels + voxel] : from_real<T>(0.0f);
      }
    }
#pragma unroll
    for (int i = 0; i < Tile::kLabels; ++i) {
      const int v = i * 32 + lane;
      const bool counts_in = labels[i] < uint64_t(in.num_regions);
      tile.rows[v / Tile::kVoxels * Tile::kLabelRow + v % Tile::kVoxels] =
          counts_in ? uint32_t(labels[i]) * 32 : none;
    }
    __syncwarp();  // values and rows are in
    if (start + Tile::kStep < end) {
      if (whole(start + Tile::kStep)) read_pieces(start + Tile::kStep);
      read_labels(in, sample * in.voxels, start + Tile::kStep, end, labels);
    }
    for (int i = lane; i < Tile::kStep / 4; i += 32) {  // four voxels per lane
      uint32_t* at = tile.rows + i * 4 / Tile::kVoxels * Tile::kLabelRow + i * 4 % Tile::kVoxels;
      const auto own = *reinterpret_cast<const Lanes<uint32_t, 4>*>(at);
      const auto [a, b, c, d] = own.value;
      const bool same = a == b && a == c && a == d;
      const bool distinct = a != b && a != c && a != d && b != c && b != d && c != d;
      at[0] = a | (same ? kSame : distinct ? kDistinct : kMixed);
      if (group > 0) continue;
      if (same) {
        atomicAdd(&tile.count[a / 32], 4u);
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) atomicAdd(&tile.count[own.value[k] / 32], 1u);
      }
    }
    __syncwarp();  // classes are in

    const T* values = tile.values + lane * Tile::kRow;
    const uint32_t* rows = tile.rows + lane / Tile::kColumns * Tile::kLabelRow;
    float* column = tile.table + lane;
    uint32_t current = none;
    float run = 0.0f;  // of `current`
    for (int v = 0; v < Tile::kVoxels; v += 4) {
      const auto row = *reinterpret_cast<const Lanes<uint32_t, 4>*>(rows + v);
      const auto four = *reinterpret_cast<const Lanes<T, 4>*>(values + v);
      float value[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] = to_real<float>(four.value[i]);
      const uint32_t kind = row.value[0] & kClass, first = row.value[0] & ~kClass;
      if (kind == kSame) {
        const float sum = (value[0] + value[1]) + (value[2] + value[3]);
        if (first != current) {
          column[current] += run;
          current = first;
          run = 0.0f;
        }
        run += sum;
        continue;
      }
      if (current != none) {
        column[current] += run;
        current = none;
        run = 0.0f;
      }
      if (kind == kDistinct) {
        float entries[4] = {column[first], column[row.value[1]], column[row.value[2]], column[row.value[3]]};
        column[first] = entries[0] + value[0];
#pragma unroll
        for (int i = 1; i < 4; ++i) column[row.value[i]] = entries[i] + value[i];
      } else {
        column[first] += value[0];
#pragma unroll
        for (int i = 1; i < 4; ++i) column[row.value[i]] += value[i];
      }
    }
    column[current] += run;
  }

  __syncwarp();  // all columns are complete
  float* own = sums + int64_t(blockIdx.x) * in.num_regions * Tile::kColumns;
  for (int i = lane; i < in.num_regions * Tile::kColumns; i += 32) {
    const int row = i / Tile::kColumns;
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kStreams; ++k) {  // rows begin with different streams, or lanes would meet in a bank
      sum += tile.table[row * 32 + (row + k) % kStreams * Tile::kColumns + i % Tile::kColumns];
    }
    own[i] = sum;
  }
  if (group > 0) return;
  for (int r = lane; r < in.num_regions; r += 32) counts[int64_t(range) * in.num_regions + r] = tile.count[r];
}

constexpr int kSlices = 32;  // of a merge

// A block per 32 entries of a group of channels: a warp adds up every kSlices-th range.
__global__ void __launch_bounds__(32 * kSlices)
    merge_ranges_kernel(RegionLabels in, RangePlan plan, bool mean, const float* sums, const uint32_t* counts,
                        RegionResults results) {
  __shared__ double sum_of[kSlices][32];
  __shared__ int64_t count_of[kSlices][32];
  const int lane = threadIdx.x % 32, slice = threadIdx.x / 32;
  const int64_t entries = in.num_regions * plan.columns, chunks = (entries + 31) / 32;
  const int64_t entry = blockIdx.x % chunks * 32 + lane, group = blockIdx.x / chunks % plan.groups;
  const int64_t sample = blockIdx.x / chunks / plan.groups, region = entry / plan.columns;
  double sum = 0;
  int64_t count = 0;
  if (entry < entries) {
    const int64_t first = sample * plan.partitions;
#pragma unroll 4
    for (int64_t p = first + slice; p < first + plan.partitions; p += kSlices) {
      sum += double(sums[(p * plan.groups + group) * entries + entry]);
      count += counts[p * in.num_regions + region];
    }
  }
  sum_of[slice][lane] = sum;
  count_of[slice][lane] = count;
  __syncthreads();  // all slices are in
  const int64_t channel = group * plan.columns + entry % plan.columns, row = sample * in.num_regions + region;
  if (slice > 0 || entry >= entries || channel >= in.channels) return;
  for (int s = 1; s < kSlices; ++s) {
    sum += sum_of[s][lane];
    count += count_of[s][lane];
  }
  if (results.mean) {  // of no channels there is none
    static_cast<float*>(results.mean)[row * in.channels + channel] =
        float(mean && count > 0 ? sum / double(count) : sum);
  }
  if (channel == 0) results.count[row] = count;
}

template <class T, int kStreams>
cudaError_t launch_columns(const RegionLabels& in, const T* features, const RangePlan& plan, float* sums,
                           uint32_t* counts, cudaStream_t stream) {
  const auto kernel = column_kernel<T, kStreams>;
  const size_t bytes = ColumnTile<T, kStreams>::bytes(in.num_regions);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (status != cudaSuccess) return status;
  const bool vectors = in.voxels % kLanes<T> == 0 && is_aligned(features);
  return launch(kernel, unsigned(plan.units), 32, bytes, stream, in, features, plan, vectors, sums, counts);
}

template <class T>
cudaError_t pool(const RegionLabels& in, const void* values, bool mean, const RegionResults& results,
                 void* scratch, cudaStream_t stream) {
  const auto* features = static_cast<const T*>(values);
  const RangePlan plan = make_column_plan<T>(in);
  if (plan.units * in.num_regions == 0) return cudaSuccess;
  auto* sums = static_cast<float*>(scratch);
  auto* counts = reinterpret_cast<uint32_t*>(sums + plan.units * plan.columns * in.num_regions);
  const int streams = streams_of(in);
  const auto run = streams == 1   ? launch_columns<T, 1>
                   : streams == 2 ? launch_columns<T, 2>
                   : streams == 8 ? launch_columns<T, 8>
                                  : launch_columns<T, 32>;
  const cudaError_t status = run(in, features, plan, sums, counts, stream);
  if (status != cudaSuccess) return status;
  const int64_t chunks = (in.num_regions * plan.columns + 31) / 32;
  return launch(merge_ranges_kernel, unsigned(in.batch * plan.groups * chunks), 32 * kSlices, 0, stream, in,
                plan, mean, sums, counts, results);
}

}  // namespace

bool takes_columns(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce) {
  return (reduce == RegionReduce::kSum || reduce == RegionReduce::kMean) && !in.channels_last &&
         features.kind != ScalarKind::kFloat64 && in.num_regions <= kMostColumnRegions;
}

size_t column_scratch(const RegionLabels& in, const RegionFeatures& features) {
  return with_short_type(features.kind, [&](auto type) {
    const RangePlan plan = make_column_plan<decltype(type)>(in);
    return size_t(plan.units * plan.columns + in.batch * plan.partitions) * in.num_regions * sizeof(float);
  });
}

cudaError_t pool_columns(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce,
                         const RegionResults& results, void* scratch, cudaStream_t stream) {
  return with_short_type(features.kind, [&](auto type) {
    return pool<decltype(type)>(in, features.features, reduce == RegionReduce::kMean, results, scratch,
                                stream);
  });
}

}  // namespace fastseg
