// SPDX-License-Identifier: BSD-3-Clause
// Philox 4x32-10: four random 32-bit words from a key and a counter, the same on every device, without state.
// Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC11); constants from there.
#pragma once

#include <cstdint>

#include "elementary.h"

namespace fastseg {

struct PhiloxWords {
  uint32_t word[4];
};

FASTSEG_HOST_DEVICE PhiloxWords philox(uint64_t key, PhiloxWords counter) {
  uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
  uint32_t* c = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53u) * c[0], second = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t mixed[4] = {uint32_t(second >> 32) ^ c[1] ^ low, uint32_t(second),
                               uint32_t(first >> 32) ^ c[3] ^ high, uint32_t(first)};
    for (int i = 0; i < 4; ++i) c[i] = mixed[i];
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return counter;
}

// The upper half of a product: a random 64-bit word times n, over 2^64, is uniform in [0, n).
FASTSEG_HOST_DEVICE uint64_t multiply_high(uint64_t first, uint64_t second) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(first, second);
#else
  return uint64_t(((unsigned __int128)first * second) >> 64);
#endif
}

}  // namespace fastseg
