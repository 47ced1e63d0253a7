// SPDX-License-Identifier: BSD-3-Clause
// What the scheduler (scheduler.cpp) and the memory checks (memory.cpp) offer to the code of a kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>

// For code of the emulation that is compiled into a kernel: not the kernel's own memory traffic.
#define FASTSEG_EMULATION_INTERNAL __attribute__((noinline, no_sanitize("address", "undefined")))

namespace cuda_emulation {

inline constexpr int kWarpSize = 32;

// Where in the kernel's source an operation stands; as a default argument it names the caller.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// What the lanes of a warp brought to one warp operation; `present` are those that took part.
struct Lanes {
  unsigned present;
  uint64_t value[kWarpSize];
};

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
int lane_index();

// Waits for all threads of the block; the number of them whose predicate is not zero.
int block_barrier(const char* name, int predicate, Site site);
// Waits for the lanes in mask. Only __syncwarp orders memory: a shuffle or a vote does not.
Lanes warp_exchange(const char* name, unsigned mask, uint64_t value, bool orders_memory, Site site);
void memory_fence();
// Checks an atomic access, and now and then lets another thread run first.
void before_atomic(const void* address, int size, void* caller);

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread_body);
cudaError_t host_fill(void* target, int value, size_t bytes);

// Says what is wrong, in which thread, and ends the process.
[[noreturn]] void report(const char* kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace cuda_emulation

inline void __syncthreads(cuda_emulation::Site site = cuda_emulation::Site::here()) {
  cuda_emulation::block_barrier("__syncthreads", 0, site);
}
inline int __syncthreads_count(int predicate, cuda_emulation::Site site = cuda_emulation::Site::here()) {
  return cuda_emulation::block_barrier("__syncthreads_count", predicate, site);
}
inline int __syncthreads_and(int predicate, cuda_emulation::Site site = cuda_emulation::Site::here()) {
  return cuda_emulation::block_barrier("__syncthreads_and", !predicate, site) == 0;
}
inline int __syncthreads_or(int predicate, cuda_emulation::Site site = cuda_emulation::Site::here()) {
  return cuda_emulation::block_barrier("__syncthreads_or", predicate, site) != 0;
}
inline void __threadfence() { cuda_emulation::memory_fence(); }
inline void __threadfence_system() { cuda_emulation::memory_fence(); }
inline void __threadfence_block() {}
