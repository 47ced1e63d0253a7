// SPDX-License-Identifier: BSD-3-Clause
// Kernels that break one rule each; test_emulation.py checks that each is caught, and as what.
// `values` is an input of 64 floats, `out` an output of 64 floats; one block (or two) of 64 threads.
#include <cuda_runtime.h>

namespace {

__global__ void missing_barrier(const float* values, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = values[threadIdx.x];
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
// The write of the second round overtakes the slow readers of the first.
__global__ void missing_second_barrier(const float* values, float* out) {
  __shared__ float tile[64];
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = values[threadIdx.x] + round;
    __syncthreads();
    sum += tile[63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}
// A shuffle brings the lanes together but does not order their memory.
__global__ void shuffle_is_no_barrier(const float* values, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = values[threadIdx.x];
  const float mine = __shfl_xor_sync(~0u, values[threadIdx.x], 1);
  out[threadIdx.x] = tile[threadIdx.x ^ 1] + mine;
}
__global__ void plain_counter(const float* values, float* out) {
  if (values[threadIdx.x] > -1e30f) out[0] = 1;
}
__global__ void blocks_overlap(const float* values, float* out) { out[threadIdx.x] = values[threadIdx.x]; }
__global__ void global_write_past_end(const float* values, float* out) {
  out[threadIdx.x + 1] = values[threadIdx.x];
}
__global__ void global_read_before_start(const float* values, float* out) {
  out[threadIdx.x] = values[static_cast<int>(threadIdx.x) - 1];
}
__device__ void put(float* tile, int i, float value) { tile[i] = value; }
__global__ void shared_write_past_end(const float* values, float* out) {
  __shared__ float tile[64], other[64];
  put(tile, threadIdx.x + 1, values[threadIdx.x]);
  put(other, threadIdx.x, values[threadIdx.x]);
  __syncthreads();
  out[threadIdx.x] = tile[63] + other[threadIdx.x];
}
__global__ void shared_index_past_end(const float* values, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x + 1] = values[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[63];
}
__global__ void dynamic_write_past_end(const float* values, float* out) {
  extern __shared__ float dynamic_tile[];
  dynamic_tile[threadIdx.x] = values[threadIdx.x];  // 63 floats were asked for
  out[threadIdx.x] = dynamic_tile[threadIdx.x];
}
__global__ void divergent_barrier(const float* values, float* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}
__global__ void two_barriers(const float* values, float* out) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}
__global__ void absent_lanes(const float* values, float* out) {
  out[threadIdx.x] = 0;
  if (threadIdx.x % 32 < 20) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, values[threadIdx.x], 1);
}
__global__ void not_in_mask(const float* values, float* out) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, values[threadIdx.x], 1);
}
__global__ void uninitialised_shared(const float* values, float* out) {
  __shared__ float tile[64];
  if (threadIdx.x != 5) tile[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void unwritten_output(const float* values, float* out) { out[threadIdx.x] += values[threadIdx.x]; }
__global__ void misaligned_float4(const float* values, float* out) {
  if (threadIdx.x >= 15) return;
  const float4 v = *reinterpret_cast<const float4*>(values + 4 * threadIdx.x + 1);
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
__global__ void writes_input(float* values, float* out) { out[threadIdx.x] = values[threadIdx.x] = 1; }
__global__ void local_array_past_end(const float* values, float* out) {
  float local[4] = {1, 2, 3, 4};
  put(local, threadIdx.x % 5, values[threadIdx.x]);
  out[threadIdx.x] = local[threadIdx.x % 4];
}
__global__ void signed_overflow(const float* values, float* out) {
  const int big = 0x7fffffff - 32 + static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[threadIdx.x] + static_cast<float>(big + 1);
}
// The last block to finish adds what the others wrote, but they did not fence it.
__global__ void missing_fence(const float* values, float* out) {
  if (threadIdx.x > 0) return;
  out[blockIdx.x] = values[blockIdx.x];
  if (atomicAdd(reinterpret_cast<unsigned*>(out + 63), 1u) == 1) out[2] = out[0] + out[1];
}
__global__ void never_ends(const float* values, float* out) {
  while (values[threadIdx.x] > -1e30f) out[threadIdx.x] = 1;
}

}  // namespace

#define ENTRY(kernel, blocks, shared_bytes)                                                            \
  extern "C" int run_##kernel(float* values, float* out) {                                             \
    return cuda_emulation::launch(kernel, dim3(blocks), dim3(64), shared_bytes, nullptr, values, out); \
  }
ENTRY(missing_barrier, 1, 0)
ENTRY(missing_second_barrier, 1, 0)
ENTRY(shuffle_is_no_barrier, 1, 0)
ENTRY(plain_counter, 1, 0)
ENTRY(blocks_overlap, 2, 0)
ENTRY(global_write_past_end, 1, 0)
ENTRY(global_read_before_start, 1, 0)
ENTRY(shared_write_past_end, 1, 0)
ENTRY(shared_index_past_end, 1, 0)
ENTRY(dynamic_write_past_end, 1, 63 * sizeof(float))
ENTRY(divergent_barrier, 1, 0)
ENTRY(two_barriers, 1, 0)
ENTRY(absent_lanes, 1, 0)
ENTRY(not_in_mask, 1, 0)
ENTRY(uninitialised_shared, 1, 0)
ENTRY(unwritten_output, 1, 0)
ENTRY(misaligned_float4, 1, 0)
ENTRY(writes_input, 1, 0)
ENTRY(local_array_past_end, 1, 0)
ENTRY(signed_overflow, 1, 0)
ENTRY(never_ends, 1, 0)
extern "C" int run_missing_fence(float* values, float* out) {
  cudaMemsetAsync(out + 63, 0, sizeof(unsigned), nullptr);
  return cuda_emulation::launch(missing_fence, dim3(2), dim3(64), 0, nullptr, values, out);
}
