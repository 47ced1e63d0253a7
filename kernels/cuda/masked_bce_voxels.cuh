// SPDX-License-Identifier: BSD-3-Clause
// How the CUDA kernels of masked_bce walk over the voxels: which thread reads what, of any dtype and layout.
#pragma once

#include "../cuda_utils.cuh"
#include "../masked_bce.h"
#include "../masked_bce_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kSingles = 8;  // elements a thread takes where there are no vectors

// The kernels are compiled for the dtypes that one meets: targets of bytes, float32 or the dtype of logits.
// Everything else, and float64, is read value by value, with switches: Target is AnyTarget.
struct AnyTarget {};
template <class T, class Target>
constexpr bool kHasVectors = !std::is_same_v<T, double> && !std::is_same_v<Target, AnyTarget>;

// 16-byte vectors of logits that a thread has in flight. kScaled: there is a weight or a pos_weight.
template <bool kScaled>
constexpr int kVectors = kScaled ? 2 : 4;
template <class T, bool kScaled>
constexpr int64_t kTile = int64_t(kThreads) * kVectors<kScaled> * kLanes<T>;  // elements of a block

// Elements [head, head + vectors * lanes) are taken as vectors, a tile by each block: thread t takes the
// vectors t, t + kThreads, ... of it. The others, a few at both ends or all there are, are taken one by one.
struct Walk {
  int64_t head, vectors, singles;
  bool located;      // where an element lies must be known: a map or pos_weight is shared by several of them
  bool interleaved;  // and its neighbours are other channels of the same place
  bool share_mask, share_weight;
  Divisor inner, channels;
};

struct Place {
  int64_t shared, channel;
};

__device__ __forceinline__ Place locate(const MaskedBceInputs& in, const Walk& walk, int64_t element) {
  if (!walk.located) return {element, 0};
  const int64_t row = walk.inner.quotient(element), outer = walk.channels.quotient(row);
  return {outer * in.inner + (element - row * in.inner), row - outer * in.channels};
}

template <class T, class Target>
Walk make_walk(const MaskedBceInputs& in, const void* first_map, const void* second_map) {
  Walk walk{};
  walk.inner = Divisor::of(in.inner);
  walk.channels = Divisor::of(in.channels);
  const bool several = in.channels > 1;
  walk.share_mask = several && in.mask && !in.mask_per_channel;
  walk.share_weight = several && in.weight && !in.weight_per_channel;
  walk.located = several && (walk.share_mask || walk.share_weight || in.pos_weight);
  walk.interleaved = walk.located && in.inner == 1;
  walk.singles = in.numel();
  if constexpr (kHasVectors<T, Target>) {
    constexpr int lanes = kLanes<T>;
    walk.head = int64_t((16 - reinterpret_cast<uintptr_t>(in.logits) % 16) % 16 / sizeof(T));
    const auto fits = [&](const void* map, bool shared, size_t size) {
      const auto begin = reinterpret_cast<uintptr_t>(map) + walk.head * size;
      return !map || (shared && walk.interleaved) || begin % std::min<size_t>(lanes * size, 16) == 0;
    };
    const bool rows_fit = !walk.located || walk.interleaved || (walk.head == 0 && in.inner % lanes == 0);
    const bool weight_fits = in.weight_kind == ScalarKind::kFloat32 || in.weight_kind == in.logits_kind;
    const size_t weight_size = in.weight_kind == ScalarKind::kFloat32 ? 4 : sizeof(T);
    if (rows_fit && (!in.weight || weight_fits) && in.numel() > walk.head &&
        fits(in.logits, false, sizeof(T)) && fits(in.target, false, sizeof(Target)) &&
        fits(in.mask, walk.share_mask, 1) && fits(in.weight, walk.share_weight, weight_size) &&
        fits(first_map, false, sizeof(T)) && fits(second_map, false, sizeof(T))) {
      walk.vectors = (in.numel() - walk.head) / lanes;
      walk.singles = in.numel() - walk.vectors * lanes;
    }
  }
  return walk;
}

// The kind is the same for all threads, so the switch does not diverge.
template <class Real>
__device__ __forceinline__ Real read_value(const void* values, ScalarKind kind, int64_t at) {
  switch (kind) {
    case ScalarKind::kFloat32:
      return Real(static_cast<const float*>(values)[at]);
    case ScalarKind::kFloat64:
      return Real(static_cast<const double*>(values)[at]);
    case ScalarKind::kBFloat16:
      return to_real<Real>(static_cast<const __nv_bfloat16*>(values)[at]);
    case ScalarKind::kFloat16:
      return to_real<Real>(static_cast<const __half*>(values)[at]);
    default:
      return static_cast<const uint8_t*>(values)[at] != 0 ? Real(1) : Real(0);
  }
}

