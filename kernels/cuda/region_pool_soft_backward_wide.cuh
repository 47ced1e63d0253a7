// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool on CUDA, backward, in float64 or for many parts: a thread per voxel, its weights and their
// gradients in a column of shared memory, 16 parts or 16 channels at a time in registers. All threads read
// the same entries of the tables at once, four per access; a first kernel lays these out for that, padded.
// Read per voxel: weights once, features once for 16 parts (for the gradient of a variance once more);
// written: their gradients.
#pragma once

#include "region_pool_soft_maps.cuh"

namespace fastseg {
namespace {

constexpr int kBlock = 16;  // parts or channels in registers
constexpr int kMostThreads = 128;
constexpr int kFewestThreads = 32;  // where there are too many parts for the shared memory of more
constexpr int kManyParts = 32;
constexpr int kPrepareThreads = 256;

// Tables of one sample, padded to whole blocks, by part and by channel.
template <class Real>
struct Tables {
  Real *by_part, *by_channel, *curved_by_part, *curved_by_channel;
  int64_t parts, channels;  // padded

  __host__ __device__ int64_t size() const { return parts * channels; }
};

template <class Real>
__host__ __device__ Tables<Real> tables_in(const SoftInputs& in, Real* scratch, int64_t sample) {
  Tables<Real> tables{};
  tables.parts = (in.parts + kBlock - 1) / kBlock * kBlock;
  tables.channels = (in.channels + kBlock - 1) / kBlock * kBlock;
  const int64_t size = tables.size();
  tables.by_part = scratch + sample * 4 * size;
  tables.by_channel = tables.by_part + size;
  tables.curved_by_part = tables.by_channel + size;
  tables.curved_by_channel = tables.curved_by_part + size;
  return tables;
}

template <class Real>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(SoftInputs in, SoftGradient gradient, Real* scratch) {
  const int64_t size = tables_in(in, scratch, 0).size();
  const int64_t index = int64_t(blockIdx.x) * kPrepareThreads + threadIdx.x;
  if (index >= in.batch * size) return;
  const int64_t sample = index / size;
  const Tables<Real> tables = tables_in(in, scratch, sample);
  const int64_t k = index % size / tables.channels, c = index % size % tables.channels;
  const int64_t curved_channels = in.channels - in.plain;
  const bool real = k < in.parts && c < in.channels;
  const int64_t row = sample * in.parts + k;
  const Real direct = real ? static_cast<const Real*>(gradient.direct)[row * in.channels + c] : Real(0);
  const Real curved = real && c >= in.plain
                          ? static_cast<const Real*>(gradient.curved)[row * curved_channels + c - in.plain]
                          : Real(0);
  tables.by_part[k * tables.channels + c] = direct;
  tables.by_channel[c * tables.parts + k] = direct;
  tables.curved_by_part[k * tables.channels + c] = curved;
  tables.curved_by_channel[c * tables.parts + k] = curved;
}

// sums[i] += factor * table[i]
template <class Real>
__device__ __forceinline__ void add_block(const Real* table, Real factor, Real (&sums)[kBlock]) {
#pragma unroll
  for (int i = 0; i < kBlock; i += 4) {
    const auto entries = *reinterpret_cast<const Lanes<Real, 4>*>(table + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[i + j] += factor * entries.value[j];
  }
}

template <class Real>
__global__ void __launch_bounds__(kMostThreads, 3)
    gradient_kernel(SoftInputs in, SoftGradient gradient, Real* scratch, int64_t blocks_per_sample) {
  extern __shared__ double memory[];
  const int threads = blockDim.x;
  Real* weights = reinterpret_cast<Real*>(memory) + threadIdx.x;  // part k at k * threads: no bank conflicts
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const int64_t voxel = (blockIdx.x - sample * blocks_per_sample) * threads + threadIdx.x;
  if (voxel >= in.voxels) return;  // threads share nothing: there is no barrier
  const Tables<Real> tables = tables_in(in, scratch, sample);
  Real* grads = weights + tables.parts * threads;
  const auto* shift = static_cast<const Real*>(gradient.shift) + sample * in.channels;
  const auto* offset = static_cast<const Real*>(gradient.offset) + sample * in.parts;
  const int parts = int(in.parts);

  Real largest = -INFINITY, sum = 0;
  for (int k = 0; k < parts; ++k) {
    const Real value = read_part<Real>(in, sample, k, voxel);
    weights[k * threads] = value;
    if (value > largest || value != value) largest = value;
  }
  if (in.from_logits) {
    for (int k = 0; k < parts; ++k) {
      const Real value = exponential(weights[k * threads] - largest);
      weights[k * threads] = value;
      sum += value;
    }
    for (int k = 0; k < parts; ++k) weights[k * threads] /= sum;
  }

  if (gradient.grad_assignment) {
    for (int first = 0; first < parts; first += kBlock) {
      Real sums[kBlock];
#pragma unroll
      for (int i = 0; i < kBlock; ++i) sums[i] = first + i < parts ? offset[first + i] : Real(0);
#pragma unroll 2
      for (int64_t c = 0; c < in.channels; ++c) {
        const Real distance = read_channel<Real>(in, sample, c, voxel) - shift[c];
        add_block(tables.by_channel + c * tables.parts + first, distance, sums);
        if (c >= in.plain) {
          add_block(tables.curved_by_channel + c * tables.parts + first, distance * distance, sums);
        }
      }
#pragma unroll
      for (int i = 0; i < kBlock; ++i) grads[(first + i) * threads] = sums[i];
    }
    Real mean = 0;
    for (int k = 0; in.from_logits && k < parts; ++k) mean += weights[k * threads] * grads[k * threads];
    for (int k = 0; k < parts; ++k) {
      const Real grad = grads[k * threads];
      write_value(gradient.grad_assignment, in.assignment.kind,
                  offset_of(in.assignment, in.voxels, sample, k, voxel),
                  in.from_logits ? weights[k * threads] * (grad - mean) : grad);
    }
  }

  if (!gradient.grad_features && !gradient.grad_grey) return;
  for (int64_t first = 0; first < in.channels; first += kBlock) {
    Real sums[kBlock], curved[kBlock];
#pragma unroll
    for (int i = 0; i < kBlock; ++i) sums[i] = curved[i] = 0;
    const bool has_curved = first + kBlock > in.plain && in.plain < in.channels;
    for (int k = 0; k < parts; ++k) {
      const Real weight = weights[k * threads];
      add_block(tables.by_part + k * tables.channels + first, weight, sums);
      if (has_curved) add_block(tables.curved_by_part + k * tables.channels + first, weight, curved);
    }
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      const int64_t c = first + i;
      const bool grey = c >= in.features.rows;
      void* out = grey ? gradient.grad_grey : gradient.grad_features;
      if (c >= in.channels || !out) continue;
      const SoftMap& map = grey ? in.grey : in.features;
      const int64_t at = offset_of(map, in.voxels, sample, grey ? c - in.features.rows : c, voxel);
      Real value = sums[i];
      if (c >= in.plain) value += 2 * (read_value<Real>(map, at) - shift[c]) * curved[i];
      write_value(out, map.kind, at, value);
    }
  }
}

template <class Real>
cudaError_t gradient_of(const SoftInputs& in, const SoftGradient& gradient, Real* scratch,
                        cudaStream_t stream) {
  if (in.batch * in.voxels == 0) return cudaSuccess;
  const Tables<Real> tables = tables_in(in, scratch, 0);
  const int64_t entries = in.batch * tables.size();
  cudaError_t status = cudaSuccess;
  if (entries > 0) {
    status = launch(prepare_kernel<Real>, unsigned((entries + kPrepareThreads - 1) / kPrepareThreads),
                    kPrepareThreads, 0, stream, in, gradient, scratch);
  }
  if (status != cudaSuccess) return status;
  const int threads = in.parts <= kManyParts ? kMostThreads : kFewestThreads;
  const size_t bytes = 2 * size_t(tables.parts) * threads * sizeof(Real);  // 128 KiB for 256 parts in float64
  const int64_t blocks = (in.voxels + threads - 1) / threads;
  status =
      cudaFuncSetAttribute(gradient_kernel<Real>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (status != cudaSuccess) return status;
  return launch(gradient_kernel<Real>, unsigned(in.batch * blocks), threads, bytes, stream, in, gradient,
                scratch, blocks);
}

size_t scratch_of_columns(const SoftInputs& in) {
  return in.batch * 4 * tables_in<double>(in, nullptr, 0).size() * (in.wide ? sizeof(double) : sizeof(float));
}

cudaError_t gradient_by_columns(const SoftInputs& in, const SoftGradient& gradient, void* scratch,
                                cudaStream_t stream) {
  return in.wide ? gradient_of(in, gradient, static_cast<double*>(scratch), stream)
                 : gradient_of(in, gradient, static_cast<float*>(scratch), stream);
}

}  // namespace
}  // namespace fastseg
