// SPDX-License-Identifier: BSD-3-Clause
// masked_bce: binary cross-entropy with logits over labelled and pseudo-labelled voxels, in one pass.
// The contract between the torch glue and the kernels; the rule of one voxel is in masked_bce_math.h.
//
// Elements are numbered as they lie in memory, i = (o * channels + c) * inner + s. Channels-first tensors are
// outer = B, inner = voxels; channels-last ones outer = B * voxels, inner = 1. A map with one channel for all
// has its value at o * inner + s, which covers both layouts.
#pragma once

#include <cstdint>

#include "contract.h"
#include "elementary.h"

namespace fastseg {

enum class BceNormalize : int { kVoxels, kWeight, kTerms, kSum, kNone };  // kNone: a map, not a sum

struct MaskedBceInputs {
  const void* logits;
  const void* target;      // kUint8: 0 is background, anything else foreground
  const uint8_t* mask;     // 1 labelled, 2 pseudo-labelled, anything else ignored; null: all labelled
  const void* weight;      // null: 1
  const void* pos_weight;  // (channels), float64 for float64 logits, else float32; null: 1
  ScalarKind logits_kind;  // not kUint8
  ScalarKind target_kind;
  ScalarKind weight_kind;   // not kUint8
  bool mask_per_channel;    // else one channel for all
  bool weight_per_channel;  // else one channel for all
  int64_t outer, channels, inner;
  double pseudo_weight;

  FASTSEG_HOST_DEVICE int64_t numel() const { return outer * channels * inner; }
};

// Sums over the voxels of each source: [0] labelled, [1] pseudo-labelled (without pseudo_weight).
struct MaskedBceSums {
  double loss[2];    // sum of weight * l
  double weight[2];  // sum of weight
  double count[2];   // voxels

  FASTSEG_HOST_DEVICE MaskedBceSums& operator+=(const MaskedBceSums& other) {
    for (int source = 0; source < 2; ++source) {
      loss[source] += other.loss[source];
      weight[source] += other.weight[source];
      count[source] += other.count[source];
    }
    return *this;
  }
};

// Where the statistics lie in their float64 array; two entries each, as in MaskedBceSums.
// The scales are dloss / d(weight * l) of the voxels of each source.
enum MaskedBceStats { kStatsLoss = 0, kStatsWeight = 2, kStatsCount = 4, kStatsScale = 6, kStatsSize = 8 };

struct MaskedBceUpstream {
  const void* grad;  // one number (float64 for float64 logits, else float32), or a map like the logits
  bool grad_is_map;
  const double* scale;  // two factors, one per source, on the device; null: 1 and pseudo_weight
};

// CPU. The sums are taken over chunks of a fixed length, so they do not depend on how many threads share
// them.
constexpr int64_t kMaskedBceChunk = 32768;
inline int64_t masked_bce_chunks(int64_t numel) { return (numel + kMaskedBceChunk - 1) / kMaskedBceChunk; }
void masked_bce_sums_cpu(const MaskedBceInputs& inputs, int64_t chunk_begin, int64_t chunk_end,
                         MaskedBceSums* partials);
void masked_bce_finish_cpu(const MaskedBceInputs& inputs, BceNormalize normalize,
                           const MaskedBceSums* partials, void* loss, double* stats);
void masked_bce_map_cpu(const MaskedBceInputs& inputs, int64_t begin, int64_t end, void* loss_map);
void masked_bce_backward_cpu(const MaskedBceInputs& inputs, const MaskedBceUpstream& upstream, int64_t begin,
                             int64_t end, void* grad_logits);

#if defined(FASTSEG_WITH_CUDA) || defined(FASTSEG_CUDA_EMULATION)
// CUDA. `scratch` has the bytes that masked_bce_scratch_cuda says, aligned to 8; no call waits for the
// device.
int64_t masked_bce_scratch_cuda(const MaskedBceInputs& inputs);
cudaError_t masked_bce_forward_cuda(const MaskedBceInputs& inputs, BceNormalize normalize, void* scratch,
                                    void* loss, double* stats, cudaStream_t stream);
cudaError_t masked_bce_map_cuda(const MaskedBceInputs& inputs, void* loss_map, cudaStream_t stream);
cudaError_t masked_bce_backward_cuda(const MaskedBceInputs& inputs, const MaskedBceUpstream& upstream,
                                     void* grad_logits, cudaStream_t stream);
#endif

}  // namespace fastseg
