// SPDX-License-Identifier: BSD-3-Clause
// How the CUDA kernels of soft region_pool read and write single values of maps of any dtype and layout.
#pragma once

#include "../cuda_utils.cuh"
#include "../region_pool_soft.h"

namespace fastseg {
namespace {

__device__ __forceinline__ int64_t offset_of(const SoftMap& map, int64_t voxels, int64_t sample, int64_t j,
                                             int64_t voxel) {
  return map.last ? (sample * voxels + voxel) * map.rows + j : (sample * map.rows + j) * voxels + voxel;
}

// The kind is the same for all threads, so the switches do not diverge.
template <class Real>
__device__ __forceinline__ Real read_value(const SoftMap& map, int64_t at) {
  switch (map.kind) {
    case ScalarKind::kFloat64:
      return Real(static_cast<const double*>(map.values)[at]);
    case ScalarKind::kBFloat16:
      return to_real<Real>(static_cast<const __nv_bfloat16*>(map.values)[at]);
    case ScalarKind::kFloat16:
      return to_real<Real>(static_cast<const __half*>(map.values)[at]);
    default:
      return Real(static_cast<const float*>(map.values)[at]);
  }
}

template <class Real>
__device__ __forceinline__ void write_value(void* out, ScalarKind kind, int64_t at, Real value) {
  switch (kind) {
    case ScalarKind::kFloat64:
      static_cast<double*>(out)[at] = double(value);
      break;
    case ScalarKind::kBFloat16:
      static_cast<__nv_bfloat16*>(out)[at] = from_real<__nv_bfloat16>(value);
      break;
    case ScalarKind::kFloat16:
      static_cast<__half*>(out)[at] = from_real<__half>(value);
      break;
    default:
      static_cast<float*>(out)[at] = float(value);
      break;
  }
}

// Channel c counts on from the features to the grey image.
template <class Real>
__device__ __forceinline__ Real read_channel(const SoftInputs& in, int64_t sample, int64_t c, int64_t voxel) {
  const bool grey = c >= in.features.rows;
  const SoftMap& map = grey ? in.grey : in.features;
  return read_value<Real>(map, offset_of(map, in.voxels, sample, grey ? c - in.features.rows : c, voxel));
}

template <class Real>
__device__ __forceinline__ Real read_part(const SoftInputs& in, int64_t sample, int64_t k, int64_t voxel) {
  return read_value<Real>(in.assignment, offset_of(in.assignment, in.voxels, sample, k, voxel));
}

__device__ __forceinline__ float exponential(float value) { return expf(value); }
__device__ __forceinline__ double exponential(double value) { return exp(value); }

}  // namespace
}  // namespace fastseg
