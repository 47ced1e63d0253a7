// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA kernels of region_pool gather of a region: statistics that begin empty, take in one voxel,
// merge with their like, and move between the lanes of a warp; and how labels become row numbers.
#pragma once

#include "../cuda_utils.cuh"
#include "../region_pool.h"

namespace fastseg {
namespace {

constexpr unsigned kFull = 0xffffffffu;
constexpr uint32_t kNone = 0xffffffffu;  // the row of a voxel that takes no part

// Statistics are merged in float64 across blocks.
struct Totals {
  int64_t count;
  double sum, squares;  // relative to the shift
  double extreme[2];    // minimum, maximum: float32 and float64 fit exactly
  int64_t argument[2];
};

template <class Real>
struct SumStat {
  static constexpr bool kShifted = false;
  Real sum;

  __device__ static SumStat none() { return {Real(0)}; }
  __device__ static SumStat of(Real value, int) { return {value}; }
  __device__ void merge(const SumStat& other) { sum += other.sum; }
  template <class Visit>
  __device__ void each(Visit visit) {
    visit(sum);
  }
  __device__ void add_to(Totals& totals, int64_t) const { totals.sum += double(sum); }
};

// Chan, Golub, LeVeque 1983: squares are distances from the own mean, so that no large terms cancel.
template <class Real>
struct MomentStat {
  static constexpr bool kShifted = true;
  int count;
  Real sum, squares;

  __device__ static MomentStat none() { return {0, Real(0), Real(0)}; }
  __device__ static MomentStat of(Real value, int) { return {1, value, Real(0)}; }
  __device__ void merge(const MomentStat& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const Real own = Real(count), others = Real(other.count);
    const Real difference = other.sum / others - sum / own;
    squares += other.squares + difference * difference * (own * (others / (own + others)));
    sum += other.sum;
    count += other.count;
  }
  template <class Visit>
  __device__ void each(Visit visit) {
    visit(count);
    visit(sum);
    visit(squares);
  }
  __device__ void add_to(Totals& totals, int64_t) const {
    if (count == 0) return;
    const double own = double(totals.count), others = double(count);
    const double difference = double(sum) / others - (own > 0 ? totals.sum / own : 0.0);
    totals.squares += double(squares) + difference * difference * (own * (others / (own + others)));
    totals.sum += double(sum);
    totals.count += count;
  }
};

// A NaN beats every number; of equals, and of NaNs, the lower index stays.
template <bool kMaximum, class Real, class Index>
__device__ __forceinline__ bool beats(Real value, Index index, Real other, Index other_index) {
  if (index < 0 || other_index < 0) return other_index < 0;
  if (value != value || other != other) return value != value && (other == other || index < other_index);
  if (value == other) return index < other_index;
  return kMaximum ? value > other : value < other;
}

template <class Real, bool kMaximum>
struct ExtremeStat {
  static constexpr bool kShifted = false;
  Real value;
  int index;  // from the begin of the range; -1: none

  __device__ static ExtremeStat none() { return {Real(0), -1}; }
  __device__ static ExtremeStat of(Real value, int index) { return {value, index}; }
  __device__ void merge(const ExtremeStat& other) {
    if (beats<kMaximum>(other.value, other.index, value, index)) *this = other;
  }
  template <class Visit>
  __device__ void each(Visit visit) {
    visit(value);
    visit(index);
  }
  __device__ void add_to(Totals& totals, int64_t start) const {
    if (index < 0) return;
    const int64_t where = start + index;
    if (!beats<kMaximum>(double(value), where, totals.extreme[kMaximum], totals.argument[kMaximum])) return;
    totals.extreme[kMaximum] = double(value);
    totals.argument[kMaximum] = where;
  }
};

// Everything, in one pass. Moments are of the value less a shift, extremes of the value itself.
template <class Real>
struct AllStat {
  static constexpr bool kShifted = true;
  MomentStat<Real> moments;
  ExtremeStat<Real, false> minimum;
  ExtremeStat<Real, true> maximum;

