// SPDX-License-Identifier: BSD-3-Clause
// Correct kernels that between them use all the emulation offers; test_emulation.py checks their results.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

using cuda_emulation::launch;
constexpr int kThreads = 128;

template <class T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T partial[kThreads / 32];
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += partial[warp];
  __syncthreads();  // partial may be used again
  return sum;
}

// Eight bf16 at a time, grid-stride, one partial per block.
__global__ void __launch_bounds__(kThreads)
    sum_blocks(const __nv_bfloat16* __restrict__ values, float* partials, int64_t n) {
  float sum = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  const int64_t start = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int64_t i = start; i < n / 8; i += stride) {
    const uint4 packed = __ldg(reinterpret_cast<const uint4*>(values) + i);
    __nv_bfloat162 pairs[4];
    memcpy(pairs, &packed, sizeof packed);
    for (const __nv_bfloat162 pair : pairs) {
      const float2 both = __bfloat1622float2(pair);
      sum += both.x + both.y;
    }
  }
  if (start < n % 8) sum += __bfloat162float(values[n / 8 * 8 + start]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// The second launch adds the partials in a fixed order.
__global__ void sum_partials(const float* partials, float* total, int count) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = static_cast<float>(sum);
}

// One launch: the last block to finish adds the partials.
__global__ void sum_last_block(const float* values, float* partials, unsigned* ticket, float* total,
                               int64_t n) {
  __shared__ bool last;
  float sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x)
    sum += values[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  float all = 0;
  for (int i = threadIdx.x; i < gridDim.x; i += kThreads) all += partials[i];
  all = block_sum(all);
  if (threadIdx.x == 0) *total = all;
}

// A tile turned round in dynamic shared memory; half in, half out.
__global__ void transpose(const __half* in, __half* out, int height, int width) {
  extern __shared__ unsigned char bytes[];
  __half* tile = reinterpret_cast<__half*>(bytes);  // (blockDim.y, blockDim.x + 1)
  const int pitch = blockDim.x + 1;
  int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
  if (row < height && column < width) tile[threadIdx.y * pitch + threadIdx.x] = in[row * width + column];
  __syncthreads();
  column = blockIdx.y * blockDim.y + threadIdx.x;
  row = blockIdx.x * blockDim.x + threadIdx.y;
  if (row < width && column < height) out[row * height + column] = tile[threadIdx.x * pitch + threadIdx.y];
}

// out (20, 32): one row per operation, for one warp of 32 lanes.
__global__ void warp_operations(const int* in, int* out) {
  const int lane = threadIdx.x, v = in[lane];
  int row = 0;
  const auto put = [&](int value) { out[32 * row++ + lane] = value; };
  put(__shfl_sync(~0u, v, 5));
  put(__shfl_sync(~0u, v, lane + 1, 8));
  put(__shfl_up_sync(~0u, v, 3));
  put(__shfl_up_sync(~0u, v, 3, 16));
  put(__shfl_down_sync(~0u, v, 3));
  put(__shfl_down_sync(~0u, v, 3, 16));
  put(__shfl_xor_sync(~0u, v, 7));
  put(static_cast<int>(__ballot_sync(~0u, v % 3 == 0)));
  put(__any_sync(~0u, v == in[7]));
  put(__all_sync(~0u, v == in[7]));
  put(static_cast<int>(__match_any_sync(~0u, v % 4)));
  put(__reduce_add_sync(~0u, v));
  put(__reduce_min_sync(~0u, v));
  put(__reduce_max_sync(~0u, v));
  put(static_cast<int>(__reduce_or_sync(~0u, static_cast<unsigned>(v))));
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;  // the two halves part ways
  if (lane < 16)
    put(__reduce_add_sync(half, v));
  else
    put(__reduce_max_sync(half, v));
  put(__popc(static_cast<unsigned>(v)) + 100 * __clz(v) + 10000 * __ffs(v));
  put(__syncthreads_count(v % 3 == 0));
  put(__syncthreads_or(v == in[7]));
  put(__syncthreads_and(v == in[7]));
}

// Neighbouring lanes hand values on through shared memory, ordered by __syncwarp alone.
__global__ void warp_barrier(const float* in, float* out) {
  __shared__ float slot[kThreads];
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
  slot[threadIdx.x] = in[blockIdx.x * kThreads + threadIdx.x];
  __syncwarp();
  const float next = slot[first + (lane + 1) % 32];
  __syncwarp();
  slot[threadIdx.x] = next;
  __syncwarp();
  out[blockIdx.x * kThreads + threadIdx.x] = slot[first + (lane + 1) % 32];
}

template <class T>
__device__ T atomic_add_by_cas(T* address, T value) {
  auto* bits = reinterpret_cast<unsigned*>(address);
  unsigned seen = atomicAdd(bits, 0u), expected;
  do {
    expected = seen;
    seen = atomicCAS(bits, expected, __float_as_uint(__uint_as_float(expected) + value));
  } while (seen != expected);
  return __uint_as_float(seen);
}

__global__ void atomics(const int* in, int64_t n, float* sum, double* sum64, unsigned long long* count,
                        int* low, int* high, float* by_cas, unsigned* swapped) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(sum, static_cast<float>(in[i]));
  atomicAdd(sum64, in[i]);
  atomicAdd(count, 1ull);
  atomicMin(low, in[i]);
  atomicMax(high, in[i]);
  atomic_add_by_cas(by_cas, static_cast<float>(in[i]));
  atomicExch(swapped, 7u);
}

}  // namespace

extern "C" int sum_bf16(const void* values, float* partials, float* total, int64_t n, int64_t blocks) {
  cudaError_t status = launch(sum_blocks, dim3(blocks), dim3(kThreads), 0, nullptr,
                              static_cast<const __nv_bfloat16*>(values), partials, n);
  if (status != cudaSuccess) return status;
  return launch(sum_partials, dim3(1), dim3(kThreads), 0, nullptr, partials, total, static_cast<int>(blocks));
}
extern "C" int sum_float(const float* values, float* partials, unsigned* ticket, float* total, int64_t n,
                         int64_t blocks) {
  cudaMemsetAsync(ticket, 0, sizeof(unsigned), nullptr);
  return launch(sum_last_block, dim3(blocks), dim3(kThreads), 0, nullptr, values, partials, ticket, total, n);
}
extern "C" int transpose_half(const void* in, void* out, int64_t height, int64_t width) {
  return launch(transpose, dim3((width + 15) / 16, (height + 15) / 16), dim3(16, 16),
                16 * 17 * sizeof(__half), nullptr, static_cast<const __half*>(in), static_cast<__half*>(out),
                static_cast<int>(height), static_cast<int>(width));
}
extern "C" int run_warp_operations(const int* in, int* out) {
  return launch(warp_operations, dim3(1), dim3(32), 0, nullptr, in, out);
}
extern "C" int run_warp_barrier(const float* in, float* out, int64_t blocks) {
  return launch(warp_barrier, dim3(blocks), dim3(kThreads), 0, nullptr, in, out);
}
extern "C" int run_atomics(const int* in, int64_t n, float* sum, double* sum64, unsigned long long* count,
                           int* low, int* high, float* by_cas, unsigned* swapped) {
  return launch(atomics, dim3((n + 63) / 64), dim3(64), 0, nullptr, in, n, sum, sum64, count, low, high,
                by_cas, swapped);
}
extern "C" int launch_shape(int64_t blocks, int64_t threads, int64_t shared_bytes) {
  return launch(+[](int) {}, dim3(blocks), dim3(threads), shared_bytes, nullptr, 0);
}
