// SPDX-License-Identifier: BSD-3-Clause
// What the CPU kernels share: dispatch on the instruction set at run time, and 16-bit floats.
#pragma once

#include <cstdint>
#include <cstring>

#include "contract.h"

#define FASTSEG_ALWAYS_INLINE inline __attribute__((always_inline))

// Compiles a function once per instruction set; the loader picks one. Only for plain functions: what they
// call must be FASTSEG_ALWAYS_INLINE, and a lambda in them would be compiled for the oldest set.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FASTSEG_CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTSEG_CPU_CLONES
#endif

namespace fastseg {

template <class To, class From>
FASTSEG_ALWAYS_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

FASTSEG_ALWAYS_INLINE float bfloat16_to_float(uint16_t bits) { return bits_as<float>(uint32_t(bits) << 16); }

FASTSEG_ALWAYS_INLINE uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
  return value != value ? uint16_t(0x7fc0) : uint16_t(rounded);
}

// Scaling by 2^112 moves the exponent bias from 15 to 127 and makes subnormals normal, without a branch.
FASTSEG_ALWAYS_INLINE float float16_to_float(uint16_t bits) {
  const uint32_t magnitude = uint32_t(bits & 0x7fffu) << 13;
  const uint32_t finite = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;  // inf and NaN
  return bits_as<float>((magnitude >= 0x0f800000u ? special : finite) | (uint32_t(bits & 0x8000u) << 16));
}

FASTSEG_ALWAYS_INLINE uint16_t float_to_float16(float value) {
  const uint32_t sign = (bits_as<uint32_t>(value) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_as<uint32_t>(value) & 0x7fffffffu;
  const uint32_t normal =
      (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;  // nearest even
  // Adding 0.5 leaves a subnormal's ten bits, rounded to nearest even, at the bottom of the mantissa.
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // 65520 and above round to infinity
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return uint16_t(result | sign);
}

// count values of any kind, from element begin on, as Real. Bytes are labels: 0 or not.
template <class Real>
FASTSEG_ALWAYS_INLINE void read_values(const void* values, ScalarKind kind, int64_t begin, int count,
                                       Real* out) {
  switch (kind) {
    case ScalarKind::kUint8: {
      const auto* from = static_cast<const uint8_t*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = from[i] != 0 ? Real(1) : Real(0);
      break;
    }
    case ScalarKind::kFloat32: {
      const auto* from = static_cast<const float*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = Real(from[i]);
      break;
    }
    case ScalarKind::kFloat64: {
      const auto* from = static_cast<const double*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = Real(from[i]);
      break;
    }
    case ScalarKind::kBFloat16: {
      const auto* from = static_cast<const uint16_t*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = Real(bfloat16_to_float(from[i]));
      break;
    }
    case ScalarKind::kFloat16: {
      const auto* from = static_cast<const uint16_t*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = Real(float16_to_float(from[i]));
      break;
    }
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void write_values(const Real* from, ScalarKind kind, int64_t begin, int count,
                                        void* values) {
  switch (kind) {
    case ScalarKind::kUint8:
      break;  // no kernel writes labels
    case ScalarKind::kFloat32: {
      auto* out = static_cast<float*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = float(from[i]);
      break;
    }
    case ScalarKind::kFloat64: {
      auto* out = static_cast<double*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = double(from[i]);
      break;
    }
    case ScalarKind::kBFloat16: {
      auto* out = static_cast<uint16_t*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = float_to_bfloat16(float(from[i]));
      break;
    }
    case ScalarKind::kFloat16: {
      auto* out = static_cast<uint16_t*>(values) + begin;
      for (int i = 0; i < count; ++i) out[i] = float_to_float16(float(from[i]));
      break;
    }
  }
}

}  // namespace fastseg