  __device__ static AllStat none() {
    return {MomentStat<Real>::none(), ExtremeStat<Real, false>::none(), ExtremeStat<Real, true>::none()};
  }
  __device__ static AllStat of(Real value, int index) {
    return {MomentStat<Real>::of(value, index), {value, index}, {value, index}};
  }
  __device__ void merge(const AllStat& other) {
    moments.merge(other.moments);
    minimum.merge(other.minimum);
    maximum.merge(other.maximum);
  }
  template <class Visit>
  __device__ void each(Visit visit) {
    moments.each(visit);
    minimum.each(visit);
    maximum.each(visit);
  }
  __device__ void add_to(Totals& totals, int64_t start) const {
    moments.add_to(totals, start);
    minimum.add_to(totals, start);
    maximum.add_to(totals, start);
  }
};

// One voxel; a shift goes into the moments only.
template <class Stat, class Real>
__device__ __forceinline__ Stat stat_of(Real value, Real shift, int index) {
  Stat stat = Stat::of(value, index);
  if constexpr (std::is_same_v<Stat, AllStat<Real>>) {
    stat.moments.sum = value - shift;
  } else if constexpr (Stat::kShifted) {
    stat.sum = value - shift;
  }
  return stat;
}

// What a channel's moments are taken relative to, so that a common offset of all values costs no digits: its
// value at the first voxel of the sample that counts, at which no NaN that is skipped can have a say.
template <class Real, class T>
__device__ __forceinline__ Real shift_of(const RegionLabels& in, const T* features, int64_t sample,
                                         int64_t channel, const unsigned long long* first) {
  if (first[sample] >= (unsigned long long)in.voxels) return Real(0);
  const int64_t voxel = int64_t(first[sample]);
  const Real value =
      to_real<Real>(features[in.channels_last ? (sample * in.voxels + voxel) * in.channels + channel
                                              : (sample * in.channels + channel) * in.voxels + voxel]);
  return value - value == Real(0) ? value : Real(0);  // not NaN, not inf
}

template <class Stat>
__device__ __forceinline__ Stat shuffle_up(Stat stat, int delta) {
  stat.each([=](auto& field) { field = __shfl_up_sync(kFull, field, delta); });
  return stat;
}

template <class Stat>
__device__ __forceinline__ Stat shuffle_down(Stat stat, int delta) {
  stat.each([=](auto& field) { field = __shfl_down_sync(kFull, field, delta); });
  return stat;
}

// Calls run with a value of the labels' type and one of the unsigned type in which a negative id is out of
// range too. The kind is the same for all threads, so the switch does not diverge.
template <class Run>
__device__ __forceinline__ void with_label_type(LabelKind kind, Run run) {
  switch (kind) {
    case LabelKind::kUint8:
      return run(uint8_t(), uint32_t());
    case LabelKind::kInt8:
      return run(int8_t(), uint32_t());
    case LabelKind::kUint16:
      return run(uint16_t(), uint32_t());
    case LabelKind::kInt16:
      return run(int16_t(), uint32_t());
    case LabelKind::kUint32:
      return run(uint32_t(), uint32_t());
    case LabelKind::kInt32:
      return run(int32_t(), uint32_t());
    case LabelKind::kUint64:
      return run(uint64_t(), uint64_t());
    case LabelKind::kInt64:
      return run(int64_t(), uint64_t());
  }
}

// The rows of kCount voxels; of those behind the first `count`, kNone. kVectors: all are there, and aligned.
template <bool kVectors, int kCount>
__device__ __forceinline__ void rows_of(const RegionLabels& in, int64_t at, int count,
                                        uint32_t (&rows)[kCount]) {
  with_label_type(in.label_kind, [&](auto type, auto unsigned_type) {
    using Id = decltype(type);
    using Wide = decltype(unsigned_type);
    const Id* ids = static_cast<const Id*>(in.regions) + at;
    Lanes<Id, kCount> own{};
    if constexpr (kVectors) {
      own = *reinterpret_cast<const Lanes<Id, kCount>*>(ids);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i < count) own.value[i] = ids[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool counts = kVectors || i < count;
      rows[i] = counts && Wide(own.value[i]) < Wide(in.num_regions) ? uint32_t(own.value[i]) : kNone;
    }
  });
}

__device__ __forceinline__ uint32_t row_of(const RegionLabels& in, int64_t at) {
  uint32_t row[1];
  rows_of<false>(in, at, 1, row);
  return row[0];
}

}  // namespace
}  // namespace fastseg
