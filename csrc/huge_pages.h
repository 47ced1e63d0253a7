// SPDX-License-Identifier: BSD-3-Clause
// Large results on the CPU: malloc maps fresh pages for them each time, and taking 16384 page faults for 64
// MiB costs several times what a kernel takes to write them. Where the system leaves huge pages to whoever
// asks (transparent_hugepage/enabled is "madvise", the default of many distributions), this asks. It is a
// hint; the kernel ignores it where it has none to give.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastseg {

inline void prefer_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (bytes >= 4 * kPage && begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace fastseg
