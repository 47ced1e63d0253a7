// SPDX-License-Identifier: BSD-3-Clause
#include "array/masks.h"

#include <algorithm>

#include "cpu_utils.h"

namespace fastseg {
namespace {

constexpr int kGroup = 64;            // voxels side by side, as many as the widest vector has bytes
constexpr int64_t kMostRounds = 255;  // until a byte that counts is full

// A byte counts for each of the 64 places: adding wider numbers would take eight times as many instructions.
template <bool kMasked>
FASTSEG_ALWAYS_INLINE void sum_confusion(const uint8_t* prediction, const uint8_t* target,
                                         const uint8_t* valid, int64_t groups, ConfusionSums& sums) {
  while (groups > 0) {
    const int64_t rounds = std::min(groups, kMostRounds);
    uint8_t inside[kGroup] = {}, trues[kGroup] = {}, predicted[kGroup] = {}, both[kGroup] = {};
    for (int64_t round = 0; round < rounds; ++round) {
      for (int i = 0; i < kGroup; ++i) {
        const uint8_t v = kMasked ? valid[i] != 0 : 1;
        const uint8_t t = (target[i] != 0) & v, p = (prediction[i] != 0) & v;
        inside[i] += v;
        trues[i] += t;
        predicted[i] += p;
        both[i] += t & p;
      }
      prediction += kGroup;
      target += kGroup;
      if (kMasked) valid += kGroup;
    }
    for (int i = 0; i < kGroup; ++i) {
      sums.valid += inside[i];
      sums.target += trues[i];
      sums.prediction += predicted[i];
      sums.both += both[i];
    }
    groups -= rounds;
  }
}

FASTSEG_CPU_CLONES void sum_all(const uint8_t* prediction, const uint8_t* target, int64_t groups,
                                ConfusionSums& sums) {
  sum_confusion<false>(prediction, target, nullptr, groups, sums);
}

FASTSEG_CPU_CLONES void sum_valid(const uint8_t* prediction, const uint8_t* target, const uint8_t* valid,
                                  int64_t groups, ConfusionSums& sums) {
  sum_confusion<true>(prediction, target, valid, groups, sums);
}

// How many groups there are before the one in which the voxel of this rank lies; seen grows by what they
// hold.
FASTSEG_CPU_CLONES int64_t skip_groups(const uint8_t* codes, const uint8_t* target, int64_t groups,
                                       int64_t rank, int64_t& seen) {
  for (int64_t group = 0; group < groups; ++group) {
    uint8_t marked = 0;  // a group is at most 64
    for (int i = 0; i < kGroup; ++i) {
      marked += (codes[group * kGroup + i] != 0) & (target[group * kGroup + i] != 0);
    }
    if (seen + marked > rank) return group;
    seen += marked;
  }
  return groups;
}

}  // namespace

ConfusionSums count_confusion(const uint8_t* prediction, const uint8_t* target, const uint8_t* valid,
                              int64_t voxels) {
  ConfusionSums sums;
  if (valid == nullptr) {
    sum_all(prediction, target, voxels / kGroup, sums);
  } else {
    sum_valid(prediction, target, valid, voxels / kGroup, sums);
  }
  for (int64_t i = voxels / kGroup * kGroup; i < voxels; ++i) {
    const bool v = valid == nullptr || valid[i] != 0, t = v && target[i] != 0, p = v && prediction[i] != 0;
    sums.valid += v;
    sums.target += t;
    sums.prediction += p;
    sums.both += t && p;
  }
  return sums;
}

int64_t count_marked(const uint8_t* codes, const uint8_t* target, int64_t voxels) {
  return count_confusion(target == nullptr ? codes : target, codes, nullptr, voxels).both;
}

void find_marked(const uint8_t* codes, const uint8_t* target, int64_t voxels, const int64_t* ranks,
                 int64_t count, int64_t* places) {
  if (target == nullptr) target = codes;
  int64_t place = 0, seen = 0, next = 0;  // seen: marked voxels before place
  while (next < count) {
    place +=
        kGroup * skip_groups(codes + place, target + place, (voxels - place) / kGroup, ranks[next], seen);
    const int size = int(std::min<int64_t>(kGroup, voxels - place));
    if (size == 0) break;
    uint64_t left = 0;
    for (int i = 0; i < size; ++i) left |= uint64_t(codes[place + i] != 0 && target[place + i] != 0) << i;
    for (; left != 0; left &= left - 1, ++seen) {
      for (; next < count && ranks[next] == seen; ++next) places[next] = place + __builtin_ctzll(left);
    }
    place += size;
  }
  std::fill(places + next, places + count, voxels);
}

}  // namespace fastseg
