// SPDX-License-Identifier: BSD-3-Clause
// The launchers of kernels/region_pool_soft.h as functions that ctypes can call; region_pool_soft.py calls
// them.
#include "region_pool_soft.h"

#include <cuda_runtime.h>

using namespace fastseg;

#define INPUTS                                                                                           \
  const void *features, int64_t features_kind, int64_t features_rows, int64_t features_last,             \
      const void *grey, int64_t grey_kind, int64_t grey_rows, int64_t grey_last, const void *assignment, \
      int64_t assignment_kind, int64_t assignment_rows, int64_t assignment_last, int64_t batch,          \
      int64_t voxels, int64_t plain, int64_t from_logits, int64_t wide
#define PACKED                                                                                 \
  SoftInputs{{features, ScalarKind(features_kind), features_rows, features_last != 0},         \
             {grey, ScalarKind(grey_kind), grey_rows, grey_last != 0},                         \
             {assignment, ScalarKind(assignment_kind), assignment_rows, assignment_last != 0}, \
             batch,                                                                            \
             voxels,                                                                           \
             features_rows + grey_rows,                                                        \
             assignment_rows,                                                                  \
             plain,                                                                            \
             from_logits != 0,                                                                 \
             wide != 0}

extern "C" {

int scratch_bytes(INPUTS, int64_t backward) {
  return int(backward ? soft_gradient_scratch_cuda(PACKED) : soft_pool_scratch_cuda(PACKED));
}

int pool(INPUTS, void* mass, void* mean, void* variance, void* scratch) {
  return soft_pool_cuda(PACKED, {mass, mean, variance}, scratch, nullptr);
}

int tables(INPUTS, const void* mass, const void* mean, const void* variance, const void* grad_mass,
           const void* grad_mean, const void* grad_variance, void* direct, void* curved, void* shift,
           void* offset) {
  const SoftInputs in = PACKED;
  return soft_tables_cuda({mass, mean, variance, grad_mass, grad_mean, grad_variance, in.batch, in.parts,
                           in.channels, in.plain, in.wide},
                          {direct, curved, shift, offset}, nullptr);
}

int gradient(INPUTS, const void* direct, const void* curved, const void* shift, const void* offset,
             void* grad_features, void* grad_grey, void* grad_assignment, void* scratch) {
  return soft_gradient_cuda(
      PACKED, {direct, curved, shift, offset, grad_features, grad_grey, grad_assignment}, scratch, nullptr);
}
}
