// SPDX-License-Identifier: BSD-3-Clause
// How the CUDA kernels of masked_bce walk over the voxels: which thread reads what, of any dtype and layout.
#pragma once

#include "../cuda_utils.cuh"
#include "../masked_bce.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorsPerThread = 4;  // in a full tile
constexpr int kBlocksPerProcessor = 8;

template <class T>
constexpr int kLanes = 16 / sizeof(T);

// Elements are cut into rows, and rows into tiles of which a block takes every gridDim-th. Where channels
// share the mask, the weight or a pos_weight, a row is one channel of one sample, else all there is. Within a
// tile, thread t takes the vectors t, t + kThreads, ... and then the elements after the last whole vector.
struct Tiling {
  int64_t row_length, tile_length, tiles_per_row, tiles;
  bool share_mask, share_weight;
  bool interleaved;  // channels last and something shared: its index is element / channels
  bool vectors;      // 16-byte accesses are aligned in every row
};

template <class T>
Tiling make_tiling(const MaskedBceInputs& in, const void* map) {
  Tiling tiling{};
  tiling.share_mask = in.mask && !in.mask_per_channel;
  tiling.share_weight = in.weight && !in.weight_per_channel;
  const bool shared = tiling.share_mask || tiling.share_weight || in.pos_weight;
  tiling.interleaved = shared && in.inner == 1;
  const bool one_row = !shared || tiling.interleaved;
  tiling.row_length = one_row ? in.numel() : in.inner;
  tiling.tile_length = int64_t(kThreads) * kVectorsPerThread * kLanes<T>;
  tiling.tiles_per_row = (tiling.row_length + tiling.tile_length - 1) / tiling.tile_length;
  tiling.tiles = in.numel() == 0 ? 0 : in.numel() / tiling.row_length * tiling.tiles_per_row;
  tiling.vectors = !tiling.interleaved && (one_row || in.inner % kLanes<T> == 0) && is_aligned(in.logits) &&
                   is_aligned(in.target) && is_aligned(in.mask) && is_aligned(in.weight) && is_aligned(map);
  return tiling;
}

__device__ __forceinline__ int64_t quotient(int64_t index, int64_t divisor) {
  // 64-bit division takes about 100 instructions, 32-bit division 20.
  return (index | divisor) >> 32 ? index / divisor : int64_t(uint32_t(index) / uint32_t(divisor));
}

template <class Real, class T, int kCount>
__device__ __forceinline__ void read_lanes(const void* values, int64_t at, Real (&out)[kCount]) {
  const auto lanes = *reinterpret_cast<const Lanes<T, kCount>*>(static_cast<const T*>(values) + at);
  for (int i = 0; i < kCount; ++i) out[i] = to_real<Real>(lanes.value[i]);
}

template <int kCount>
__device__ __forceinline__ Lanes<uint8_t, kCount> read_bytes(const void* values, int64_t at) {
  return *reinterpret_cast<const Lanes<uint8_t, kCount>*>(static_cast<const uint8_t*>(values) + at);
}

// The kind is the same for all threads, so the switch does not diverge.
template <class Real, int kCount>
__device__ __forceinline__ void read_values(const void* values, ScalarKind kind, int64_t at,
                                            Real (&out)[kCount]) {
  switch (kind) {
    case ScalarKind::kUint8: {
      const auto bytes = read_bytes<kCount>(values, at);
      for (int i = 0; i < kCount; ++i) out[i] = bytes.value[i] != 0 ? Real(1) : Real(0);
      break;
    }
    case ScalarKind::kFloat32:
      read_lanes<Real, float>(values, at, out);
      break;
    case ScalarKind::kFloat64:
      read_lanes<Real, double>(values, at, out);
      break;
    case ScalarKind::kBFloat16:
      read_lanes<Real, __nv_bfloat16>(values, at, out);
      break;
    case ScalarKind::kFloat16:
      read_lanes<Real, __half>(values, at, out);
      break;
  }
}

// kCount consecutive elements: what a kernel's body works on.
template <class Real, int kCount>
struct Voxels {
  Real logits[kCount], target[kCount], weight[kCount], pos_weight;
  Lanes<uint8_t, kCount> source;
};

// kWeighted: whether there is a weight map. Without one the kernels need fewer registers.
template <class T, bool kWeighted, int kCount, class Body>
__device__ __forceinline__ void visit(const MaskedBceInputs& in, const Tiling& tiling, int64_t element,
                                      int64_t shared, int64_t channel, Body& body) {
  using Real = RealOf<T>;
  if (tiling.interleaved) {
    shared = quotient(element, in.channels);
    channel = element - shared * in.channels;
  }
  Voxels<Real, kCount> voxels;
  read_lanes<Real, T>(in.logits, element, voxels.logits);
  read_values(in.target, in.target_kind, element, voxels.target);
  for (int i = 0; i < kCount; ++i) {
    voxels.source.value[i] = 1;
    voxels.weight[i] = Real(1);
  }
  if (in.mask) voxels.source = read_bytes<kCount>(in.mask, tiling.share_mask ? shared : element);
  if constexpr (kWeighted) {
    read_values(in.weight, in.weight_kind, tiling.share_weight ? shared : element, voxels.weight);
  }
  voxels.pos_weight = in.pos_weight ? static_cast<const Real*>(in.pos_weight)[channel] : Real(1);
  body(element, voxels);
}

template <class T, bool kWeighted, class Body>
__device__ __forceinline__ void visit_all(const MaskedBceInputs& in, const Tiling& tiling, Body& body) {
  for (int64_t tile = blockIdx.x; tile < tiling.tiles; tile += gridDim.x) {
    const int64_t row = quotient(tile, tiling.tiles_per_row);
    const int64_t start = (tile - row * tiling.tiles_per_row) * tiling.tile_length;
    const int64_t outer = quotient(row, in.channels);
    const int64_t channel = row - outer * in.channels;
    const int64_t element = row * tiling.row_length + start;
    const int64_t shared = outer * in.inner + start;
    const int64_t left = tiling.row_length - start;
    const int length = int(left < tiling.tile_length ? left : tiling.tile_length);
    const int vector_end = tiling.vectors ? length / kLanes<T> * kLanes<T> : 0;
#pragma unroll 1
    for (int at = threadIdx.x * kLanes<T>; at < vector_end; at += kThreads * kLanes<T>) {
      visit<T, kWeighted, kLanes<T>>(in, tiling, element + at, shared + at, channel, body);
    }
#pragma unroll 1
    for (int at = vector_end + threadIdx.x; at < length; at += kThreads) {
      visit<T, kWeighted, 1>(in, tiling, element + at, shared + at, channel, body);
    }
    body.end_tile();
  }
}

}  // namespace
}  // namespace fastseg
