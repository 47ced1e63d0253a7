// SPDX-License-Identifier: BSD-3-Clause
// The matrix units: mma.sync.aligned.m16n8k8 of TF32, accumulated in float32. A kernel's inline PTX has this
// in its place under emulation (kernels/cuda/matrix_units.cuh).
#pragma once

#include "cuda_emulation/scheduler.h"

namespace cuda_emulation {

struct MatrixOperands {
  float a[4], b[2];
};

// The hardware reads the upper 19 bits of an operand: sign, exponent, 10 bits of the fraction.
FASTSEG_EMULATION_INTERNAL inline double tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits &= 0xffffe000u;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// Sums are cut off, not rounded, to float32: what real units do at their worst.
FASTSEG_EMULATION_INTERNAL inline float cut_to_float(double value) {
  const float near = static_cast<float>(value);
  if (near - near != 0 || std::fabs(double(near)) <= std::fabs(value)) return near;
  return std::nextafter(near, 0.0f);
}

// With lane = 4 g + t, the PTX manual's fragments: a = A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4];
// b = B[t][g], B[t + 4][g]; sums = S[g][2 t], S[g][2 t + 1], S[g + 8][2 t], S[g + 8][2 t + 1]. All lanes of
// the warp must take part.
FASTSEG_EMULATION_INTERNAL inline void matrix_multiply_add(float (&sums)[4], const MatrixOperands& own,
                                                           Site site) {
  const Lanes lanes = warp_exchange("mma.sync", 0xffffffffu, reinterpret_cast<uintptr_t>(&own), false, site);
  if (lanes.present != 0xffffffffu) report("bad warp op", "mma.sync in a warp of fewer than 32 lanes");
  const auto of = [&](int lane) { return reinterpret_cast<const MatrixOperands*>(lanes.value[lane]); };
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * t + i % 2;
    double sum = sums[i];
    for (int k = 0; k < 8; ++k)
      sum += tf32(of(4 * g + k % 4)->a[row + k / 4 * 2]) * tf32(of(4 * column + k % 4)->b[k / 4]);
    sums[i] = cut_to_float(sum);
  }
  warp_exchange("mma.sync", 0xffffffffu, 0, false, site);  // operands are read before any lane goes on
}

}  // namespace cuda_emulation
