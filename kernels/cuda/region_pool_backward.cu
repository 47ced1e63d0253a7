// SPDX-License-Identifier: BSD-3-Clause
// The gradient of region_pool on CUDA: every voxel takes what the row of its region says. A thread holds the
// rows of four voxels and goes over a group of channels, so labels are read once per group; rows come from
// the caches. Written per voxel and channel: the gradient once; for the variance the feature is read.
#include "region_pool_stats.cuh"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;     // voxels of a thread
constexpr int kChannels = 16;  // of a block

template <class Real>
struct Tables {
  const Real *base, *slope, *mean;  // of the sample

  __device__ __forceinline__ Real at(int64_t entry, Real feature) const {
    const Real value = base ? base[entry] : Real(0);
    return slope ? value + slope[entry] * (feature - mean[entry]) : value;
  }
};

template <class Real>
__device__ __forceinline__ Tables<Real> tables_of(const RegionLabels& in, const RegionGradient& gradient,
                                                  int64_t sample) {
  const int64_t offset = sample * in.num_regions * in.channels;
  const auto* base = static_cast<const Real*>(gradient.base);
  const auto* slope = static_cast<const Real*>(gradient.slope);
  const auto* mean = static_cast<const Real*>(gradient.mean);
  return {base ? base + offset : nullptr, slope ? slope + offset : nullptr, mean ? mean + offset : nullptr};
}

// Block x: a stretch of kThreads * kVector voxels of a sample and a group of channels, groups of the same
// voxels one after the other.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(RegionLabels in, const T* features, RegionGradient gradient, int64_t stretches,
                  bool vectors, T* grad_features) {
  using Real = RealOf<T>;
  const int64_t groups = (in.channels + kChannels - 1) / kChannels, group = blockIdx.x % groups;
  const int64_t sample = blockIdx.x / groups / stretches;
  const int64_t stretch = blockIdx.x / groups - sample * stretches;
  const int64_t first = (stretch * kThreads + threadIdx.x) * kVector;
  if (first >= in.voxels) return;
  const int count = int(in.voxels - first < kVector ? in.voxels - first : kVector);
  const Tables<Real> tables = tables_of<Real>(in, gradient, sample);
  uint32_t row[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) row[i] = i < count ? row_of(in, sample * in.voxels + first + i) : kNone;
  const int64_t end = (group + 1) * kChannels < in.channels ? (group + 1) * kChannels : in.channels;
#pragma unroll 2
  for (int64_t channel = group * kChannels; channel < end; ++channel) {
    const int64_t element = (sample * in.channels + channel) * in.voxels + first;
    Lanes<T, kVector> values{}, out;
    if (tables.slope) {
      if (vectors) {
        values = *reinterpret_cast<const Lanes<T, kVector>*>(features + element);
      } else {
        for (int i = 0; i < count; ++i) values.value[i] = features[element + i];
      }
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const Real value = row[i] == kNone ? Real(0)
                                         : tables.at(int64_t(row[i]) * in.channels + channel,
                                                     to_real<Real>(values.value[i]));
      out.value[i] = from_real<T>(value);
    }
    if (vectors) {
      *reinterpret_cast<Lanes<T, kVector>*>(grad_features + element) = out;
    } else {
      for (int i = 0; i < count; ++i) grad_features[element + i] = out.value[i];
    }
  }
}

// Channels last: a thread per element, neighbours in the same row of the table.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_channels_last_kernel(RegionLabels in, const T* features, RegionGradient gradient,
                                T* grad_features) {
  using Real = RealOf<T>;
  const int64_t numel = in.batch * in.voxels * in.channels, step = int64_t(gridDim.x) * kThreads;
  for (int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x; element < numel; element += step) {
    const int64_t voxel = element / in.channels, channel = element - voxel * in.channels;
    const Tables<Real> tables = tables_of<Real>(in, gradient, voxel / in.voxels);
    const uint32_t row = row_of(in, voxel);
    const Real feature = tables.slope ? to_real<Real>(features[element]) : Real(0);
    const Real value = row == kNone ? Real(0) : tables.at(int64_t(row) * in.channels + channel, feature);
    grad_features[element] = from_real<T>(value);
  }
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
    const Real feature = tables.slope ? to_real<Real>(features[element]) : Real(0);
    const Real value = tables.at((row % in.num_regions) * in.channels + channel, feature) + share[i];
    grad_features[element] = from_real<T>(same ? value + share[1] : value);
  }
}

template <class T>
cudaError_t gradient_of(const RegionLabels& in, const void* values, const RegionGradient& gradient, void* out,
                        cudaStream_t stream) {
  const auto* features = static_cast<const T*>(values);
  auto* grad_features = static_cast<T*>(out);
  const int64_t numel = in.batch * in.voxels * in.channels;
  if (numel == 0) return cudaSuccess;
  cudaError_t status = cudaSuccess;
  if (in.channels_last) {
    const int64_t blocks = std::min<int64_t>((numel + kThreads - 1) / kThreads, 65536);
    status = launch(gather_channels_last_kernel<T>, unsigned(blocks), kThreads, 0, stream, in, features,
                    gradient, grad_features);
  } else {
    const int64_t stretches = (in.voxels + kThreads * kVector - 1) / (kThreads * kVector);
    const int64_t groups = (in.channels + kChannels - 1) / kChannels;
    const bool vectors = in.voxels % kVector == 0 && is_aligned(out) && is_aligned(values);
    status = launch(gather_kernel<T>, unsigned(in.batch * stretches * groups), kThreads, 0, stream, in,
                    features, gradient, stretches, vectors, grad_features);
  }
  if (status != cudaSuccess || !(gradient.grad_minimum || gradient.grad_maximum)) return status;
  const int64_t entries = in.batch * in.num_regions * in.channels;
  return launch(extrema_kernel<T>, unsigned((entries + kThreads - 1) / kThreads), kThreads, 0, stream, in,
                features, gradient, grad_features);
}

}  // namespace

cudaError_t region_gradient_cuda(const RegionLabels& in, const RegionFeatures& features,
                                 const RegionGradient& gradient, void* grad_features, cudaStream_t stream) {
  return with_type(features.kind, [&](auto type) {
    return gradient_of<decltype(type)>(in, features.features, gradient, grad_features, stream);
  });
}

}  // namespace fastseg