// Bits 8 i + 7 say whether byte i of the word is `code`. No carry leaves a byte.
__device__ __forceinline__ uint32_t bytes_equal(uint32_t word, uint32_t code) {
  const uint32_t difference = word ^ (code * 0x01010101u);
  return ~(((difference & 0x7f7f7f7fu) + 0x7f7f7f7fu) | difference) & 0x80808080u;
}

// kCount consecutive elements: what a kernel's body works on. Target is bool or Real.
template <class Real, class Target, int kCount>
struct Voxels {
  static constexpr int kWords = (kCount + 3) / 4;
  Real logit[kCount], weight[kCount], pos_weight[kCount];
  Target target[kCount];
  uint32_t source[2][kWords];  // bytes that are not 0: labelled, pseudo-labelled

  __device__ __forceinline__ bool is(int which, int i) const {
    return (source[which][i / 4] & (0x80u << (i % 4 * 8))) != 0;
  }
};

template <class T, class Vector, class Index>
__device__ __forceinline__ void load(const T* values, Index at, Vector& vector) {
  vector = *reinterpret_cast<const Vector*>(values + at);
}

// Several vectors of one thread: everything is asked for before anything is used.
template <class T, class Target, bool kScaled, class Body>
__device__ __forceinline__ void visit_vectors(const MaskedBceInputs& in, const Walk& walk, Body& body) {
  constexpr int kCount = kLanes<T>, kMany = kVectors<kScaled>, kWords = kCount / 4;
  constexpr bool kHard = std::is_same_v<Target, uint8_t>;
  using Words = Lanes<uint32_t, kWords>;
  // Addresses are those of the block's first vector, the same for all threads, and a 32-bit distance.
  const int64_t begin = int64_t(blockIdx.x) * kMany * kThreads;
  if (begin >= walk.vectors) return;
  const int64_t left = walk.vectors - begin;
  const int end = int(left < kMany * kThreads ? left : kMany * kThreads);
  const int64_t origin = walk.head + begin * kCount;
  Lanes<T, kCount> logits[kMany];
  std::conditional_t<kHard, Words, Lanes<Target, kCount>> target[kMany];
  Words codes[kMany];
  float weight[kScaled ? kMany : 1][kCount];
  int offset[kMany];
#pragma unroll
  for (int v = 0; v < kMany; ++v) {
    // Past the end, the last vector once more; its codes are cleared, and nothing of it is stored.
    const int vector = int(threadIdx.x) + v * kThreads;
    offset[v] = (vector < end ? vector : end - 1) * kCount;
    load(static_cast<const T*>(in.logits) + origin, offset[v], logits[v]);
    load(static_cast<const Target*>(in.target) + origin, offset[v], target[v]);
  }
  const bool gather_mask = walk.share_mask && walk.interleaved;
  const bool gather_weight = walk.share_weight && walk.interleaved;
  if (in.mask && !gather_mask) {
    if (walk.share_mask) {
#pragma unroll
      for (int v = 0; v < kMany; ++v) load(in.mask, locate(in, walk, origin + offset[v]).shared, codes[v]);
    } else {
#pragma unroll
      for (int v = 0; v < kMany; ++v) load(in.mask + origin, offset[v], codes[v]);
    }
  } else {
#pragma unroll
    for (int v = 0; v < kMany; ++v)
#pragma unroll
      for (int i = 0; i < kWords; ++i) codes[v].value[i] = gather_mask ? 0 : 0x01010101u;
  }
  if constexpr (kScaled) {
#pragma unroll
    for (int v = 0; v < kMany; ++v) {
      const int64_t at = walk.share_weight ? locate(in, walk, origin + offset[v]).shared : origin + offset[v];
#pragma unroll
      for (int i = 0; i < kCount; ++i) weight[v][i] = 1.0f;
      if (!in.weight || gather_weight) continue;
      if (in.weight_kind == ScalarKind::kFloat32) {
        read_lanes<float, float>(in.weight, at, weight[v]);
      } else {
        read_lanes<float, T>(in.weight, at, weight[v]);
      }
    }
  }
  if (gather_mask || gather_weight) {
#pragma unroll
    for (int v = 0; v < kMany; ++v) {
      const Place place = locate(in, walk, origin + offset[v]);
      int64_t left = in.channels - place.channel;  // channels of this place
      int past = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (gather_mask) codes[v].value[i / 4] |= uint32_t(in.mask[place.shared + past]) << (i % 4 * 8);
        if constexpr (kScaled) {
          if (gather_weight) weight[v][i] = read_value<float>(in.weight, in.weight_kind, place.shared + past);
        }
        const bool next = --left == 0;
        left = next ? in.channels : left;
        past += next;
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kMany; ++v) {
    Voxels<float, std::conditional_t<kHard, bool, float>, kCount> voxels;
    const bool inside = int(threadIdx.x) + v * kThreads < end;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      voxels.source[0][i] = inside ? bytes_equal(codes[v].value[i], 1) : 0;
      voxels.source[1][i] = inside ? bytes_equal(codes[v].value[i], 2) : 0;
    }
    int64_t channel = kScaled && in.pos_weight ? locate(in, walk, origin + offset[v]).channel : 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      voxels.logit[i] = to_real<float>(logits[v].value[i]);
      if constexpr (kHard) {
        voxels.target[i] = (target[v].value[i / 4] & (0xffu << (i % 4 * 8))) != 0;
      } else {
        voxels.target[i] = to_real<float>(target[v].value[i]);
      }
      voxels.weight[i] = voxels.pos_weight[i] = 1.0f;
      if constexpr (kScaled) {
        voxels.weight[i] = weight[v][i];
        if (in.pos_weight) voxels.pos_weight[i] = static_cast<const float*>(in.pos_weight)[channel];
        if (walk.interleaved) channel = channel + 1 == in.channels ? 0 : channel + 1;
      }
    }
    body(origin + offset[v], voxels, inside);
  }
}

