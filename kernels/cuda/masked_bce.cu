// SPDX-License-Identifier: BSD-3-Clause
// masked_bce on CUDA: one launch forward, one backward, nothing stored per voxel between them. Bytes per
// voxel with bfloat16 logits and uint8 target and mask: 4 read forward, 4 read and 2 written backward.
// docs/kernel_budget.md has the instructions per voxel.
#include "../cuda_utils.cuh"
#include "../masked_bce.h"
#include "../masked_bce_math.h"
#include "last_block.cuh"
#include "masked_bce_voxels.cuh"

namespace fastseg {
namespace {

template <class T>
constexpr bool kQuick = sizeof(T) == 2;

// Resident blocks a multiprocessor must hold: as many as the registers allow without spilling.
template <class Target, bool kScaled>
constexpr int kMinBlocks = std::is_same_v<Target, uint8_t> && !kScaled ? 4 : 2;

// What one thread adds up: at most 32 voxels.
template <class T>
struct SumBody {
  using Real = RealOf<T>;
  Real loss[2], weight[2];
  int count[2];

  template <class Target, int kCount>
  __device__ __forceinline__ void operator()(int64_t, Voxels<Real, Target, kCount>& voxels, bool) {
    for (int source = 0; source < 2; ++source) {
      for (uint32_t flags : voxels.source[source]) count[source] += __popc(flags);
    }
    for (int i = 0; i < kCount; ++i) {
      const Real value =
          voxels.weight[i] * bce_loss<kQuick<T>>(voxels.logit[i], voxels.target[i], voxels.pos_weight[i]);
      for (int source = 0; source < 2; ++source) {
        if (!voxels.is(source, i)) continue;  // left out, not multiplied: 0 * NaN is NaN
        loss[source] += value;
        weight[source] += voxels.weight[i];
      }
    }
  }
};

// Real over the lanes of a warp, that is over at most 1024 voxels, float64 beyond.
template <class T, bool kScaled>
__device__ __forceinline__ MaskedBceSums sum_over_block(SumBody<T>& body) {
  __shared__ MaskedBceSums of_warp[kThreads / 32];
  MaskedBceSums sums{};
  for (int source = 0; source < 2; ++source) {
    body.count[source] = __reduce_add_sync(0xffffffffu, body.count[source]);
    for (int offset = 16; offset > 0; offset /= 2) {
      body.loss[source] += __shfl_xor_sync(0xffffffffu, body.loss[source], offset);
      if constexpr (kScaled) body.weight[source] += __shfl_xor_sync(0xffffffffu, body.weight[source], offset);
    }
    sums.loss[source] = body.loss[source];
    sums.count[source] = body.count[source];
    sums.weight[source] = kScaled ? double(body.weight[source]) : sums.count[source];
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sums;
  __syncthreads();  // every warp's sums are in
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / 32; ++warp) sums += of_warp[warp];
  }
  return sums;  // of thread 0
}

// The sum of parts[0 .. count), in thread 0. Which thread adds which depends on their numbers alone.
__device__ __forceinline__ MaskedBceSums sum_parts(const MaskedBceSums* parts, uint32_t count) {
  __shared__ MaskedBceSums of_thread[kThreads];
  MaskedBceSums sums{};
  for (uint32_t part = threadIdx.x; part < count; part += kThreads) sums += parts[part];
  of_thread[threadIdx.x] = sums;
  for (int many = kThreads / 2; many > 0; many /= 2) {
    __syncthreads();  // the other half is in
    if (threadIdx.x < many) of_thread[threadIdx.x] += of_thread[threadIdx.x + many];
  }
  return threadIdx.x == 0 ? of_thread[0] : sums;
}

// Blocks are added up by groups, and groups by the last of all blocks; see last_block.cuh. A group is large
// enough that one counter a group, and one for the groups, will do.
struct Groups {
  uint32_t blocks, size, number;

  static Groups of(int64_t blocks) {
    const int64_t size = std::max<int64_t>(1024, (blocks + kCounters - 2) / (kCounters - 1));
    return {uint32_t(blocks), uint32_t(size), uint32_t((blocks + size - 1) / size)};
  }
};

template <class T, class Target, bool kScaled>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Target, kScaled>)
    sum_kernel(MaskedBceInputs in, Walk walk, Groups groups, BceNormalize normalize, MaskedBceSums* parts,
               unsigned* counters, RealOf<T>* loss, double* stats) {
  SumBody<T> body{};
  visit_all<T, Target, kScaled>(in, walk, body);
  MaskedBceSums sums = sum_over_block<T, kScaled>(body);
  if (threadIdx.x == 0) parts[blockIdx.x] = sums;
  const uint32_t group = blockIdx.x / groups.size, begin = group * groups.size;
  const uint32_t members = min(groups.size, groups.blocks - begin);
  if (!is_last_block(counters + 1 + group, members)) return;
  sums = sum_parts(parts + begin, members);
  if (groups.number > 1) {
    MaskedBceSums* of_group = parts + groups.blocks;
    if (threadIdx.x == 0) of_group[group] = sums;
    if (!is_last_block(counters, groups.number)) return;
    sums = sum_parts(of_group, groups.number);
  }
  if (threadIdx.x == 0) {
    *loss = RealOf<T>(finish_masked_bce(sums, in.numel(), in.pseudo_weight, normalize, stats));
  }
}

