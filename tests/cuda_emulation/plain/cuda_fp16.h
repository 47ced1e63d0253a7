// SPDX-License-Identifier: BSD-3-Clause
// For machines without a CUDA toolkit: float16 as far as the kernels use it, arithmetic in float32.
#pragma once

#include "vector_types.h"

struct __half {
  _Float16 bits;

  __half() = default;
  __half(float value) : bits(static_cast<_Float16>(value)) {}
  operator float() const { return static_cast<float>(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline __half __double2half(double value) { return static_cast<float>(value); }
inline float2 __half22float2(__half2 pair) { return {pair.x, pair.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 pair) { return {pair.x, pair.y}; }
inline float __low2float(__half2 pair) { return pair.x; }
inline float __high2float(__half2 pair) { return pair.y; }
