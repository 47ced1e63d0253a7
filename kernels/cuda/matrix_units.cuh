// SPDX-License-Identifier: BSD-3-Clause
// Products of float32 on the matrix units, as three products of TF32: a value is the nearest TF32 number,
// high, and what is left of it, low; low * low is below float32's resolution. Fragments are those of
// mma.m16n8k8.
#pragma once

#include "../cuda_utils.cuh"

namespace fastseg {
namespace {

// sums[16][8] += a[16][8] * b[8][8]; of an operand the upper 19 bits count.
__device__ __forceinline__ void multiply_add_tf32(float (&sums)[4], const float (&a)[4],
                                                  const float (&b)[2]) {
#if defined(FASTSEG_CUDA_EMULATION)
  cuda_emulation::matrix_multiply_add(sums, {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}},
                                      cuda_emulation::Site::here());
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

template <int kCount>
struct Split {
  float high[kCount], low[kCount];
};

// An infinite value leaves NaN as low.
template <int kCount>
__device__ __forceinline__ Split<kCount> split(const float (&values)[kCount]) {
  Split<kCount> parts;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    parts.high[i] = __uint_as_float((__float_as_uint(values[i]) + 0x1000u) & 0xffffe000u);
    parts.low[i] = values[i] - parts.high[i];
  }
  return parts;
}

// sums += a * b, to float32's precision: the units cut off what does not fit when they add, so each product
// begins at 0, with its small terms, and is then added with rounding.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const Split<4>& a, const Split<2>& b) {
  float product[4] = {};
  multiply_add_tf32(product, a.low, b.high);
  multiply_add_tf32(product, a.high, b.low);
  multiply_add_tf32(product, a.high, b.high);
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] += product[i];
}

// The same where all of b fits TF32, as bfloat16 and float16 do.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const Split<4>& a, const float (&b)[2]) {
  float product[4] = {};
  multiply_add_tf32(product, a.low, b);
  multiply_add_tf32(product, a.high, b);
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] += product[i];
}

}  // namespace
}  // namespace fastseg
