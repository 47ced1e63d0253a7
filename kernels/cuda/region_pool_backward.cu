// SPDX-License-Identifier: BSD-3-Clause
// The gradient of region_pool on CUDA: every voxel takes what the row of its region says, so this is a gather
// from tables that lie in the caches. A thread has 16 bytes of voxels and reads their labels once for a group
// of channels; of a row it takes 16 bytes at a time, four channels, so that lanes whose rows differ ask for a
// quarter as many pieces, and writes 16 bytes of each channel. Written per voxel and channel: the gradient
// once; for the variance the feature is read.
#include "region_pool_stats.cuh"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 16;  // of a block

template <class Real>
struct Tables {
  const Real *base, *slope, *mean;  // of the sample

  // Of kCount channels that lie from `entry` on; `wide`: aligned, and all are there; else only `count` are.
  template <bool kSloping, int kCount>
  __device__ __forceinline__ Lanes<Real, kCount> at(int64_t entry, const Lanes<Real, kCount>& features,
                                                    bool wide, int count = kCount) const {
    const auto read = [&](const Real* table) {
      Lanes<Real, kCount> values{};
      if (wide) {
        values = *reinterpret_cast<const Lanes<Real, kCount>*>(table + entry);
      } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          if (i < count) values.value[i] = table[entry + i];
        }
      }
      return values;
    };
    Lanes<Real, kCount> values{};
    if (base) values = read(base);
    if constexpr (kSloping) {
      const Lanes<Real, kCount> slopes = read(slope), means = read(mean);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values.value[i] += slopes.value[i] * (features.value[i] - means.value[i]);
      }
    }
    return values;
  }

  bool are_aligned() const { return is_aligned(base) && is_aligned(slope) && is_aligned(mean); }
};

template <class Real>
__host__ __device__ __forceinline__ Tables<Real> tables_of(const RegionLabels& in,
                                                           const RegionGradient& gradient, int64_t sample) {
  const int64_t offset = sample * in.num_regions * in.channels;
  const auto* base = static_cast<const Real*>(gradient.base);
  const auto* slope = static_cast<const Real*>(gradient.slope);
  const auto* mean = static_cast<const Real*>(gradient.mean);
  return {base ? base + offset : nullptr, slope ? slope + offset : nullptr, mean ? mean + offset : nullptr};
}

// 16 bytes of voxels, or the first `count` of them.
template <bool kVectors, class T>
__device__ __forceinline__ Lanes<T, kLanes<T>> read_voxels(const T* values, int count) {
  if constexpr (kVectors) return *reinterpret_cast<const Lanes<T, kLanes<T>>*>(values);
  Lanes<T, kLanes<T>> read{};
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < count) read.value[i] = values[i];
  }
  return read;
}

// Block x: kThreads threads' voxels of a sample and a group of channels, groups of the same voxels one after
// the other. kVectors: voxels can be read and written 16 bytes at a time; `wide`: rows of the tables can be
// read so.
template <class T, bool kSloping, bool kVectors>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(RegionLabels in, const T* features, RegionGradient gradient, int64_t stretches, bool wide,
                  T* grad_features) {
  using Real = RealOf<T>;
  constexpr int kVoxels = kLanes<T>, kAtOnce = kLanes<Real>;
  const auto groups = unsigned((in.channels + kChannels - 1) / kChannels), of_voxels = blockIdx.x / groups;
  const int64_t group = blockIdx.x % groups;
  const int64_t sample = of_voxels / unsigned(stretches), stretch = of_voxels % unsigned(stretches);
  const int64_t first = (stretch * kThreads + threadIdx.x) * kVoxels;
  if (first >= in.voxels) return;
  const int count = int(in.voxels - first < kVoxels ? in.voxels - first : kVoxels);
  const Tables<Real> tables = tables_of<Real>(in, gradient, sample);
  uint32_t row[kVoxels];
  rows_of<kVectors>(in, sample * in.voxels + first, count, row);
  const int64_t end = (group + 1) * kChannels < in.channels ? (group + 1) * kChannels : in.channels;
#pragma unroll 1
  for (int64_t channel = group * kChannels; channel < end; channel += kAtOnce) {
    const int64_t element = (sample * in.channels + channel) * in.voxels + first;
    const int rest = int(end - channel < kAtOnce ? end - channel : kAtOnce);
    Lanes<T, kVoxels> values[kAtOnce]{}, out[kAtOnce];
    if constexpr (kSloping) {
#pragma unroll
      for (int c = 0; c < kAtOnce; ++c) {
        if (c < rest) values[c] = read_voxels<kVectors>(features + element + c * in.voxels, count);
      }
    }
#pragma unroll
    for (int i = 0; i < kVoxels; ++i) {
      Lanes<Real, kAtOnce> own{}, gradients{};
#pragma unroll
      for (int c = 0; c < kAtOnce; ++c) own.value[c] = to_real<Real>(values[c].value[i]);
      if (row[i] != kNone) {
        gradients = tables.template at<kSloping>(int64_t(row[i]) * in.channels + channel, own, wide, rest);
      }
#pragma unroll
      for (int c = 0; c < kAtOnce; ++c) out[c].value[i] = from_real<T>(gradients.value[c]);
    }
#pragma unroll
    for (int c = 0; c < kAtOnce; ++c) {
      if (c >= rest) break;
      const int64_t at = element + c * in.voxels;
      if constexpr (kVectors) {
        write_lanes(out[c], grad_features, at);
      } else {
#pragma unroll
        for (int i = 0; i < kVoxels; ++i) {
          if (i < count) grad_features[at + i] = out[c].value[i];
        }
      }
    }
  }
}

