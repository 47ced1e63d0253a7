// SPDX-License-Identifier: BSD-3-Clause
// Sums and means of more regions than region_pool_columns.cu takes, as long as the table of a channel fits
// into a multiprocessor's shared memory: some 54,000 on an H200. A warp has the table of a channel for
// itself, and its lanes have 32 voxels side by side: only voxels of one region within such a group could meet
// in an entry. So a block's warps first find, once for all its channels, which lane of a group is the next
// one of its region: sums jump from lane to lane in as many steps as 2^steps >= voxels of one region, none
// where all differ, and the last lane of a region adds to the table. Groups of a single region, most of them
// where regions are large, are summed up in registers until the region ends.
//
// Of many labels at random most groups need no step and cost 4 passes through shared memory, two of them over
// random banks (some 3.5 cycles each); runs of 8 voxels cost 6 shuffles more. Labels come once for a block's
// channels, the blocks of one range run side by side; features once, 16 bytes a lane, those of the next tile
// while the warp works on this one. Order never changes, so results are the same bit for bit; counts are
// integers, added by the blocks of the first channels.
#include "region_pool_ranges.cuh"
#include "region_pool_sums.h"

namespace fastseg {
namespace {

constexpr int kVoxels = 1024, kGroups = kVoxels / 32;  // of a tile
constexpr int kMostWarps = 8;
constexpr int64_t kFewestRangeVoxels = 4096, kMostRangeVoxels = int64_t(1) << 20;

// A voxel's link, from the lowest bit on: its row of the table; the lane before it of the same row, and
// whether there is one; whether it is the row's last; and of its whole group how many steps bring all sums to
// the last lanes, or that it has but one row.
constexpr int kRowBits = 22, kStepsBit = 29;
constexpr uint32_t kHasBefore = 1u << 5, kLast = 1u << 28, kOneRow = 7;

// Blocks that shared memory lets a multiprocessor have, and registers without spilling.
constexpr int resident(int warps) { return warps == 8 ? 3 : warps == 4 ? 5 : 8; }

template <class T, int kWarps>
struct TableTile {
  static constexpr int kPieces = kVoxels / (32 * kLanes<T>);  // 16 bytes each, of a lane
  static constexpr int kOwnGroups = kGroups / kWarps;         // whose links a warp finds
  using Piece = Lanes<T, kLanes<T>>;

  T* values;        // (kWarps, kVoxels)
  uint32_t* links;  // (2, kVoxels): those of the next tile are written while others still read
  float* tables;    // (kWarps, num_regions + 1): the last row is of voxels that take no part

  static size_t bytes(int64_t num_regions) {
    return kWarps * kVoxels * sizeof(T) + 2 * kVoxels * sizeof(uint32_t) +
           kWarps * (num_regions + 1) * sizeof(float);
  }

