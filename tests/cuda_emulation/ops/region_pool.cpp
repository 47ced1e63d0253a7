// SPDX-License-Identifier: BSD-3-Clause
// The launchers of kernels/region_pool.h as functions that ctypes can call; region_pool.py calls them.
#include "region_pool.h"

#include <cuda_runtime.h>

using namespace fastseg;

#define INPUTS                                                                                \
  const void *features, int64_t kind, const void *regions, int64_t label_kind, int64_t batch, \
      int64_t channels, int64_t voxels, int64_t num_regions, int64_t channels_last
#define LABELS \
  RegionLabels{regions, LabelKind(label_kind), batch, channels, voxels, num_regions, channels_last != 0}
#define FEATURES \
  RegionFeatures { features, ScalarKind(kind) }

extern "C" {

int scratch_bytes(INPUTS, int64_t reduce) {
  return int(region_pool_scratch_cuda(LABELS, FEATURES, RegionReduce(reduce)));
}

int pool(INPUTS, int64_t reduce, int64_t* count, void* mean, void* variance, void* minimum, void* maximum,
         int64_t* argmin, int64_t* argmax, void* scratch) {
  return region_pool_cuda(LABELS, FEATURES, RegionReduce(reduce),
                          {count, mean, variance, minimum, maximum, argmin, argmax}, scratch, nullptr);
}

int shares(INPUTS, const int64_t* count, const void* grad_mean, const void* grad_variance, void* base,
           void* slope) {
  (void)features;
  return region_shares_cuda(LABELS, ScalarKind(kind), {count, grad_mean, grad_variance, base, slope},
                            nullptr);
}

int gradient(INPUTS, const void* base, const void* slope, const void* mean, const void* grad_minimum,
             const void* grad_maximum, const int64_t* argmin, const int64_t* argmax, void* grad_features) {
  return region_gradient_cuda(LABELS, FEATURES,
                              {base, slope, mean, grad_minimum, grad_maximum, argmin, argmax}, grad_features,
                              nullptr);
}
}
