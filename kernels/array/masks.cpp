// SPDX-License-Identifier: BSD-3-Clause
#include "array/masks.h"

#include <algorithm>
#include <limits>

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
template <bool kTarget>
FASTSEG_ALWAYS_INLINE int64_t skip(const uint8_t* codes, const uint8_t* target, int64_t groups, int64_t rank,
                                   int64_t& seen) {
  constexpr int64_t kFar =
      16;  // groups that are counted place by place, as above, where the rank is beyond them
  int64_t group = 0;
  while (group < groups) {
    const int64_t some = rank - seen > kFar * kGroup && groups - group >= kFar ? kFar : 1;
    const uint8_t *code = codes + group * kGroup, *trues = target + group * kGroup;
    uint8_t marked[kGroup] = {};
    for (int64_t round = 0; round < some; ++round, code += kGroup, trues += kGroup) {
      for (int i = 0; i < kGroup; ++i) marked[i] += (code[i] != 0) & (!kTarget || trues[i] != 0);
    }
    int total = 0;
    for (int i = 0; i < kGroup; ++i) total += marked[i];
    if (seen + total > rank) return group;
    seen += total;
    group += some;
  }
  return groups;
}
FASTSEG_CPU_CLONES int64_t skip_marked(const uint8_t* codes, int64_t groups, int64_t rank, int64_t& seen) {
  return skip<false>(codes, codes, groups, rank, seen);
}
FASTSEG_CPU_CLONES int64_t skip_both(const uint8_t* codes, const uint8_t* target, int64_t groups,
                                     int64_t rank, int64_t& seen) {
  return skip<true>(codes, target, groups, rank, seen);
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

int64_t find_marked(const uint8_t* codes, const uint8_t* target, int64_t voxels, const int64_t* ranks,
                    int64_t count, int64_t* places) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  int64_t place = 0, seen = 0, next = 0;  // seen: marked voxels before place
  while (place < voxels) {
    const int64_t groups = (voxels - place) / kGroup, rank = next < count ? ranks[next] : kNone;
    place += kGroup * (target == nullptr ? skip_marked(codes + place, groups, rank, seen)
                                         : skip_both(codes + place, target + place, groups, rank, seen));
    const int size = int(std::min<int64_t>(kGroup, voxels - place));
    uint64_t left = 0;
    for (int i = 0; i < size; ++i) {
      left |= uint64_t(codes[place + i] != 0 && (target == nullptr || target[place + i] != 0)) << i;
    }
    for (; left != 0; left &= left - 1, ++seen) {
      for (; next < count && ranks[next] == seen; ++next) places[next] = place + __builtin_ctzll(left);
    }
    place += size;
  }
  std::fill(places + next, places + count, voxels);
  return seen;
}

}  // namespace fastseg