template <class T, class Target, bool kScaled, class Body>
__device__ __forceinline__ void visit_all(const MaskedBceInputs& in, const Walk& walk, Body& body) {
  using Real = RealOf<T>;
  if constexpr (kHasVectors<T, Target>) visit_vectors<T, Target, kScaled>(in, walk, body);
  // One by one: the elements before and after the vectors.
#pragma unroll 1
  for (int64_t number = int64_t(blockIdx.x) * kThreads + threadIdx.x; number < walk.singles;
       number += int64_t(gridDim.x) * kThreads) {
    const int64_t element = number < walk.head ? number : number + walk.vectors * kLanes<T>;
    const Place place = locate(in, walk, element);
    Voxels<Real, Real, 1> voxel;
    voxel.logit[0] = to_real<Real>(static_cast<const T*>(in.logits)[element]);
    voxel.target[0] = read_value<Real>(in.target, in.target_kind, element);
    const uint32_t code = in.mask ? in.mask[walk.share_mask ? place.shared : element] : 1;
    voxel.source[0][0] = code == 1 ? 0x80u : 0;
    voxel.source[1][0] = code == 2 ? 0x80u : 0;
    voxel.weight[0] =
        in.weight ? read_value<Real>(in.weight, in.weight_kind, walk.share_weight ? place.shared : element)
                  : Real(1);
    voxel.pos_weight[0] = in.pos_weight ? static_cast<const Real*>(in.pos_weight)[place.channel] : Real(1);
    body(element, voxel, true);
  }
}

template <class T, bool kScaled>
int64_t blocks_of(const Walk& walk) {
  const int64_t tile = kTile<T, kScaled> / kLanes<T>;
  const int64_t of_vectors = (walk.vectors + tile - 1) / tile;
  const int64_t of_singles = (walk.singles + kThreads * kSingles - 1) / (kThreads * kSingles);
  return std::max(of_vectors, of_singles);
}

// Runs with values of the types of logits and target, and whether the kernel is one for weights.
template <class Run>
cudaError_t with_voxel_types(const MaskedBceInputs& in, Run run) {
  return with_type(in.logits_kind, [&](auto logit) {
    using T = decltype(logit);
    const bool scaled = in.weight || in.pos_weight;
    const auto with_target = [&](auto target) {
      return scaled ? run(logit, target, std::true_type()) : run(logit, target, std::false_type());
    };
    if constexpr (!std::is_same_v<T, double>) {
      if (in.target_kind == ScalarKind::kUint8) return with_target(uint8_t());
      if (in.target_kind == ScalarKind::kFloat32) return with_target(float());
      if constexpr (!std::is_same_v<T, float>) {
        if (in.target_kind == in.logits_kind) return with_target(logit);
      }
    }
    return run(logit, AnyTarget(), std::true_type());
  });
}

}  // namespace
}  // namespace fastseg
