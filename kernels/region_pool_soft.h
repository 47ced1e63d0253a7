// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool: mass, mean and variance of the features of K overlapping regions, given by weights A.
//   mass[k] = sum_p A_k,   mean[k, c] = sum_p A_k f_c / mass[k],   variance[k, c] = sum_p A_k (f_c - mean)^2
//   / mass[k]
// The contract between the torch glue and the kernels. Tables lie as (batch, parts, channels), in Real:
// float64 if any input is, else float32. A part of mass 0 has mean and variance 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "contract.h"

namespace fastseg {

constexpr int kMaxSoftParts = 256;

// Value j of voxel p of sample b at (b * rows + j) * voxels + p, or, last, at (b * voxels + p) * rows + j.
struct SoftMap {
  const void* values;  // null: no rows
  ScalarKind kind;     // not kUint8
  int64_t rows;
  bool last;
};

// The channels are those of the features, then those of the grey image; the first `plain` have no variance.
// The parts are the rows of the assignment.
struct SoftInputs {
  SoftMap features, grey, assignment;
  int64_t batch, voxels, channels, parts, plain;
  bool from_logits;  // A is the softmax of the assignment over its rows
  bool wide;         // Real is float64
};

struct SoftResults {
  void *mass, *mean, *variance;  // (batch, parts), (.., channels), (.., channels - plain)
};

// With d = f - shift:  df_c = sum_k A_k (direct[k, c] + 2 d_c curved[k, c])
//                      dA_k = offset[k] + sum_c (direct[k, c] d_c + curved[k, c] d_c^2)
// and behind a softmax  A_k (dA_k - sum_j A_j dA_j).
struct SoftGradient {
  const void* direct;                                 // (batch, parts, channels)
  const void* curved;                                 // (batch, parts, channels - plain)
  const void* shift;                                  // (batch, channels)
  const void* offset;                                 // (batch, parts)
  void *grad_features, *grad_grey, *grad_assignment;  // like their tensors; null: not wanted
};

// Features are taken relative to `shift`, their mean over everything: <f - r, u> as <f, u> - <r, u> would
// cancel. With u the gradient of the mean and v that of the variance, each over the mass, and r = shift -
// mean:
//   curved = v,  direct = u + 2 r v,  offset = grad_mass + sum_c (r u + (r^2 - variance) v)
struct SoftResultGradients {
  const void *mass, *mean, *variance;                 // as SoftResults
  const void *grad_mass, *grad_mean, *grad_variance;  // null: zeros
  int64_t batch, parts, channels, plain;
  bool wide;
};
struct SoftTables {
  void *direct, *curved, *shift, *offset;  // as SoftGradient
};

// CPU. One unit is a range of voxels of one sample and a block of channels; units are merged in a fixed
// order.
struct SoftUnits {
  int64_t partitions, partition_voxels, blocks, units, unit_doubles;
};
SoftUnits soft_pool_units_cpu(const SoftInputs& inputs);
void soft_pool_cpu(const SoftInputs& inputs, const SoftUnits& units, int64_t begin, int64_t end,
                   double* tables);
void soft_pool_merge_cpu(const SoftInputs& inputs, const SoftUnits& units, const double* tables,
                         const SoftResults& results);
void soft_tables_cpu(const SoftResultGradients& gradients, const SoftTables& tables);
int64_t soft_gradient_tasks_cpu(const SoftInputs& inputs);
void soft_gradient_cpu(const SoftInputs& inputs, const SoftGradient& gradient, int64_t begin, int64_t end);

#if defined(FASTSEG_WITH_CUDA) || defined(FASTSEG_CUDA_EMULATION)
// CUDA. `scratch` takes soft_pool_scratch_cuda bytes; no call waits for the device.
size_t soft_pool_scratch_cuda(const SoftInputs& inputs);
cudaError_t soft_pool_cuda(const SoftInputs& inputs, const SoftResults& results, void* scratch,
                           cudaStream_t stream);
cudaError_t soft_tables_cuda(const SoftResultGradients& gradients, const SoftTables& tables,
                             cudaStream_t stream);
size_t soft_gradient_scratch_cuda(const SoftInputs& inputs);
cudaError_t soft_gradient_cuda(const SoftInputs& inputs, const SoftGradient& gradient, void* scratch,
                               cudaStream_t stream);
#endif

}  // namespace fastseg