// Channels last: a thread per kCount channels of a voxel, neighbours in the same row of the table.
template <class T, bool kSloping, int kCount>
__global__ void __launch_bounds__(kThreads)
    gather_channels_last_kernel(RegionLabels in, const T* features, RegionGradient gradient, Divisor pieces,
                                Divisor voxels, T* grad_features) {
  using Real = RealOf<T>;
  const int64_t piece = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t voxel = pieces.quotient(piece);
  if (voxel >= in.batch * in.voxels) return;
  const int64_t channel = piece * kCount - voxel * in.channels;
  const Tables<Real> tables = tables_of<Real>(in, gradient, voxels.quotient(voxel));
  const uint32_t row = row_of(in, voxel);
  Lanes<Real, kCount> own{}, gradients{};
  if constexpr (kSloping) {
    const auto values = reinterpret_cast<const Lanes<T, kCount>*>(features)[piece];
#pragma unroll
    for (int i = 0; i < kCount; ++i) own.value[i] = to_real<Real>(values.value[i]);
  }
  if (row != kNone) {
    gradients = tables.template at<kSloping>(int64_t(row) * in.channels + channel, own, true);
  }
  Lanes<T, kCount> out;
#pragma unroll
  for (int i = 0; i < kCount; ++i) out.value[i] = from_real<T>(gradients.value[i]);
  write_lanes(out, grad_features, piece * kCount);
}

// One thread per region and channel, after the rest: regions do not share voxels. The value is computed anew,
// with the extremes' share, so it is rounded once.
template <class T>
__global__ void __launch_bounds__(kThreads)
    extrema_kernel(RegionLabels in, const T* features, RegionGradient gradient, T* grad_features) {
  using Real = RealOf<T>;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= in.batch * in.num_regions * in.channels) return;
  const int64_t channel = at % in.channels, row = at / in.channels, sample = row / in.num_regions;
  const Tables<Real> tables = tables_of<Real>(in, gradient, sample);
  const auto* of_minimum = static_cast<const Real*>(gradient.grad_minimum);
  const auto* of_maximum = static_cast<const Real*>(gradient.grad_maximum);
  const int64_t where[2] = {of_minimum ? gradient.argmin[at] : -1, of_maximum ? gradient.argmax[at] : -1};
  const bool same = where[0] == where[1];
  const Real share[2] = {of_minimum ? of_minimum[at] : Real(0), of_maximum ? of_maximum[at] : Real(0)};
  for (int i = 0; i < 2; ++i) {
    if (where[i] < 0 || (i == 1 && same)) continue;
    const int64_t element = in.channels_last ? (sample * in.voxels + where[i]) * in.channels + channel
                                             : (sample * in.channels + channel) * in.voxels + where[i];
    const int64_t entry = (row % in.num_regions) * in.channels + channel;
    const Lanes<Real, 1> feature{{tables.slope ? to_real<Real>(features[element]) : Real(0)}};
    const Real value = (tables.slope ? tables.template at<true>(entry, feature, true)
                                     : tables.template at<false>(entry, feature, true))
                           .value[0] +
                       share[i];
    grad_features[element] = from_real<T>(same ? value + share[1] : value);
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads) shares_kernel(RegionLabels in, RegionShares shares) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= in.batch * in.num_regions * in.channels) return;
  const int64_t count = shares.count[at / in.channels];
  const Real size = Real(count < 1 ? 1 : count);
  const auto divide = [&](const void* grads, void* table, Real factor) {
    if (grads) static_cast<Real*>(table)[at] = factor * static_cast<const Real*>(grads)[at] / size;
  };
  divide(shares.grad_mean, shares.base, 1);
  divide(shares.grad_variance, shares.slope, 2);
}

