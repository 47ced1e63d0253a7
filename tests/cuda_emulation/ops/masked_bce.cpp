// SPDX-License-Identifier: BSD-3-Clause
// The launchers of kernels/masked_bce.h as functions that ctypes can call; masked_bce.py calls them.
#include "masked_bce.h"

#include <cuda_runtime.h>

using namespace fastseg;

#define INPUTS                                                                                             \
  const void *logits, const void *target, const uint8_t *mask, const void *weight, const void *pos_weight, \
      int64_t logits_kind, int64_t target_kind, int64_t weight_kind, int64_t mask_per_channel,             \
      int64_t weight_per_channel, int64_t outer, int64_t channels, int64_t inner, double pseudo_weight
#define PACKED                                                                                           \
  MaskedBceInputs {                                                                                      \
    logits, target, mask, weight, pos_weight, ScalarKind(logits_kind), ScalarKind(target_kind),          \
        ScalarKind(weight_kind), mask_per_channel != 0, weight_per_channel != 0, outer, channels, inner, \
        pseudo_weight                                                                                    \
  }

extern "C" {

int forward(INPUTS, int64_t normalize, void* scratch, void* loss, double* stats) {
  return masked_bce_forward_cuda(PACKED, BceNormalize(normalize), scratch, loss, stats, nullptr);
}

int scratch_bytes(INPUTS, int64_t* bytes) {
  *bytes = masked_bce_scratch_cuda(PACKED);
  return 0;
}

int loss_map(INPUTS, void* out) { return masked_bce_map_cuda(PACKED, out, nullptr); }

int backward(INPUTS, const void* grad, int64_t grad_is_map, const double* scale, void* grad_logits) {
  return masked_bce_backward_cuda(PACKED, {grad, grad_is_map != 0, scale}, grad_logits, nullptr);
}
}
