// SPDX-License-Identifier: BSD-3-Clause
// Sums and means of more regions than region_pool_columns.cu takes, up to 2^20. Where many regions meet, all
// warps of a block must share one table, or there is no room for the warps that hide latency; and no two of
// them may touch one entry. So the voxels of a tile are sorted by region, once for all channels, and every
// thread takes eight of the sorted voxels: what goes on from thread to thread is brought to where the region
// ends, and only there an entry of the table is touched, once a tile.
//
// order_kernel sorts and writes a link of 4 bytes a voxel: where in the tile it lies, whether it is the first
// or the last of its region, and its row of the table. pool_kernel has a block for a channel and a range of
// regions whose table fits into shared memory: one range for some 53,000 regions on an H200. Two ranges take
// the features twice, the second time mostly from a cache, and the links in turn; tiles without a voxel of
// the range are skipped. A channel more, whose values are 1, is the count. merge_kernel adds up the
// partitions.
//
// Sums are float32 within a partition of at most 2^21 voxels, then float64; their order never changes, so
// results are the same bit for bit.
#include "region_pool_order.cuh"
#include "region_pool_sums.h"

namespace fastseg {
namespace {

constexpr int kAhead = 2;  // tiles on their way

// Block: the ranges of a channel side by side, then the channels, then the partitions of the samples.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    pool_kernel(RegionLabels in, const T* features, SortedPlan plan, bool vectors, const uint32_t* links,
                const uint32_t* begins, float* sums) {
  constexpr int kPieces = kTile / (kThreads * kLanes<T>);
  using Piece = Lanes<T, kLanes<T>>;
  using Links = Lanes<uint32_t, kOwn>;
  extern __shared__ double memory[];
  __shared__ uint32_t spans[kMostTiles];  // of the range in the sorted tiles: begin, and end << 16
  __shared__ float open[kWarps];          // what a warp has of the region that its last voxel is of
  __shared__ bool through[kWarps];        // which begins in an earlier warp
  T* const values = reinterpret_cast<T*>(memory);
  float* const table = reinterpret_cast<float*>(values + kTile);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t range = blockIdx.x % unsigned(plan.ranges), line = blockIdx.x / unsigned(plan.ranges);
  const int64_t channel = line % (in.channels + 1), partition = line / (in.channels + 1);
  const int64_t sample = partition / plan.partitions;
  const int64_t begin = partition % plan.partitions * plan.partition_tiles;
  const int64_t end = begin + plan.partition_tiles < plan.tiles ? begin + plan.partition_tiles : plan.tiles;
  const bool counts = channel == in.channels;
  const T* const of_channel = features + (sample * in.channels + (counts ? 0 : channel)) * in.voxels;
  for (int64_t r = threadIdx.x; r < plan.rows; r += kThreads) table[r] = 0.0f;
  for (int64_t t = begin + threadIdx.x; t < end; t += kThreads) {
    const uint32_t* of_tile = begins + (sample * plan.tiles + t) * (plan.ranges + 1) + range;
    spans[t - begin] = of_tile[0] | of_tile[1] << 16;
  }
  __syncthreads();  // table and spans are in

  Piece pieces[kAhead][kPieces];
  const auto whole = [&](int64_t tile) { return counts || (vectors && (tile + 1) * kTile <= in.voxels); };
  const auto read = [&](int64_t tile, Piece(&of_tile)[kPieces]) {
    if (counts || tile >= end || !whole(tile)) return;
    if (spans[tile - begin] % 65536 == spans[tile - begin] >> 16) return;
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      of_tile[i] = *reinterpret_cast<const Piece*>(of_channel + tile * kTile +
                                                   (i * kThreads + int(threadIdx.x)) * kLanes<T>);
  };
  const auto pool_tile = [&](int64_t tile, Piece(&of_tile)[kPieces]) {
    const uint32_t from = spans[tile - begin] % 65536, to = spans[tile - begin] >> 16;
    const uint32_t at = (from / kOwn + threadIdx.x) * kOwn;
    if (from == to) return read(tile + kAhead, of_tile);
    Links own{};
    if (at < to) own = *reinterpret_cast<const Links*>(links + (sample * plan.tiles + tile) * kTile + at);
    if (at < from || at + kOwn > to) {  // the neighbours are of another range, or of none
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (at + i < from || at + i >= to) own.value[i] &= ~kLast;
      }
    }
    if (whole(tile)) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        *reinterpret_cast<Piece*>(values + (i * kThreads + int(threadIdx.x)) * kLanes<T>) = of_tile[i];
    } else {
      for (int v = threadIdx.x; v < kTile; v += kThreads)
        values[v] = tile * kTile + v < in.voxels ? of_channel[tile * kTile + v] : from_real<T>(0.0f);
    }
    read(tile + kAhead, of_tile);
    __syncthreads();  // the values are in