// What the kernels write for each voxel: factor[source] * weight * (l or dl/dz), and 0 for the others. A
// factor of 0 takes a source out, whatever it holds.
template <class T, bool kGradient>
struct WriteBody {
  using Real = RealOf<T>;
  T* out;
  const T* grad_map;  // null: 1
  Real factor[2];
  uint32_t takes[2];  // bits of the sources: all or none

  template <class Target, int kCount>
  __device__ __forceinline__ void operator()(int64_t element, Voxels<Real, Target, kCount>& voxels,
                                             bool inside) {
    Real grad[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) grad[i] = Real(1);
    if (grad_map) read_lanes<Real, T>(grad_map, element, grad);
#pragma unroll
    for (int i = 0; i < voxels.kWords; ++i) {
      voxels.source[0][i] &= takes[0];
      voxels.source[1][i] &= takes[1];
    }
    Lanes<T, kCount> lanes;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Real value = grad[i] * voxels.weight[i] * (voxels.is(0, i) ? factor[0] : factor[1]);
      if constexpr (kGradient) {
        value *= bce_gradient<kQuick<T>>(voxels.logit[i], voxels.target[i], voxels.pos_weight[i]);
      } else {
        value *= bce_loss<kQuick<T>>(voxels.logit[i], voxels.target[i], voxels.pos_weight[i]);
      }
      lanes.value[i] = from_real<T>(voxels.is(0, i) || voxels.is(1, i) ? value : Real(0));
    }
    if (inside) write_lanes(lanes, out, element);
  }
};

template <class T, class Target, bool kScaled>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Target, kScaled>)
    map_kernel(MaskedBceInputs in, Walk walk, T* loss_map) {
  WriteBody<T, false> body{
      loss_map, nullptr, {1, RealOf<T>(in.pseudo_weight)}, {~0u, in.pseudo_weight != 0 ? ~0u : 0u}};
  visit_all<T, Target, kScaled>(in, walk, body);
}

template <class T, class Target, bool kScaled>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Target, kScaled>)
    gradient_kernel(MaskedBceInputs in, Walk walk, MaskedBceUpstream upstream, T* grad_logits) {
  using Real = RealOf<T>;
  const double scale[2] = {upstream.scale ? upstream.scale[0] : 1.0,
                           upstream.scale ? upstream.scale[1] : in.pseudo_weight};
  const Real grad = upstream.grad_is_map ? Real(1) : *static_cast<const Real*>(upstream.grad);
  const T* grad_map = upstream.grad_is_map ? static_cast<const T*>(upstream.grad) : nullptr;
  WriteBody<T, true> body{grad_logits,
                          grad_map,
                          {grad * Real(scale[0]), grad * Real(scale[1])},
                          {scale[0] != 0 ? ~0u : 0u, scale[1] != 0 ? ~0u : 0u}};
  visit_all<T, Target, kScaled>(in, walk, body);
}

}  // namespace

int64_t masked_bce_scratch_cuda(const MaskedBceInputs& in) {
  // Counters, then the parts of the blocks: at least kSingles elements a thread, and of the groups of blocks.
  const int64_t blocks = in.numel() / (kThreads * kSingles) + 2;
  return kCountersBytes + (blocks + kCounters) * int64_t(sizeof(MaskedBceSums));
}

cudaError_t masked_bce_forward_cuda(const MaskedBceInputs& in, BceNormalize normalize, void* scratch,
                                    void* loss, double* stats, cudaStream_t stream) {
  return with_voxel_types(in, [&](auto logit, auto target, auto scaled) {
    using T = decltype(logit);
    using Target = decltype(target);
    const Walk walk = make_walk<T, Target>(in, nullptr, nullptr);
    const Groups groups = Groups::of(std::max<int64_t>(1, blocks_of<T, scaled.value>(walk)));
    unsigned* counters = nullptr;
    const cudaError_t status = counters_for(stream, scratch, &counters);
    if (status != cudaSuccess) return status;
    void* parts = static_cast<char*>(scratch) + kCountersBytes;
    return launch(sum_kernel<T, Target, scaled.value>, unsigned(groups.blocks), kThreads, 0, stream, in, walk,
                  groups, normalize, static_cast<MaskedBceSums*>(parts), counters,
                  static_cast<RealOf<T>*>(loss), stats);
  });
}

cudaError_t masked_bce_map_cuda(const MaskedBceInputs& in, void* loss_map, cudaStream_t stream) {
  return with_voxel_types(in, [&](auto logit, auto target, auto scaled) {
    using T = decltype(logit);
    const Walk walk = make_walk<T, decltype(target)>(in, loss_map, nullptr);
    const int64_t blocks = blocks_of<T, scaled.value>(walk);
    if (blocks == 0) return cudaSuccess;
    return launch(map_kernel<T, decltype(target), scaled.value>, unsigned(blocks), kThreads, 0, stream, in,
                  walk, static_cast<T*>(loss_map));
  });
}

cudaError_t masked_bce_backward_cuda(const MaskedBceInputs& in, const MaskedBceUpstream& upstream,
                                     void* grad_logits, cudaStream_t stream) {
  return with_voxel_types(in, [&](auto logit, auto target, auto scaled) {
    using T = decltype(logit);
    const Walk walk =
        make_walk<T, decltype(target)>(in, grad_logits, upstream.grad_is_map ? upstream.grad : nullptr);
    const int64_t blocks = blocks_of<T, scaled.value>(walk);
    if (blocks == 0) return cudaSuccess;
    return launch(gradient_kernel<T, decltype(target), scaled.value>, unsigned(blocks), kThreads, 0, stream,
                  in, walk, upstream, static_cast<T*>(grad_logits));
  });
}

}  // namespace fastseg
