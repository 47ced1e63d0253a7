// SPDX-License-Identifier: BSD-3-Clause
// masked_bce on CUDA: one pass over the voxels forward, one backward, nothing stored per voxel between them.
// Bytes per voxel with bfloat16 logits and uint8 target and mask: 4 read forward, 4 read and 2 written
// backward.
#include "../cuda_utils.cuh"
#include "../masked_bce.h"
#include "../masked_bce_math.h"
#include "masked_bce_voxels.cuh"

namespace fastseg {
namespace {

// Resident blocks a multiprocessor must hold: as many as the registers allow without spilling.
template <bool kWeighted>
constexpr int kMinBlocks = kWeighted ? 2 : 3;

// Sums in Real over a tile (32 elements a thread at most where accesses are aligned), in float64 beyond.
template <class Real, bool kWeighted>
struct SumBody {
  Real loss[2], weight[2];
  unsigned count[2];
  double loss_sum[2], weight_sum[2];

  template <int kCount>
  __device__ __forceinline__ void operator()(int64_t, const Voxels<Real, kCount>& voxels) {
    for (int i = 0; i < kCount; ++i) {
      const Real value = voxels.weight[i] * bce_loss(voxels.logits[i], voxels.target[i], voxels.pos_weight);
      for (int source = 0; source < 2; ++source) {
        const bool taken = voxels.source.value[i] == source + 1;
        loss[source] += taken ? value : Real(0);  // selected, not multiplied: 0 * NaN is NaN
        if constexpr (kWeighted) weight[source] += taken ? voxels.weight[i] : Real(0);
        count[source] += taken;
      }
    }
  }

  __device__ __forceinline__ void end_tile() {
    for (int source = 0; source < 2; ++source) {
      loss_sum[source] += loss[source];
      loss[source] = 0;
      if constexpr (kWeighted) {
        weight_sum[source] += weight[source];
        weight[source] = 0;
      }
    }
  }
};

__device__ __forceinline__ MaskedBceSums sum_over_block(double (&sums)[6]) {
  block_sum<kThreads>(sums);
  return {{sums[0], sums[1]}, {sums[2], sums[3]}, {sums[4], sums[5]}};
}

template <class T, bool kWeighted>
__global__ void __launch_bounds__(kThreads, kMinBlocks<kWeighted>)
    sum_kernel(MaskedBceInputs in, Tiling tiling, MaskedBceSums* partials) {
  SumBody<RealOf<T>, kWeighted> body{};
  visit_all<T, kWeighted>(in, tiling, body);
  const double count[2] = {double(body.count[0]), double(body.count[1])};
  const double* weight = kWeighted ? body.weight_sum : count;
  double sums[6] = {body.loss_sum[0], body.loss_sum[1], weight[0], weight[1], count[0], count[1]};
  const MaskedBceSums total = sum_over_block(sums);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// One block adds the partial sums in a fixed order.
template <class Real>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const MaskedBceSums* partials, int blocks, int64_t numel, double pseudo_weight,
                  BceNormalize normalize, Real* loss, double* stats) {
  double sums[6] = {};
  for (int block = threadIdx.x; block < blocks; block += kThreads) {
    for (int source = 0; source < 2; ++source) {
      sums[source] += partials[block].loss[source];
      sums[2 + source] += partials[block].weight[source];
      sums[4 + source] += partials[block].count[source];
    }
  }
  const MaskedBceSums total = sum_over_block(sums);
  if (threadIdx.x == 0) {
    *loss = Real(finish_masked_bce(total, numel, pseudo_weight, normalize, stats));
  }
}

template <class T>
struct MapBody {
  using Real = RealOf<T>;
  T* loss_map;
  Real pseudo_weight;
  int pseudo_code;

  template <int kCount>
  __device__ __forceinline__ void operator()(int64_t element, const Voxels<Real, kCount>& voxels) {
    Lanes<T, kCount> out;
    for (int i = 0; i < kCount; ++i) {
      const Real value = voxels.weight[i] * bce_loss(voxels.logits[i], voxels.target[i], voxels.pos_weight);
      const Real pseudo = voxels.source.value[i] == pseudo_code ? pseudo_weight * value : Real(0);
      out.value[i] = from_real<T>(voxels.source.value[i] == 1 ? value : pseudo);
    }
    *reinterpret_cast<Lanes<T, kCount>*>(loss_map + element) = out;
  }
  __device__ __forceinline__ void end_tile() {}
};

template <class T, bool kWeighted>
__global__ void __launch_bounds__(kThreads, kMinBlocks<kWeighted>)
    map_kernel(MaskedBceInputs in, Tiling tiling, T* loss_map) {
  // A weight of 0 takes the pseudo-labelled voxels out, whatever they hold.
  MapBody<T> body{loss_map, RealOf<T>(in.pseudo_weight), in.pseudo_weight != 0 ? 2 : -1};
  visit_all<T, kWeighted>(in, tiling, body);
}

template <class T>
struct GradientBody {
  using Real = RealOf<T>;
  const T* grad_map;
  T* grad_logits;
  Real factor[2];
  int code[2];