    float value[kOwn];
    uint32_t any = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      value[i] = to_real<float>(values[own.value[i] >> kPlaceShift & (kTile - 1)]);
      any |= own.value[i];
    }
    float run = value[0];  // of the region of the thread's last voxel
#pragma unroll
    for (int i = 1; i < kOwn; ++i) run = own.value[i] & kFirst ? value[i] : run + value[i];
    const unsigned heads = __ballot_sync(kFull, any & kFirst);
    if (heads != kFull) {
      const unsigned up_to_here = heads & (kFull >> (31 - lane));
      const int start = up_to_here ? 31 - __clz(int(up_to_here)) : 0;
#pragma unroll
      for (int delta = 1; delta < 32; delta *= 2) {
        const float other = __shfl_up_sync(kFull, run, delta);
        if (lane - delta >= start) run += other;
      }
    }
    float carry = __shfl_up_sync(kFull, run, 1);  // of the region of the thread's first voxel
    if (lane == 0) carry = 0.0f;
    if (lane == 31) {
      open[warp] = run;
      through[warp] = heads == 0;
    }
    const bool goes_on = warp > 0 && !(__shfl_sync(kFull, own.value[0], 0) & kFirst);
    __syncthreads();  // all have read the values, and what is open is in

    if (goes_on) {
      const unsigned closed = __ballot_sync(kFull, lane < warp && !through[lane % kWarps]);
      float part = lane < warp && lane >= 31 - __clz(int(closed)) ? open[lane % kWarps] : 0.0f;
      for (int offset = kWarps / 2; offset > 0; offset /= 2) part += __shfl_xor_sync(kFull, part, offset);
      part = __shfl_sync(kFull, part, 0);
      if ((heads & ((1u << lane) - 1u)) == 0) carry += part;
    }
    run = carry;
#pragma unroll
    for (int i = 0; i < kOwn; i += 4) {
      float entries[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        entries[k] = own.value[i + k] & kLast ? table[own.value[i + k] >> kRowShift] : 0.0f;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t link = own.value[i + k];
        run = link & kFirst ? value[i + k] : run + value[i + k];
        if (link & kLast) table[link >> kRowShift] = entries[k] + run;
      }
    }
  };

#pragma unroll
  for (int ahead = 0; ahead < kAhead; ++ahead) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int k = 0; k < kLanes<T>; ++k) pieces[ahead][i].value[k] = from_real<T>(1.0f);
    }
    read(begin + ahead, pieces[ahead]);
  }
#pragma unroll 1
  for (int64_t first = begin; first < end; first += kAhead) {
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (first + ahead < end) pool_tile(first + ahead, pieces[ahead]);
    }
  }
  __syncthreads();  // the table is complete
  const int64_t first_region = range * plan.rows;
  for (int64_t r = threadIdx.x; r < plan.rows && first_region + r < in.num_regions; r += kThreads)
    sums[line * in.num_regions + first_region + r] = table[r];
}

// Block: 32 regions by 32 channels, read along the regions and written along the channels.
constexpr int kMergeWarps = 8;
__global__ void __launch_bounds__(32 * kMergeWarps)
    merge_kernel(RegionLabels in, SortedPlan plan, bool mean, const float* sums, RegionResults results) {
  __shared__ float turned[32][33];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t columns = (in.channels + 31) / 32, chunks = (in.num_regions + 31) / 32;
  const int64_t first_channel = blockIdx.x % columns * 32, first_region = blockIdx.x / columns % chunks * 32;
  const int64_t sample = blockIdx.x / columns / chunks, region = first_region + lane;
  const bool inside = region < in.num_regions;
  const auto sum_of = [&](int64_t channel) {
    double sum = 0;
    for (int64_t p = sample * plan.partitions; p < (sample + 1) * plan.partitions; ++p)
      sum += double(sums[(p * (in.channels + 1) + channel) * in.num_regions + region]);
    return sum;
  };
  const double count = inside ? sum_of(in.channels) : 0.0, divisor = mean && count > 0 ? count : 1.0;
  for (int c = warp; c < 32; c += kMergeWarps) {
    if (inside && first_channel + c < in.channels)
      turned[lane][c] = float(sum_of(first_channel + c) / divisor);
  }
  if (inside && first_channel == 0 && warp == 0)
    results.count[sample * in.num_regions + region] = int64_t(count);
  __syncthreads();                                                   // all sums are in
  if (!results.mean || first_channel + lane >= in.channels) return;  // of no channels there is no mean
  for (int r = warp; r < 32 && first_region + r < in.num_regions; r += kMergeWarps) {
    const int64_t row = sample * in.num_regions + first_region + r;
    static_cast<float*>(results.mean)[row * in.channels + first_channel + lane] = turned[r][lane];
  }
}

