// SPDX-License-Identifier: BSD-3-Clause
#include "array/shuffle.h"

#include "cpu_utils.h"

namespace fastseg {
namespace {

template <int kBytes>
FASTSEG_ALWAYS_INLINE void unshuffle_items(const char* from, int64_t count, char* to) {
  for (int64_t i = 0; i < count; ++i) {
    for (int byte = 0; byte < kBytes; ++byte) to[i * kBytes + byte] = from[byte * count + i];
  }
}

FASTSEG_CPU_CLONES void unshuffle_2(const char* from, int64_t count, char* to) {
  unshuffle_items<2>(from, count, to);
}
FASTSEG_CPU_CLONES void unshuffle_4(const char* from, int64_t count, char* to) {
  unshuffle_items<4>(from, count, to);
}
FASTSEG_CPU_CLONES void unshuffle_8(const char* from, int64_t count, char* to) {
  unshuffle_items<8>(from, count, to);
}

}  // namespace

void unshuffle(const char* from, int64_t count, int item_bytes, char* to) {
  if (item_bytes == 2) return unshuffle_2(from, count, to);
  if (item_bytes == 4) return unshuffle_4(from, count, to);
  if (item_bytes == 8) return unshuffle_8(from, count, to);
  for (int64_t i = 0; i < count; ++i) {
    for (int byte = 0; byte < item_bytes; ++byte) to[i * item_bytes + byte] = from[byte * count + i];
  }
}

}  // namespace fastseg