  __device__ explicit TableTile(double* memory)
      : values(reinterpret_cast<T*>(memory)),
        links(reinterpret_cast<uint32_t*>(values + kWarps * kVoxels)),
        tables(reinterpret_cast<float*>(links + 2 * kVoxels)) {}
};

template <class T>
size_t table_bytes(int warps, int64_t num_regions) {
  switch (warps) {
    case 8:
      return TableTile<T, 8>::bytes(num_regions);
    case 4:
      return TableTile<T, 4>::bytes(num_regions);
    case 2:
      return TableTile<T, 2>::bytes(num_regions);
    default:
      return TableTile<T, 1>::bytes(num_regions);
  }
}

// What a block may have of the current device.
int64_t block_bytes() {
#if defined(FASTSEG_CUDA_EMULATION)
  return kProcessorBytes - kReservedBytes;
#else
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return 0;
  return bytes;
#endif
}

// How many channels a block takes; 0 if not even one fits.
template <class T>
int warps_of(const RegionLabels& in) {
  const int64_t most = block_bytes();
  int warps = kMostWarps;
  while (warps > 1 && warps / 2 >= in.channels) warps /= 2;
  while (warps > 0 && int64_t(table_bytes<T>(warps, in.num_regions)) > most) warps /= 2;
  return warps;
}

template <class T>
RangePlan make_table_plan(const RegionLabels& in) {
  RangePlan plan{};
  const int warps = warps_of<T>(in);
  plan.columns = warps;
  plan.groups = (in.channels + warps - 1) / warps;
  const int64_t bytes = table_bytes<T>(warps, in.num_regions) + kReservedBytes;
  const int64_t wave =
      kProcessors * std::max<int64_t>(1, std::min<int64_t>(resident(warps), kProcessorBytes / bytes));
  const int64_t others = std::max<int64_t>(1, in.batch * plan.groups);
  // Tables of a range are small beside its features.
  const int64_t most = std::min(in.voxels / kFewestRangeVoxels, in.voxels / (4 * in.num_regions));
  plan.partitions = std::max(
      {int64_t(1), std::min(wave / others, most), (in.voxels + kMostRangeVoxels - 1) / kMostRangeVoxels});
  plan.partition_voxels =
      ((in.voxels + plan.partitions - 1) / plan.partitions + kVoxels - 1) / kVoxels * kVoxels;
  plan.units = in.batch * plan.partitions * plan.groups;
  return plan;
}

// The link of each lane's voxel, of 32 voxels in all.
__device__ __forceinline__ uint32_t link_of(uint64_t label, int64_t num_regions, int64_t* counts) {
  const int lane = threadIdx.x % 32;
  const bool takes_part = label < uint64_t(num_regions);
  const uint32_t row = takes_part ? uint32_t(label) : uint32_t(num_regions);
  const unsigned same = __match_any_sync(kFull, row), before = same & ((1u << lane) - 1u);
  const bool last = takes_part && same >> lane == 1u;
  const int voxels = takes_part ? __popc(same) : 0;
  uint32_t steps = 0;
  while (steps < 5 && __any_sync(kFull, voxels > 1 << steps)) ++steps;
  if (same == kFull) steps = kOneRow;
  if (counts && last)
    atomicAdd(reinterpret_cast<unsigned long long*>(counts) + row, (unsigned long long)voxels);
  const uint32_t jump = before ? uint32_t(31 - __clz(int(before))) | kHasBefore : 0u;
  return row | jump << kRowBits | (last ? kLast : 0u) | steps << kStepsBit;
}

// Block: a range of voxels of a sample and kWarps channels, a warp each; a lane: every 32nd voxel.
template <class T, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, resident(kWarps))
    table_kernel(RegionLabels in, const T* features, RangePlan plan, bool vectors, float* sums,
                 int64_t* counts) {
  using Tile = TableTile<T, kWarps>;
  using Piece = typename Tile::Piece;
  extern __shared__ double memory[];
  const Tile tile(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned group = blockIdx.x % unsigned(plan.groups), range = blockIdx.x / unsigned(plan.groups);
  const int64_t sample = range / unsigned(plan.partitions), channel = int64_t(group) * kWarps + warp;
  const int64_t begin = range % unsigned(plan.partitions) * plan.partition_voxels;
  const int64_t end = begin + plan.partition_voxels < in.voxels ? begin + plan.partition_voxels : in.voxels;
  const bool active = channel < in.channels;
  const T* of_channel = features + (sample * in.channels + (active ? channel : 0)) * in.voxels;
  int64_t* const counted = group == 0 ? counts + sample * in.num_regions : nullptr;
  T* const values = tile.values + warp * kVoxels;
  const auto none = uint32_t(in.num_regions);
  float* const table = tile.tables + warp * (none + 1);
  for (uint32_t r = lane; r <= none; r += 32) table[r] = 0.0f;

  Piece pieces[Tile::kPieces];
  uint64_t labels[Tile::kOwnGroups];
  const auto whole = [&](int64_t start) { return active && vectors && start + kVoxels <= end; };
  const auto read = [&](int64_t start) {
    if (whole(start)) {
#pragma unroll
      for (int i = 0; i < Tile::kPieces; ++i)
        pieces[i] = *reinterpret_cast<const Piece*>(of_channel + start + (i * 32 + lane) * kLanes<T>);
    }
    read_labels(in, sample * in.voxels, start + warp * Tile::kOwnGroups * 32, end, labels);
  };
  read(begin);

  uint32_t current = none;
  float run = 0.0f;  // of a lane: what it has of `current`
  const auto end_run = [&] {
    if (current == none) return;
    for (int offset = 16; offset > 0; offset /= 2) run += __shfl_xor_sync(kFull, run, offset);
    if (lane == 0) table[current] += run;
    __syncwarp();  // another lane may be next at this entry
  };
  int half = 0;  // of the links
  for (int64_t start = begin; start < end; start += kVoxels, half ^= 1) {
    __syncwarp();  // all lanes are done with the values before
    if (whole(start)) {
#pragma unroll
      for (int i = 0; i < Tile::kPieces; ++i)
        *reinterpret_cast<Piece*>(values + (i * 32 + lane) * kLanes<T>) = pieces[i];
    } else {
      for (int v = lane; v < kVoxels; v += 32)
        values[v] = active && start + v < end ? of_channel[start + v] : from_real<T>(0.0f);
    }
    uint32_t* const links = tile.links + half * kVoxels;
#pragma unroll
    for (int i = 0; i < Tile::kOwnGroups; ++i)
      links[(warp * Tile::kOwnGroups + i) * 32 + lane] = link_of(labels[i], in.num_regions, counted);
    __syncthreads();  // values and links are in, and nobody reads those of the tile before
    if (start + kVoxels < end) read(start + kVoxels);
    if (!active) continue;
    uint32_t next_link = links[lane];
    T next_value = values[lane];
#pragma unroll 1
    for (unsigned v = 32 + lane; v < kVoxels + 32; v += 32) {
      const uint32_t link = next_link, steps = link >> kStepsBit, row = link & ((1u << kRowBits) - 1u);
      float value = to_real<float>(next_value);
      next_link = links[v % kVoxels];  // on its way while this group waits for its entries of the table
      next_value = values[v % kVoxels];
      if (steps == kOneRow) {
        if (row != current) {
          end_run();
          current = row;
          run = 0.0f;
        }
        run += value;
        continue;
      }
      end_run();
      current = none;
      uint32_t before = link >> kRowBits;
#pragma unroll 1
      for (uint32_t s = 0; s < steps; ++s) {
        const float other = __shfl_sync(kFull, value, int(before % 32));
        const uint32_t next = __shfl_sync(kFull, before, int(before % 32));
        if (before & kHasBefore) {
          value += other;
          before = next;
        }
      }
      if (link & kLast) table[row] += value;
      __syncwarp();  // another lane may be next at these entries
    }
  }
  end_run();
  __syncthreads();  // all tables are complete
  float* own = sums + int64_t(blockIdx.x) * in.num_regions * kWarps;
  for (int64_t i = threadIdx.x; i < in.num_regions * kWarps; i += kWarps * 32)
    own[i] = tile.tables[i % kWarps * (in.num_regions + 1) + i / kWarps];
}

template <class T, int kWarps>
cudaError_t launch_tables(const RegionLabels& in, const T* features, const RangePlan& plan, float* sums,
                          int64_t* counts, cudaStream_t stream) {
  const auto kernel = table_kernel<T, kWarps>;
  const size_t bytes = TableTile<T, kWarps>::bytes(in.num_regions);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (status != cudaSuccess) return status;
  const bool vectors = in.voxels % kLanes<T> == 0 && is_aligned(features);
  return launch(kernel, unsigned(plan.units), kWarps * 32, bytes, stream, in, features, plan, vectors, sums,
                counts);
}

template <class T>
cudaError_t pool(const RegionLabels& in, const void* values, bool mean, const RegionResults& results,
                 void* scratch, cudaStream_t stream) {
  const auto* features = static_cast<const T*>(values);
  const RangePlan plan = make_table_plan<T>(in);
  cudaError_t status =
      cudaMemsetAsync(results.count, 0, size_t(in.batch * in.num_regions) * sizeof(int64_t), stream);
  if (status != cudaSuccess || plan.units == 0) return status;
  auto* sums = static_cast<float*>(scratch);
  const auto run = plan.columns == 8   ? launch_tables<T, 8>
                   : plan.columns == 4 ? launch_tables<T, 4>
                   : plan.columns == 2 ? launch_tables<T, 2>
                                       : launch_tables<T, 1>;
  status = run(in, features, plan, sums, results.count, stream);
  if (status != cudaSuccess) return status;
  return merge_ranges(in, plan, mean, sums, nullptr, results, stream);
}

}  // namespace

bool takes_tables(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce) {
  return (reduce == RegionReduce::kSum || reduce == RegionReduce::kMean) && !in.channels_last &&
         features.kind != ScalarKind::kFloat64 && in.channels > 0 && in.num_regions < 1 << kRowBits &&
         with_short_type(features.kind, [&](auto type) { return warps_of<decltype(type)>(in) > 0; });
}

size_t table_scratch(const RegionLabels& in, const RegionFeatures& features) {
  return with_short_type(features.kind, [&](auto type) {
    const RangePlan plan = make_table_plan<decltype(type)>(in);
    return size_t(plan.units * plan.columns * in.num_regions) * sizeof(float);
  });
}

cudaError_t pool_tables(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce,
                        const RegionResults& results, void* scratch, cudaStream_t stream) {
  return with_short_type(features.kind, [&](auto type) {
    return pool<decltype(type)>(in, features.features, reduce == RegionReduce::kMean, results, scratch,
                                stream);
  });
}

}  // namespace fastseg