// What a block may have of the current device; under the emulation a small one.
int64_t block_bytes() {
#if defined(FASTSEG_CUDA_EMULATION)
  return 64 * 1024;
#else
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return 0;
  return bytes;
#endif
}

int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

SortedPlan make_plan(const RegionLabels& in, size_t value_bytes) {
  SortedPlan plan{};
  constexpr int64_t kRowBytes = sizeof(float);
  const int64_t others = int64_t(kTile * value_bytes) + kMostTiles * 4 + kWarps * 8;  // beside the table
  const int64_t most_rows = std::min((block_bytes() - others) / kRowBytes, int64_t(1) << (32 - kRowShift));
  plan.ranges = ceil_of(in.num_regions, std::max<int64_t>(1, most_rows));
  plan.rows = ceil_of(in.num_regions, plan.ranges);
  plan.tiles = ceil_of(in.voxels, kTile);
  const bool two_fit = 2 * (others + plan.rows * kRowBytes + kReservedBytes) <= kProcessorBytes;
  const int64_t lines = std::max<int64_t>(1, in.batch * (in.channels + 1) * plan.ranges);
  const int64_t wave = kProcessors * (two_fit ? 2 : 1) / lines;
  plan.partitions = std::max({int64_t(1), ceil_of(plan.tiles, kMostTiles),
                              std::min(wave, in.voxels / in.num_regions)});  // tables stay below features
  plan.partition_tiles = ceil_of(plan.tiles, plan.partitions);
  return plan;
}

struct Scratch {
  uint32_t *links, *begins;
  float* sums;
  size_t bytes;

  Scratch(const RegionLabels& in, const SortedPlan& plan, void* scratch) {
    const int64_t tiles = in.batch * plan.tiles;
    links = static_cast<uint32_t*>(scratch);
    begins = links + tiles * kTile;
    sums = reinterpret_cast<float*>(begins + tiles * (plan.ranges + 1));
    const int64_t entries = in.batch * plan.partitions * (in.channels + 1) * in.num_regions;
    bytes = size_t(tiles * (kTile + plan.ranges + 1) + entries) * sizeof(float);
  }
};

template <class T>
cudaError_t pool(const RegionLabels& in, const void* values, bool mean, const RegionResults& results,
                 void* scratch, cudaStream_t stream) {
  const SortedPlan plan = make_plan(in, sizeof(T));
  if (in.batch == 0) return cudaSuccess;
  const Scratch of(in, plan, scratch);
  cudaError_t status = cudaSuccess;
  if (plan.tiles > 0) {
    status = launch(order_kernel, unsigned(in.batch * plan.tiles), kThreads, 0, stream, in, plan, of.links,
                    of.begins);
    if (status != cudaSuccess) return status;
  }
  const auto* features = static_cast<const T*>(values);
  const size_t bytes = kTile * sizeof(T) + plan.rows * sizeof(float);
  const auto kernel = pool_kernel<T>;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (status != cudaSuccess) return status;
  const bool vectors = in.voxels % kLanes<T> == 0 && is_aligned(features);
  const int64_t blocks = in.batch * plan.partitions * (in.channels + 1) * plan.ranges;
  status = launch(kernel, unsigned(blocks), kThreads, bytes, stream, in, features, plan, vectors, of.links,
                  of.begins, of.sums);
  if (status != cudaSuccess) return status;
  const int64_t merged = in.batch * ceil_of(in.num_regions, 32) * ceil_of(in.channels, 32);
  return launch(merge_kernel, unsigned(merged), 32 * kMergeWarps, 0, stream, in, plan, mean, of.sums,
                results);
}

}  // namespace

bool takes_sorted(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce) {
  return (reduce == RegionReduce::kSum || reduce == RegionReduce::kMean) && !in.channels_last &&
         features.kind != ScalarKind::kFloat64 && in.channels > 0 &&
         in.num_regions < int64_t(1) << (32 - kPlaceBits);
}

size_t sorted_scratch(const RegionLabels& in, const RegionFeatures& features) {
  return with_short_type(features.kind,
                         [&](auto type) { return Scratch(in, make_plan(in, sizeof(type)), nullptr).bytes; });
}

cudaError_t pool_sorted(const RegionLabels& in, const RegionFeatures& features, RegionReduce reduce,
                        const RegionResults& results, void* scratch, cudaStream_t stream) {
  return with_short_type(features.kind, [&](auto type) {
    return pool<decltype(type)>(in, features.features, reduce == RegionReduce::kMean, results, scratch,
                                stream);
  });
}

}  // namespace fastseg
