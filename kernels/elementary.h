// SPDX-License-Identifier: BSD-3-Clause
// exp, log1p and division to a few units in the last place, the same formulas on CPU and CUDA, vectorisable.
// Polynomials are summed in pairs (Estrin), which halves the chain of dependent operations. The quick forms
// are for 16-bit values on a GPU, which have 11 bits themselves.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(FASTSEG_CUDA_EMULATION)
#include <cuda_runtime.h>
#endif

#if defined(__CUDACC__)
#define FASTSEG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTSEG_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fastseg {

// The instructions of a GPU, one each: 2^x and log2(x) to 22 bits, 1 / x to a unit in the last place.
// Subnormal numbers count as 0. The emulation has its own, as inexact as PTX says they may be.
#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float ex2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float lg2_approx(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float rcp_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// The larger and the smaller of two, or NaN if there is one.
__device__ __forceinline__ float max_or_nan(float x, float y) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
}
__device__ __forceinline__ float min_or_nan(float x, float y) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
}
#elif defined(FASTSEG_CUDA_EMULATION)
FASTSEG_HOST_DEVICE float max_or_nan(float x, float y) { return x != x ? x : x < y ? y : x; }
FASTSEG_HOST_DEVICE float min_or_nan(float x, float y) { return x != x ? x : x > y ? y : x; }
using cuda_emulation::ex2_approx;
using cuda_emulation::lg2_approx;
using cuda_emulation::rcp_approx;
#endif

// Minimax fits of relative error by Remez exchange in float64, then rounded to float32.
// log1p(u) / u on [0, 1]: 4.7e-9 before rounding; u times it in float32 is within 3 units in the last place.
constexpr float kLog1p[] = {1.0f,         -0.49999902f, 0.33329964f,  -0.24954134f, 0.19675939f,
                            -0.15305592f, 0.10603655f,  -0.05695953f, 0.019851463f, -0.003244025f};
// The same of degree 6: 1.3e-6.
constexpr float kLog1pQuick[] = {0.9999987f,  -0.49986964f, 0.3310945f, -0.2350386f,
                                 0.14922386f, -0.06640179f, 0.01414102f};
// exp(r) on [-ln2 / 2, ln2 / 2]: 1.9e-9 before rounding.
constexpr float kExp[] = {1.0f, 1.0f, 0.49999991f, 0.1666642f, 0.04166823f, 0.008374857f, 0.0013836795f};

// exp(-magnitude) for magnitude >= 0, within 1.5 units in the last place; 0 where float32 has no normal
// number.
FASTSEG_HOST_DEVICE float exp_negative(float magnitude) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATION)
  return expf(-magnitude);
#else
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;
  constexpr float kRound = 12582912.0f;               // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = kRound - magnitude * kLog2E;  // low mantissa bits now hold k = round(-m / ln 2)
  const float k = shifted - kRound;
  const float r = (-magnitude - k * kLn2High) - k * kLn2Low;
  const float r2 = r * r;
  float value = (kExp[4] + kExp[5] * r) + kExp[6] * r2;
  value = (kExp[0] + kExp[1] * r) + r2 * ((kExp[2] + kExp[3] * r) + r2 * value);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // 2^k; the bits of kRound fall off the top
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  value *= scale;
  return magnitude > 87.0f ? 0.0f : value;  // a comparison with NaN is false: NaN stays
#endif
}
FASTSEG_HOST_DEVICE double exp_negative(double magnitude) { return std::exp(-magnitude); }

// On a GPU the product is rounded before 2^x is taken: within 2 + 1.2 * magnitude units in the last place.
FASTSEG_HOST_DEVICE float exp_negative_quick(float magnitude) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATION)
  return ex2_approx(-1.44269504f * magnitude);
#else
  return exp_negative(magnitude);
#endif
}

// log(1 + u) for u in [0, 1].
FASTSEG_HOST_DEVICE float log1p_unit(float u) {
  const float u2 = u * u, u4 = u2 * u2;
  const float low = (kLog1p[0] + kLog1p[1] * u) + u2 * (kLog1p[2] + kLog1p[3] * u);
  const float middle = (kLog1p[4] + kLog1p[5] * u) + u2 * (kLog1p[6] + kLog1p[7] * u);
  const float value = low + u4 * (middle + u4 * (kLog1p[8] + kLog1p[9] * u));
  return value * u;
}
FASTSEG_HOST_DEVICE double log1p_unit(double u) { return std::log1p(u); }
FASTSEG_HOST_DEVICE float log1p_unit_quick(float u) {
  const float high = kLog1pQuick[4] + u * (kLog1pQuick[5] + u * kLog1pQuick[6]);
  const float value =
      kLog1pQuick[0] + u * (kLog1pQuick[1] + u * (kLog1pQuick[2] + u * (kLog1pQuick[3] + u * high)));
  return value * u;
}

// x / d for normal d up to 2^126, within 2 units in the last place.
FASTSEG_HOST_DEVICE float divide(float x, float d) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATION)
  return x * rcp_approx(d);
#else
  return x / d;
#endif
}
FASTSEG_HOST_DEVICE double divide(double x, double d) { return x / d; }

}  // namespace fastseg
