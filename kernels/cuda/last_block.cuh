// SPDX-License-Identifier: BSD-3-Clause
// Sums over a whole grid in one launch: every block stores its part, and the block that finishes last adds
// the parts up, in the order of their numbers, so the result does not depend on who was last.
//
// "Last" needs counters that are 0 when the kernel starts. A memset would be a second launch, so they stand
// in static device memory, a set for each stream: kernels of one stream follow each other, and each leaves
// its counters at 0 (atomicInc wraps round). A captured graph may be replayed on any stream, so there, and
// beyond kStreams, the caller's scratch is used, and cleared before the kernel.
#pragma once

#include <mutex>

#include "../cuda_utils.cuh"

namespace fastseg {
namespace {

constexpr int kCounters = 257;            // of a launch
constexpr int64_t kCountersBytes = 1032;  // theirs, and what makes it a multiple of 8

// For all threads of the block: whether it is the last one of `blocks` to arrive. It then sees what thread 0
// of each of the others wrote before it arrived.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();  // what this block wrote comes before its arrival
    last = atomicInc(counter, blocks - 1) == blocks - 1;
    __threadfence();  // and what is read comes after the others' arrival
  }
  __syncthreads();  // thread 0 knows
  const bool result = last;
  __syncthreads();  // nobody arrives elsewhere while `last` is read
  return result;
}

#if defined(FASTSEG_CUDA_EMULATION)
inline cudaError_t counters_for(cudaStream_t stream, void* scratch, unsigned** counters) {
  *counters = static_cast<unsigned*>(scratch);
  return cudaMemsetAsync(scratch, 0, kCounters * sizeof(unsigned), stream);
}
#else
constexpr int kStreams = 64;
__device__ unsigned counters_of_streams[kStreams][kCounters];  // 0 when the module is loaded, on every device

inline cudaError_t counters_for(cudaStream_t stream, void* scratch, unsigned** counters) {
  struct Known {
    int device;
    cudaStream_t stream;
    unsigned* counters;
  };
  static Known known[kStreams];  // a stream's place is that of its counters, on whichever device
  static int count = 0;
  static std::mutex mutex;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  int device = 0;
  cudaError_t status = cudaStreamIsCapturing(stream, &capture);
  if (status == cudaSuccess) status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  if (capture == cudaStreamCaptureStatusNone && stream != cudaStreamPerThread) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (int i = 0; i < count; ++i) {
      if (known[i].device == device && known[i].stream == stream) {
        *counters = known[i].counters;
        return cudaSuccess;
      }
    }
    if (count < kStreams) {
      void* base = nullptr;
      status = cudaGetSymbolAddress(&base, counters_of_streams);
      if (status != cudaSuccess) return status;
      known[count] = {device, stream, static_cast<unsigned*>(base) + count * kCounters};
      *counters = known[count++].counters;
      return cudaSuccess;
    }
  }
  *counters = static_cast<unsigned*>(scratch);
  return cudaMemsetAsync(scratch, 0, kCounters * sizeof(unsigned), stream);
}
#endif

}  // namespace
}  // namespace fastseg
