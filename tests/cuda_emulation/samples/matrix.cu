// SPDX-License-Identifier: BSD-3-Clause
// One product on the matrix units, S[16][8] + A[16][8] B[8][8], and kernels that use the units wrongly;
// test_matrix.py runs them.
#include "cuda/matrix_units.cuh"

using namespace fastseg;

namespace {

enum Mode { kRaw, kSplit, kExact, kAbsentLanes, kDivergent };

__global__ void product(const float* a, const float* b, float* sums, int mode) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  if (mode == kAbsentLanes && lane >= 20) return;
  const float rows[4] = {a[8 * g + t], a[8 * (g + 8) + t], a[8 * g + t + 4], a[8 * (g + 8) + t + 4]};
  const float columns[2] = {b[8 * t + g], b[8 * (t + 4) + g]};
  float* out[4] = {sums + 8 * g + 2 * t, sums + 8 * g + 2 * t + 1, sums + 8 * (g + 8) + 2 * t,
                   sums + 8 * (g + 8) + 2 * t + 1};
  float own[4];
  for (int i = 0; i < 4; ++i) own[i] = *out[i];
  if (mode == kSplit) {
    multiply_add(own, split(rows), split(columns));
  } else if (mode == kExact) {
    multiply_add(own, split(rows), columns);
  } else if (mode != kDivergent || lane < 16) {
    multiply_add_tf32(own, rows, columns);
  } else {
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) *out[i] = own[i];
}

}  // namespace

extern "C" int run_product(float* a, float* b, float* sums, int64_t mode, int64_t threads) {
  return launch(product, dim3(1), dim3(unsigned(threads)), 0, nullptr, a, b, sums, int(mode));
}
