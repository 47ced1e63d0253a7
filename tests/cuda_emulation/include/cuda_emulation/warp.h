// SPDX-License-Identifier: BSD-3-Clause
// Warp shuffles, votes, matches and reductions. Each is one exchange: the lanes named in the mask bring a
// value, and every lane then works out its result from all of them.
#pragma once

#include "cuda_emulation/scheduler.h"

namespace cuda_emulation {

template <class T>
FASTSEG_EMULATION_INTERNAL uint64_t pack(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

// The value of a lane that took no part is undefined on a GPU; here all its bits are set (NaN).
template <class T>
FASTSEG_EMULATION_INTERNAL T unpack(const Lanes& lanes, int lane) {
  const uint64_t bits = (lanes.present >> lane) & 1u ? lanes.value[lane] : ~uint64_t{0};
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

FASTSEG_EMULATION_INTERNAL inline void check_width(const char* name, int width) {
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0)
    report("bad warp op", "%s: width must be a power of two up to 32, got %d", name, width);
}

// `pick(lane, first, last)` names the source lane within the segment [first, last], as the PTX manual does.
template <class T, class Pick>
FASTSEG_EMULATION_INTERNAL T shuffle(const char* name, unsigned mask, T value, int width, Site site,
                                     Pick pick) {
  check_width(name, width);
  const Lanes lanes = warp_exchange(name, mask, pack(value), false, site);
  const int lane = lane_index(), first = lane & ~(width - 1);
  const int source = pick(lane, first, first + width - 1);
  return unpack<T>(lanes, source);
}

template <class Reduce, class T>
FASTSEG_EMULATION_INTERNAL T reduce(const char* name, unsigned mask, T value, Site site, Reduce combine) {
  const Lanes lanes = warp_exchange(name, mask, pack(value), false, site);
  bool any = false;
  T result{};
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!((lanes.present >> lane) & 1u)) continue;
    result = any ? combine(result, unpack<T>(lanes, lane)) : unpack<T>(lanes, lane);
    any = true;
  }
  return result;
}

FASTSEG_EMULATION_INTERNAL inline unsigned ballot(const char* name, unsigned mask, bool predicate,
                                                  Site site) {
  const Lanes lanes = warp_exchange(name, mask, predicate, false, site);
  unsigned votes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane)
    if ((lanes.present >> lane) & 1u) votes |= static_cast<unsigned>(lanes.value[lane]) << lane;
  return votes;
}

FASTSEG_EMULATION_INTERNAL inline unsigned match(unsigned mask, uint64_t bits, Site site) {
  const Lanes lanes = warp_exchange("__match_any_sync", mask, bits, false, site);
  unsigned same = 0;
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (((lanes.present >> lane) & 1u) && lanes.value[lane] == bits) same |= 1u << lane;
  return same;
}

}  // namespace cuda_emulation

#define FASTSEG_SITE cuda_emulation::Site site = cuda_emulation::Site::here()

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, FASTSEG_SITE) {
  return cuda_emulation::shuffle("__shfl_sync", mask, value, width, site,
                                 [=](int, int first, int) { return first + (source & (width - 1)); });
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTSEG_SITE) {
  return cuda_emulation::shuffle("__shfl_up_sync", mask, value, width, site, [=](int lane, int first, int) {
    return lane - static_cast<int>(delta) < first ? lane : lane - static_cast<int>(delta);
  });
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTSEG_SITE) {
  return cuda_emulation::shuffle("__shfl_down_sync", mask, value, width, site, [=](int lane, int, int last) {
    return lane + static_cast<int>(delta) > last ? lane : lane + static_cast<int>(delta);
  });
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, FASTSEG_SITE) {
  return cuda_emulation::shuffle("__shfl_xor_sync", mask, value, width, site, [=](int lane, int, int last) {
    return (lane ^ lane_mask) > last ? lane : lane ^ lane_mask;
  });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTSEG_SITE) {
  return cuda_emulation::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, FASTSEG_SITE) {
  return cuda_emulation::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTSEG_SITE) {
  return cuda_emulation::ballot("__all_sync", mask, predicate == 0, site) == 0;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, FASTSEG_SITE) {
  return cuda_emulation::match(mask, cuda_emulation::pack(value), site);
}

// On a GPU these take 32-bit integers only, and so they do here.
#define FASTSEG_EMULATE_REDUCE(name, T, expression)                                                    \
  inline T name(unsigned mask, T value, FASTSEG_SITE) {                                                \
    return cuda_emulation::reduce(#name, mask, value, site, [](T m, T n) -> T { return expression; }); \
  }
FASTSEG_EMULATE_REDUCE(__reduce_add_sync, int,
                       static_cast<int>(static_cast<unsigned>(m) + static_cast<unsigned>(n)))
FASTSEG_EMULATE_REDUCE(__reduce_add_sync, unsigned, m + n)
FASTSEG_EMULATE_REDUCE(__reduce_min_sync, int, m < n ? m : n)
FASTSEG_EMULATE_REDUCE(__reduce_min_sync, unsigned, m < n ? m : n)
FASTSEG_EMULATE_REDUCE(__reduce_max_sync, int, m < n ? n : m)
FASTSEG_EMULATE_REDUCE(__reduce_max_sync, unsigned, m < n ? n : m)
FASTSEG_EMULATE_REDUCE(__reduce_and_sync, unsigned, m& n)
FASTSEG_EMULATE_REDUCE(__reduce_or_sync, unsigned, m | n)
FASTSEG_EMULATE_REDUCE(__reduce_xor_sync, unsigned, m ^ n)
#undef FASTSEG_EMULATE_REDUCE

inline void __syncwarp(unsigned mask = 0xffffffffu, FASTSEG_SITE) {
  cuda_emulation::warp_exchange("__syncwarp", mask, 0, true, site);
}

#undef FASTSEG_SITE
