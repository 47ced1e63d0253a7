// SPDX-License-Identifier: BSD-3-Clause
// Stands in for CUDA's cuda_runtime.h so that g++ compiles kernels/cuda/*.cu for the CPU. Comes first in the
// include path; types and half-precision arithmetic still come from the CUDA toolkit (or from plain/, a
// small subset, where there is none). What a kernel may use is what is declared here and in cuda_emulation/.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cassert>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#ifndef __restrict__
#define __restrict__ __restrict
#endif
// At block scope thread_local means static storage, in templates and inline functions too; `extern` before it
// is legal. All such variables of a library lie in its TLS segment, where memory.cpp finds and poisons them.
// g++ wants alignas before it: `alignas(16) __shared__ float tile[64];`.
#define __shared__ thread_local

#include "cuda_emulation/atomics.h"
#include "cuda_emulation/matrix.h"
#include "cuda_emulation/scheduler.h"
#include "cuda_emulation/warp.h"

#define threadIdx (cuda_emulation::thread_index())
#define blockIdx (cuda_emulation::block_index())
#define blockDim (cuda_emulation::block_size())
#define gridDim (cuda_emulation::grid_size())
inline constexpr int warpSize = cuda_emulation::kWarpSize;

namespace cuda_emulation {

// Every thread gets its own copy of the arguments, as on a GPU.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   A... args) {
  std::tuple<P...> values(static_cast<P>(args)...);
  return run(grid, block, shared_bytes, [&] {
    std::tuple<P...> copy = values;
    std::apply(kernel, copy);
  });
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace cuda_emulation

// The few functions of the runtime that a launcher may need. Macros, since the toolkit's headers declare
// them.
#define cudaMemsetAsync(target, value, bytes, ...) (cuda_emulation::host_fill(target, value, bytes))
#define cudaGetLastError() (cudaSuccess)
#define cudaPeekAtLastError() (cudaSuccess)
#define cudaFuncSetAttribute(kernel, attribute, value) (cudaSuccess)

// Loads and stores with a cache hint are plain ones here, and are checked like any other.
#define FASTSEG_EMULATE_LOAD(name) \
  template <class T>               \
  inline T name(const T* p) {      \
    return *p;                     \
  }
FASTSEG_EMULATE_LOAD(__ldg)
FASTSEG_EMULATE_LOAD(__ldca)
FASTSEG_EMULATE_LOAD(__ldcg)
FASTSEG_EMULATE_LOAD(__ldcs)
FASTSEG_EMULATE_LOAD(__ldlu)
FASTSEG_EMULATE_LOAD(__ldcv)
#undef FASTSEG_EMULATE_LOAD
#define FASTSEG_EMULATE_STORE(name) \
  template <class T>                \
  inline void name(T* p, T value) { \
    *p = value;                     \
  }
FASTSEG_EMULATE_STORE(__stwb)
FASTSEG_EMULATE_STORE(__stcg)
FASTSEG_EMULATE_STORE(__stcs)
FASTSEG_EMULATE_STORE(__stwt)
#undef FASTSEG_EMULATE_STORE

inline int __float_as_int(float v) { return cuda_emulation::bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return cuda_emulation::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) { return cuda_emulation::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return cuda_emulation::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return cuda_emulation::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return cuda_emulation::bit_cast<double>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __umulhi(unsigned m, unsigned n) {
  return static_cast<unsigned>((static_cast<unsigned long long>(m) * n) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long m, unsigned long long n) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(m) * n) >> 64);
}

// A GPU's special functions are not exact: PTX bounds their error. Here the exact result is moved by a share
// of that bound, which hangs on the argument alone; a kernel that relies on more digits, or on lg2(1) = 0,
// fails.
namespace cuda_emulation {
inline constexpr double kBound = 1.0 / (1 << 22);

// In [-1, 1]; often at the ends.
inline double error_share(float argument) {
  const uint32_t hash = (bit_cast<uint32_t>(argument) ^ 0x9e3779b9u) * 2654435769u;
  const double share = double(hash >> 8) / (1 << 23) - 1.0;
  return std::fmax(-1.0, std::fmin(1.0, 2.0 * share));
}
inline float flush(double value) {  // what is subnormal becomes 0
  const float rounded = static_cast<float>(value);
  return std::fabs(rounded) < std::numeric_limits<float>::min() ? std::copysign(0.0f, rounded) : rounded;
}
inline float ex2_approx(float x) {  // relative error 2^-22
  return flush(std::exp2(double(flush(x))) * (1.0 + kBound * error_share(x)));
}
inline float lg2_approx(float x) {  // absolute error 2^-22 in (0.5, 2), relative elsewhere
  const double exact = std::log2(double(flush(x)));
  if (!std::isfinite(exact)) return static_cast<float>(exact);
  return flush(exact + kBound * error_share(x) * std::fmax(1.0, std::fabs(exact)));
}
inline float rcp_approx(float x) {  // relative error 2^-23
  return flush(1.0 / double(flush(x)) * (1.0 + kBound / 2 * error_share(x)));
}
}  // namespace cuda_emulation

inline float __expf(float v) { return cuda_emulation::ex2_approx(v * 1.44269504f); }
inline float __logf(float v) { return cuda_emulation::lg2_approx(v) * 0.693147181f; }
inline float __log2f(float v) { return cuda_emulation::lg2_approx(v); }
inline float __powf(float v, float e) {
  return cuda_emulation::ex2_approx(e * cuda_emulation::lg2_approx(v));
}
inline float __fdividef(float n, float d) { return n * cuda_emulation::rcp_approx(d); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fmaf_rn(float m, float n, float s) { return std::fma(m, n, s); }
inline float __fadd_rn(float m, float n) { return m + n; }
inline float __fmul_rn(float m, float n) { return m * n; }
inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline double rsqrt(double v) { return 1.0 / std::sqrt(v); }

template <class M, class N, class = std::enable_if_t<std::is_arithmetic_v<M> && std::is_arithmetic_v<N>>>
inline std::common_type_t<M, N> min(M m, N n) {
  if constexpr (std::is_floating_point_v<std::common_type_t<M, N>>) return std::fmin(m, n);
  using C = std::common_type_t<M, N>;
  return static_cast<C>(m) < static_cast<C>(n) ? static_cast<C>(m) : static_cast<C>(n);
}
template <class M, class N, class = std::enable_if_t<std::is_arithmetic_v<M> && std::is_arithmetic_v<N>>>
inline std::common_type_t<M, N> max(M m, N n) {
  if constexpr (std::is_floating_point_v<std::common_type_t<M, N>>) return std::fmax(m, n);
  using C = std::common_type_t<M, N>;
  return static_cast<C>(m) < static_cast<C>(n) ? static_cast<C>(n) : static_cast<C>(m);
}