  template <int kCount>
  __device__ __forceinline__ void operator()(int64_t element, const Voxels<Real, kCount>& voxels) {
    Real grad[kCount];
    for (int i = 0; i < kCount; ++i) grad[i] = Real(1);
    if (grad_map) read_lanes<Real, T>(grad_map, element, grad);
    Lanes<T, kCount> out;
    for (int i = 0; i < kCount; ++i) {
      const Real value =
          grad[i] * voxels.weight[i] * bce_gradient(voxels.logits[i], voxels.target[i], voxels.pos_weight);
      const Real pseudo = voxels.source.value[i] == code[1] ? factor[1] * value : Real(0);
      out.value[i] = from_real<T>(voxels.source.value[i] == code[0] ? factor[0] * value : pseudo);
    }
    *reinterpret_cast<Lanes<T, kCount>*>(grad_logits + element) = out;
  }
  __device__ __forceinline__ void end_tile() {}
};

template <class T, bool kWeighted>
__global__ void __launch_bounds__(kThreads, kMinBlocks<kWeighted>)
    gradient_kernel(MaskedBceInputs in, Tiling tiling, MaskedBceUpstream upstream, T* grad_logits) {
  using Real = RealOf<T>;
  const double scale[2] = {upstream.scale ? upstream.scale[0] : 1.0,
                           upstream.scale ? upstream.scale[1] : in.pseudo_weight};
  const Real grad = upstream.grad_is_map ? Real(1) : *static_cast<const Real*>(upstream.grad);
  const T* grad_map = upstream.grad_is_map ? static_cast<const T*>(upstream.grad) : nullptr;
  // A scale of 0 takes a source out, whatever it holds.
  GradientBody<T> body{grad_map,
                       grad_logits,
                       {grad * Real(scale[0]), grad * Real(scale[1])},
                       {scale[0] != 0 ? 1 : -1, scale[1] != 0 ? 2 : -1}};
  visit_all<T, kWeighted>(in, tiling, body);
}

cudaError_t grid_for(const Tiling& tiling, int* blocks) {
  const cudaError_t status = resident_blocks(kBlocksPerProcessor, blocks);
  *blocks = int(std::min<int64_t>({tiling.tiles, *blocks, kMaskedBceMaxBlocks}));
  return status;
}

template <class T>
cudaError_t forward(const MaskedBceInputs& in, BceNormalize normalize, MaskedBceSums* partials, void* loss,
                    double* stats, cudaStream_t stream) {
  const Tiling tiling = make_tiling<T>(in, nullptr);
  int blocks = 0;
  cudaError_t status = grid_for(tiling, &blocks);
  if (status != cudaSuccess) return status;
  if (blocks > 0)
    status = launch(in.weight ? sum_kernel<T, true> : sum_kernel<T, false>, blocks, kThreads, 0, stream, in,
                    tiling, partials);
  if (status != cudaSuccess) return status;
  return launch(finish_kernel<RealOf<T>>, 1, kThreads, 0, stream, partials, blocks, in.numel(),
                in.pseudo_weight, normalize, static_cast<RealOf<T>*>(loss), stats);
}

template <class T>
cudaError_t map(const MaskedBceInputs& in, void* loss_map, cudaStream_t stream) {
  const Tiling tiling = make_tiling<T>(in, loss_map);
  int blocks = 0;
  const cudaError_t status = grid_for(tiling, &blocks);
  if (status != cudaSuccess || blocks == 0) return status;
  return launch(in.weight ? map_kernel<T, true> : map_kernel<T, false>, blocks, kThreads, 0, stream, in,
                tiling, static_cast<T*>(loss_map));
}

template <class T>
cudaError_t backward(const MaskedBceInputs& in, const MaskedBceUpstream& upstream, void* grad_logits,
                     cudaStream_t stream) {
  Tiling tiling = make_tiling<T>(in, grad_logits);
  if (upstream.grad_is_map) tiling.vectors = tiling.vectors && is_aligned(upstream.grad);
  int blocks = 0;
  const cudaError_t status = grid_for(tiling, &blocks);
  if (status != cudaSuccess || blocks == 0) return status;
  return launch(in.weight ? gradient_kernel<T, true> : gradient_kernel<T, false>, blocks, kThreads, 0, stream,
                in, tiling, upstream, static_cast<T*>(grad_logits));
}

}  // namespace

cudaError_t masked_bce_forward_cuda(const MaskedBceInputs& in, BceNormalize normalize,
                                    MaskedBceSums* partials, void* loss, double* stats, cudaStream_t stream) {
  return with_type(in.logits_kind, [&](auto type) {
    return forward<decltype(type)>(in, normalize, partials, loss, stats, stream);
  });
}

cudaError_t masked_bce_map_cuda(const MaskedBceInputs& in, void* loss_map, cudaStream_t stream) {
  return with_type(in.logits_kind, [&](auto type) { return map<decltype(type)>(in, loss_map, stream); });
}

cudaError_t masked_bce_backward_cuda(const MaskedBceInputs& in, const MaskedBceUpstream& upstream,
                                     void* grad_logits, cudaStream_t stream) {
  return with_type(in.logits_kind,
                   [&](auto type) { return backward<decltype(type)>(in, upstream, grad_logits, stream); });
}

}  // namespace fastseg
