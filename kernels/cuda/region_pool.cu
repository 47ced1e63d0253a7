// SPDX-License-Identifier: BSD-3-Clause
// region_pool on CUDA, forward. No float is ever added atomically: each table entry belongs to one warp
// (channels first) or one lane (channels last), so results are the same bit for bit, run after run. Channels
// first, a block takes a range of voxels and a group of channels, one warp per channel. Labels come into
// shared memory once for the group; a lane reads four voxels and merges equal neighbours in registers, lanes
// of equal label merge through shuffles, and what is left goes to the warp's own table in shared memory.
// Where even one channel's table does not fit there, warps work on their tables in global memory in the same
// way, over fewer ranges so that all tables stay small beside the features: slower, and as repeatable.
// Channels last, a warp takes 32 channels, adds up runs of voxels of one label in registers, lane by lane.
// A second kernel merges the tables of all ranges in order, in float64. Read per voxel: its features once.
#include "region_pool_count.cuh"
#include "region_pool_lanes.cuh"
#include "region_pool_stats.cuh"
#include "region_pool_sums.h"

namespace fastseg {
namespace {

constexpr int kTile = 1024;  // voxels whose labels lie in shared memory
constexpr int kMostWarps = 8;
constexpr size_t kSharedBytes =
    64 * 1024;                           // of a block's tables: three blocks fit on an H100, two on an A100
constexpr int64_t kUnits = 2048;         // blocks, to fill the largest GPUs several times
constexpr int64_t kFewestVoxels = 4096;  // of a range
constexpr int64_t kVoxelsPerRow = 4;     // tables stay below the size of the features

// Resident blocks a multiprocessor must hold: as many as the registers allow without spilling.
template <class Stat>
constexpr int kMinBlocks = sizeof(Stat) <= 8    ? 3
                           : sizeof(Stat) <= 32 ? 2
                                                : 1;

// Which ranges and groups there are, and where a table's entries lie: region r, channel c of the group at
// r * row_stride + c * lane_stride. Table u begins at u * num_regions * group.
struct Plan {
  int64_t partitions, partition_voxels, groups, units;
  int group;  // channels
  int64_t row_stride, lane_stride;
  bool shared, vectors;
};

template <class Stat, class T>
Plan make_plan(const RegionLabels& in, const void* features) {
  Plan plan{};
  plan.group = in.channels_last ? 32 : kMostWarps;
  const auto fits = [&] { return size_t(in.num_regions) * plan.group * sizeof(Stat) <= kSharedBytes; };
  while (!in.channels_last && plan.group > 1 && !fits()) plan.group /= 2;
  plan.shared = fits();
  if (!plan.shared && !in.channels_last) plan.group = kMostWarps;
  plan.groups = (in.channels + plan.group - 1) / plan.group;
  plan.partitions = region_partitions(in, in.batch * plan.groups, kUnits, kFewestVoxels, kVoxelsPerRow);
  plan.partition_voxels = ((in.voxels + plan.partitions - 1) / plan.partitions + kTile - 1) / kTile * kTile;
  plan.units = in.batch * plan.groups * plan.partitions;
  plan.row_stride = in.channels_last ? plan.group : 1;
  plan.lane_stride = in.channels_last ? 1 : in.num_regions;
  plan.vectors = in.voxels % kVector == 0 && is_aligned(features);
  return plan;
}

template <class Stat>
size_t table_bytes(const RegionLabels& in, const Plan& plan) {
  return (size_t(plan.units) * in.num_regions * plan.group * sizeof(Stat) + 7) / 8 * 8;
}

struct Unit {
  int64_t sample, group, begin, end;
};

__device__ __forceinline__ Unit unit_of(const RegionLabels& in, const Plan& plan, int64_t index) {
  const int64_t partition = index / plan.groups % plan.partitions;
  const int64_t begin = partition * plan.partition_voxels, end = begin + plan.partition_voxels;
  return {index / plan.groups / plan.partitions, index % plan.groups, begin,
          end < in.voxels ? end : in.voxels};
}

template <class T, class Stat, bool kShared>
__global__ void __launch_bounds__(kMostWarps * 32, kMinBlocks<Stat>)
    pool_kernel(RegionLabels in, const T* features, Plan plan, const unsigned long long* first,
                Stat* tables) {
  extern __shared__ double memory[];
  __shared__ uint32_t rows[kTile];
  const Unit unit = unit_of(in, plan, blockIdx.x);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t channel = unit.group * plan.group + warp;
  const bool active = channel < in.channels;
  Stat* own = tables + (int64_t(blockIdx.x) * plan.group + warp) * in.num_regions;
  Stat* table = kShared ? reinterpret_cast<Stat*>(memory) + int64_t(warp) * in.num_regions : own;
  for (int64_t r = lane; r < in.num_regions; r += 32) table[r] = Stat::none();
  __syncwarp();
  const T* channel_values = features + (unit.sample * in.channels + (active ? channel : 0)) * in.voxels;
  RealOf<T> shift = 0;
  if constexpr (Stat::kShifted) {
    if (active) shift = shift_of<RealOf<T>>(in, features, unit.sample, channel, first);
  }
  for (int64_t start = unit.begin; start < unit.end; start += kTile) {
    const int count = int(unit.end - start < kTile ? unit.end - start : kTile);
    __syncthreads();  // all warps are done with the rows of the tile before
    for (int v = threadIdx.x; v < count; v += blockDim.x)
      rows[v] = row_of(in, unit.sample * in.voxels + start + v);
    __syncthreads();  // the rows are in
    if (!active) continue;
    for (int step = 0; step < count; step += 32 * kVector) {
      add_voxels<Stat, T>(channel_values + start, rows, step + lane * kVector, count, plan.vectors, shift,
                          int(start - unit.begin), table);
    }
  }
  if constexpr (kShared) {
    for (int64_t r = lane; r < in.num_regions; r += 32) own[r] = table[r];
  }
}

template <class T, class Stat, bool kShared>
__global__ void __launch_bounds__(32)
    pool_channels_last_kernel(RegionLabels in, const T* features, Plan plan, const unsigned long long* first,
                              Stat* tables) {
  extern __shared__ double memory[];
  const Unit unit = unit_of(in, plan, blockIdx.x);
  const int lane = threadIdx.x;
  const int64_t channel = unit.group * 32 + lane;
  const bool active = channel < in.channels;
  Stat* own = tables + int64_t(blockIdx.x) * in.num_regions * 32 + lane;
  Stat* table = kShared ? reinterpret_cast<Stat*>(memory) + lane : own;
  for (int64_t r = 0; r < in.num_regions; ++r) table[r * 32] = Stat::none();
  const int64_t base = unit.sample * in.voxels;
  const T* values = features + base * in.channels + (active ? channel : 0);
  RealOf<T> shift = 0;
  if constexpr (Stat::kShifted) {
    if (active) shift = shift_of<RealOf<T>>(in, features, unit.sample, channel, first);
  }
  uint32_t current = kNone;
  Stat run = Stat::none();
  for (int64_t v = unit.begin; v < unit.end; v += kVector) {
    RealOf<T> value[kVector];
    uint32_t row[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {  // all loads are under way before the first is needed
      const bool inside = v + i < unit.end;
      row[i] = inside ? row_of(in, base + v + i) : kNone;
      value[i] = inside ? to_real<RealOf<T>>(values[(v + i) * in.channels]) : RealOf<T>(0);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (row[i] != current) {
        if (current != kNone) table[current * int64_t(32)].merge(run);
        run = Stat::none();
        current = row[i];
      }
      run.merge(stat_of<Stat, RealOf<T>>(value[i], shift, int(v - unit.begin) + i));
    }
  }
  if (current != kNone) table[current * int64_t(32)].merge(run);
  if constexpr (kShared) {
    for (int64_t r = 0; r < in.num_regions; ++r) own[r * 32] = table[r * 32];
  }
}

// One thread per region and channel.
template <class T, class Stat>
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(RegionLabels in, const T* features, Plan plan, RegionReduce reduce,
                 const unsigned long long* first, const Stat* tables, RegionResults results) {
  using Real = RealOf<T>;
  const int64_t index = int64_t(blockIdx.x) * kMergeThreads + threadIdx.x;
  if (index >= in.batch * in.channels * in.num_regions) return;
  const int64_t region = index % in.num_regions, channel = index / in.num_regions % in.channels;
  const int64_t sample = index / in.num_regions / in.channels;
  const int64_t group = channel / plan.group, lane = channel % plan.group;
  Totals totals{0, 0.0, 0.0, {0.0, 0.0}, {-1, -1}};
  for (int64_t partition = 0; partition < plan.partitions; ++partition) {
    const int64_t unit = (sample * plan.partitions + partition) * plan.groups + group;
    const Stat* table = tables + unit * in.num_regions * plan.group;
    table[region * plan.row_stride + lane * plan.lane_stride].add_to(totals,
                                                                     partition * plan.partition_voxels);
  }
  const int64_t row = sample * in.num_regions + region, at = row * in.channels + channel;
  const int64_t count = results.count[row];
  const double divisor = count > 0 && reduce != RegionReduce::kSum ? double(count) : 1.0;
  if (results.mean) {
    double shift = 0;
    if constexpr (Stat::kShifted) {
      if (count > 0) shift = double(shift_of<Real>(in, features, sample, channel, first));
    }
    static_cast<Real*>(results.mean)[at] = Real(shift + totals.sum / divisor);
  }
  if (results.variance) static_cast<Real*>(results.variance)[at] = Real(totals.squares / divisor);
  void* extremes[2] = {results.minimum, results.maximum};
  int64_t* arguments[2] = {results.argmin, results.argmax};
  for (int i = 0; i < 2; ++i) {
    if (!extremes[i]) continue;
    static_cast<Real*>(extremes[i])[at] = Real(totals.extreme[i]);
    arguments[i][at] = totals.argument[i];
  }
}

template <class T, class Stat>
cudaError_t pool(const RegionLabels& in, const void* values, RegionReduce reduce,
                 const RegionResults& results, void* scratch, cudaStream_t stream) {
  const auto* features = static_cast<const T*>(values);
  auto* tables = static_cast<Stat*>(scratch);
  const Plan plan = make_plan<Stat, T>(in, values);
  auto* first =
      reinterpret_cast<unsigned long long*>(static_cast<char*>(scratch) + table_bytes<Stat>(in, plan));
  const int64_t rows = in.batch * in.num_regions, entries = rows * in.channels;
  if (rows == 0) return cudaSuccess;
  cudaError_t status = cudaMemsetAsync(results.count, 0, rows * sizeof(int64_t), stream);
  if (status != cudaSuccess) return status;
  status = cudaMemsetAsync(first, 0xff, in.batch * sizeof *first, stream);  // beyond any voxel
  if (status != cudaSuccess) return status;
  if (in.voxels > 0) {
    const int64_t blocks = std::min<int64_t>((in.voxels + kMergeThreads - 1) / kMergeThreads, 256);
    status = launch(count_kernel, dim3(unsigned(blocks), unsigned(in.batch)), kMergeThreads, 0, stream, in,
                    reinterpret_cast<unsigned long long*>(results.count), first);
    if (status != cudaSuccess) return status;
  }
  const size_t bytes = plan.shared ? size_t(in.num_regions) * plan.group * sizeof(Stat) : 0;
  const auto kernel = in.channels_last
                          ? (plan.shared ? pool_channels_last_kernel<T, Stat, true>
                                         : pool_channels_last_kernel<T, Stat, false>)
                          : (plan.shared ? pool_kernel<T, Stat, true> : pool_kernel<T, Stat, false>);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kSharedBytes));
  if (status != cudaSuccess) return status;
  status = launch(kernel, unsigned(plan.units), in.channels_last ? 32 : plan.group * 32, bytes, stream, in,
                  features, plan, first, tables);
  if (status != cudaSuccess) return status;
  return launch(merge_kernel<T, Stat>, unsigned((entries + kMergeThreads - 1) / kMergeThreads), kMergeThreads,
                0, stream, in, features, plan, reduce, first, tables, results);
}

// Calls run with a value of the features' type and one of the statistic.
template <class Run>
auto with_stat(ScalarKind kind, RegionReduce reduce, Run run) {
  return with_type(kind, [&](auto type) {
    using T = decltype(type);
    using Real = RealOf<T>;
    switch (reduce) {
      case RegionReduce::kVariance:
        return run(type, MomentStat<Real>());
      case RegionReduce::kMin:
        return run(type, ExtremeStat<Real, false>());
      case RegionReduce::kMax:
        return run(type, ExtremeStat<Real, true>());
      case RegionReduce::kStats:
        return run(type, AllStat<Real>());
      default:
        return run(type, SumStat<Real>());
    }
  });
}

}  // namespace

size_t region_pool_scratch_cuda(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce) {
  if (takes_columns(in, features, reduce)) return column_scratch(in, features);
  if (takes_sorted(in, features, reduce)) return sorted_scratch(in, features);
  size_t bytes = 0;
  (void)with_stat(features.kind, reduce, [&](auto type, auto stat) {
    const Plan plan = make_plan<decltype(stat), decltype(type)>(in, features.features);
    bytes = table_bytes<decltype(stat)>(in, plan) + in.batch * sizeof(unsigned long long);
    return cudaSuccess;
  });
  return bytes;
}

cudaError_t region_pool_cuda(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce,
                             const RegionResults& results, void* scratch, cudaStream_t stream) {
  if (takes_columns(in, features, reduce))
    return pool_columns(in, features, reduce, results, scratch, stream);
  if (takes_sorted(in, features, reduce)) return pool_sorted(in, features, reduce, results, scratch, stream);
  return with_stat(features.kind, reduce, [&](auto type, auto stat) {
    return pool<decltype(type), decltype(stat)>(in, features.features, reduce, results, scratch, stream);
  });
}

}  // namespace fastseg