template <class T, bool kSloping>
cudaError_t gather(const RegionLabels& in, const T* features, const RegionGradient& gradient,
                   T* grad_features, cudaStream_t stream) {
  using Real = RealOf<T>;
  const bool aligned = is_aligned(features) && is_aligned(grad_features);
  const Tables<Real> tables = tables_of<Real>(in, gradient, 0);
  if (in.channels_last) {
    const bool vectors = in.channels % kLanes<T> == 0 && aligned && tables.are_aligned();
    const auto kernel = vectors ? gather_channels_last_kernel<T, kSloping, kLanes<T>>
                                : gather_channels_last_kernel<T, kSloping, 1>;
    const int64_t pieces = in.channels / (vectors ? kLanes<T> : 1);
    const int64_t blocks = (in.batch * in.voxels * pieces + kThreads - 1) / kThreads;
    return launch(kernel, unsigned(blocks), kThreads, 0, stream, in, features, gradient, Divisor::of(pieces),
                  Divisor::of(in.voxels), grad_features);
  }
  const int64_t stretch = kThreads * kLanes<T>, stretches = (in.voxels + stretch - 1) / stretch;
  const int64_t groups = (in.channels + kChannels - 1) / kChannels;
  const bool vectors = in.voxels % kLanes<T> == 0 && aligned && is_aligned(in.regions);
  const bool wide = in.channels % kLanes<Real> == 0 && tables.are_aligned();
  const auto kernel = vectors ? gather_kernel<T, kSloping, true> : gather_kernel<T, kSloping, false>;
  return launch(kernel, unsigned(in.batch * stretches * groups), kThreads, 0, stream, in, features, gradient,
                stretches, wide, grad_features);
}

template <class T>
cudaError_t gradient_of(const RegionLabels& in, const void* values, const RegionGradient& gradient, void* out,
                        cudaStream_t stream) {
  const auto* features = static_cast<const T*>(values);
  auto* grad_features = static_cast<T*>(out);
  if (in.batch * in.voxels * in.channels == 0) return cudaSuccess;
  const auto run = gradient.slope ? gather<T, true> : gather<T, false>;
  const cudaError_t status = run(in, features, gradient, grad_features, stream);
  if (status != cudaSuccess || !(gradient.grad_minimum || gradient.grad_maximum)) return status;
  const int64_t entries = in.batch * in.num_regions * in.channels;
  return launch(extrema_kernel<T>, unsigned((entries + kThreads - 1) / kThreads), kThreads, 0, stream, in,
                features, gradient, grad_features);
}

}  // namespace

cudaError_t region_shares_cuda(const RegionLabels& in, ScalarKind kind, const RegionShares& shares,
                               cudaStream_t stream) {
  const int64_t entries = in.batch * in.num_regions * in.channels;
  if (entries == 0) return cudaSuccess;
  const auto kernel = kind == ScalarKind::kFloat64 ? shares_kernel<double> : shares_kernel<float>;
  return launch(kernel, unsigned((entries + kThreads - 1) / kThreads), kThreads, 0, stream, in, shares);
}

cudaError_t region_gradient_cuda(const RegionLabels& in, const RegionFeatures& features,
                                 const RegionGradient& gradient, void* grad_features, cudaStream_t stream) {
  return with_type(features.kind, [&](auto type) {
    return gradient_of<decltype(type)>(in, features.features, gradient, grad_features, stream);
  });
}

}  // namespace fastseg
