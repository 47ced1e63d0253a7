// SPDX-License-Identifier: BSD-3-Clause
#include "array/levels.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace fastseg {
namespace {

// Neighbours mostly have the same level, and adding to a count waits for the addition before it: they are
// counted in tables of their own, as many as stay in the cache. Of 65,536 levels that is one; there, equal
// values that fill eight bytes are counted at once.
template <class Level, int kTables>
void count(const Level* values, int64_t size, int64_t* counts) {
  constexpr int64_t kLevels = int64_t(1) << (8 * sizeof(Level));
  constexpr int64_t kMost = int64_t(1) << 31;  // of what 32 bits count
  constexpr int kAtOnce = 8 / sizeof(Level), kBits = 8 * sizeof(Level);
  if (size < kLevels) {
    for (int64_t i = 0; i < size; ++i) ++counts[values[i]];
    return;
  }
  std::vector<uint32_t> tables(kTables * kLevels);
  for (int64_t begin = 0; begin < size; begin += kMost) {
    const int64_t end = std::min(begin + kMost, size);
    int64_t i = begin;
    for (; kTables == 1 && i + kAtOnce <= end; i += kAtOnce) {
      uint64_t some;
      std::memcpy(&some, values + i, sizeof some);
      if ((some << kBits | some >> (64 - kBits)) == some) {
        tables[values[i]] += kAtOnce;
      } else {
        for (int place = 0; place < kAtOnce; ++place) ++tables[values[i + place]];
      }
    }
    for (; i + kTables <= end; i += kTables) {
      for (int table = 0; table < kTables; ++table) ++tables[table * kLevels + values[i + table]];
    }
    for (; i < end; ++i) ++tables[values[i]];
    for (int64_t level = 0; level < kLevels; ++level) {
      for (int table = 0; table < kTables; ++table) {
        counts[level] += tables[table * kLevels + level];
        tables[table * kLevels + level] = 0;
      }
    }
  }
}

template <class Level>
void map(const Level* values, const Level* table, int64_t size, Level* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = table[values[i]];
}

}  // namespace

void count_levels(const uint8_t* values, int64_t size, int64_t* counts) {
  count<uint8_t, 8>(values, size, counts);
}
void count_levels(const uint16_t* values, int64_t size, int64_t* counts) {
  count<uint16_t, 1>(values, size, counts);
}

void map_levels(const uint8_t* values, const uint8_t* table, int64_t size, uint8_t* out) {
  map(values, table, size, out);
}
void map_levels(const uint16_t* values, const uint16_t* table, int64_t size, uint16_t* out) {
  map(values, table, size, out);
}

}  // namespace fastseg
