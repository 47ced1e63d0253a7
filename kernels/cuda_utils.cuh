// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA kernels share: launching, 16-byte loads and stores, conversions, sums over a block. With
// FASTSEG_CUDA_EMULATION the same kernels are compiled for the CPU, against a stand-in for cuda_runtime.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "contract.h"

namespace fastseg {

// In place of <<<>>>, which only nvcc parses. Arguments are converted to the kernel's parameter types.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   A... args) {
#if defined(FASTSEG_CUDA_EMULATION)
  return cuda_emulation::launch(kernel, grid, block, shared_bytes, stream, args...);
#else
  std::tuple<P...> values(static_cast<P>(args)...);
  return std::apply(
      [&](P&... value) {
        void* pointers[] = {&value...};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes,
                                stream);
      },
      values);
#endif
}

// How many blocks to start for kernels that stride over their work: `waves` per multiprocessor.
inline cudaError_t resident_blocks(int waves, int* blocks) {
#if defined(FASTSEG_CUDA_EMULATION)
  *blocks = 3;
  return cudaSuccess;
#else
  int device = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  *blocks = processors * waves;
  return status;
#endif
}

// 90 for compute capability 9.0; 0 where it is not known.
inline int architecture() {
#if defined(FASTSEG_CUDA_EMULATION)
  return 0;
#else
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return 10 * major + minor;
#endif
}

// Consecutive elements that move in one access of at most 16 bytes each.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Lanes {
  T value[kCount];
};

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// What values of type T are computed in.
template <class T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls run with a value of the type that kind names.
template <class Run>
cudaError_t with_type(ScalarKind kind, Run run) {
  switch (kind) {
    case ScalarKind::kFloat32:
      return run(float());
    case ScalarKind::kFloat64:
      return run(double());
    case ScalarKind::kBFloat16:
      return run(__nv_bfloat16());
    case ScalarKind::kFloat16:
      return run(__half());
    default:
      return cudaErrorInvalidValue;
  }
}

template <class Real>
__device__ __forceinline__ Real to_real(float value) {
  return Real(value);
}
template <class Real>
__device__ __forceinline__ Real to_real(double value) {
  return Real(value);
}
template <class Real>
__device__ __forceinline__ Real to_real(__nv_bfloat16 value) {
  return Real(__bfloat162float(value));
}
template <class Real>
__device__ __forceinline__ Real to_real(__half value) {
  return Real(__half2float(value));
}

template <class T, class Real>
__device__ __forceinline__ T from_real(Real value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16(float(value));
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half(float(value));
  } else {
    return T(value);
  }
}

template <class T>
constexpr int kLanes = 16 / sizeof(T);

__device__ __forceinline__ int64_t quotient(int64_t index, int64_t divisor) {
  // 64-bit division takes about 100 instructions, 32-bit division 20.
  return (index | divisor) >> 32 ? index / divisor : int64_t(uint32_t(index) / uint32_t(divisor));
}

// Division by a number that the host knows, by a product and a shift; see Granlund and Montgomery, PLDI 1994.
struct Divisor {
  uint64_t magic;
  int shift;

  static Divisor of(int64_t divisor) {
    Divisor result{0, 0};
    const uint64_t d = divisor < 1 ? 1 : uint64_t(divisor);
    while (result.shift < 63 && (uint64_t(1) << result.shift) < d) ++result.shift;
    const auto rest = (unsigned __int128)((uint64_t(1) << result.shift) - d) << 64;
    result.magic = uint64_t(rest / d) + 1;
    return result;
  }
  __device__ __forceinline__ int64_t quotient(int64_t index) const {  // of an index >= 0
    return int64_t((__umul64hi(uint64_t(index), magic) + uint64_t(index)) >> shift);
  }
};

template <class Real, class T, int kCount>
__device__ __forceinline__ void read_lanes(const void* values, int64_t at, Real (&out)[kCount]) {
  const auto lanes = *reinterpret_cast<const Lanes<T, kCount>*>(static_cast<const T*>(values) + at);
  for (int i = 0; i < kCount; ++i) out[i] = to_real<Real>(lanes.value[i]);
}

// By an intrinsic: a plain store of a struct the compiler splits into stores of its elements.
template <class T, int kCount>
__device__ __forceinline__ void write_lanes(const Lanes<T, kCount>& lanes, T* values, int64_t at) {
  if constexpr (sizeof(lanes) == 16) {
    uint4 words;
    memcpy(&words, &lanes, sizeof words);
    __stwb(reinterpret_cast<uint4*>(values + at), words);
  } else {
    static_assert(kCount == 1);
    values[at] = lanes.value[0];
  }
}

template <int kCount>
__device__ __forceinline__ Lanes<uint8_t, kCount> read_bytes(const void* values, int64_t at) {
  return *reinterpret_cast<const Lanes<uint8_t, kCount>*>(static_cast<const uint8_t*>(values) + at);
}

// The sums of several values over the block, valid in thread 0. Always in the same order, so repeatable.
template <int kThreads, int kValues>
__device__ void block_sum(double (&values)[kValues]) {
  __shared__ double of_warp[kValues][kThreads / 32];
  for (int i = 0; i < kValues; ++i) {
    for (int offset = 16; offset > 0; offset /= 2) {
      values[i] += __shfl_xor_sync(0xffffffffu, values[i], offset);
    }
    if (threadIdx.x % 32 == 0) of_warp[i][threadIdx.x / 32] = values[i];
  }
  __syncthreads();  // every warp's sums are in
  if (threadIdx.x == 0) {
    for (int i = 0; i < kValues; ++i) {
      values[i] = 0;
      for (int warp = 0; warp < kThreads / 32; ++warp) values[i] += of_warp[i][warp];
    }
  }
}

}  // namespace fastseg
