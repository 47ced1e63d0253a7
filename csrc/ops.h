// SPDX-License-Identifier: BSD-3-Clause
// The bodies of the ops, each in the file of its name. library.cpp and eager.cpp lead to them.
#pragma once

#include <tuple>

#include "tensor.h"

namespace fastseg {

std::tuple<Tensor, Tensor> masked_bce(const Tensor& logits, const Tensor& target, const OptionalTensor& mask,
                                      const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                      double pseudo_weight, int64_t normalize);
Tensor masked_bce_backward(const Tensor& grad, const Tensor& logits, const Tensor& target,
                           const OptionalTensor& mask, const OptionalTensor& weight,
                           const OptionalTensor& pos_weight, const OptionalTensor& scale,
                           double pseudo_weight);

// mean, variance, minimum, maximum, count, argmin, argmax; those that reduce does not ask for are absent.
using RegionPool = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
RegionPool region_pool(const Tensor& features, const Tensor& regions, int64_t num_regions, int64_t reduce);
Tensor region_pool_backward(const Tensor& regions, int64_t kind, bool channels_last,
                            const OptionalTensor& features, const OptionalTensor& mean,
                            const OptionalTensor& count, const OptionalTensor& argmin,
                            const OptionalTensor& argmax, const OptionalTensor& grad_mean,
                            const OptionalTensor& grad_variance, const OptionalTensor& grad_minimum,
                            const OptionalTensor& grad_maximum);

using Three = std::tuple<Tensor, Tensor, Tensor>;
Three soft_region_pool(const Tensor& features, const OptionalTensor& grey, const Tensor& assignment,
                       bool from_logits, bool variance);
Three soft_region_pool_backward(const Tensor& features, const OptionalTensor& grey, const Tensor& assignment,
                                bool from_logits, bool variance, const Tensor& mass, const Tensor& mean,
                                const Tensor& spread, const OptionalTensor& grad_mass,
                                const OptionalTensor& grad_mean, const OptionalTensor& grad_spread,
                                bool of_features, bool of_grey, bool of_assignment);

Three patch_entropy(const Tensor& values, const OptionalTensor& mask, const Shape& patch_size,
                    const Shape& stride, bool categorical, bool from_logits, int64_t min_count);
Tensor patch_entropy_backward(const OptionalTensor& grad_entropy, const OptionalTensor& grad_confidence,
                              const Tensor& values, const OptionalTensor& mask, const OptionalTensor& counts,
                              const Shape& patch_size, const Shape& stride, bool categorical,
                              bool from_logits, int64_t min_count);
Tensor patch_entropy_crops(const Tensor& volume, const Tensor& corners, const Shape& patch_size);
Tensor patch_entropy_crops_backward(const Tensor& grad, const Tensor& corners, const Shape& spatial);
// index, corners, parity, count
using PatchSample = std::tuple<Tensor, Tensor, Tensor, Tensor>;
PatchSample patch_entropy_sample(const Tensor& entropy, const Tensor& confidence, const Tensor& seed,
                                 int64_t n, const Shape& stride, int64_t strategy, bool replacement,
                                 double floor, double threshold);

// The CPU's; the GPU's are in Triton.
using Contrast = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, stats, rows, measured
Contrast region_contrast(const Tensor& anchors, const OptionalTensor& bank, const Tensor& anchor_ids,
                         const OptionalTensor& bank_ids, const OptionalTensor& anchor_groups,
                         const OptionalTensor& bank_groups, const OptionalTensor& temperature,
                         double fixed_temperature, std::optional<int64_t> self_offset, int64_t similarity,
                         int64_t denominator, int64_t reduction, bool with_tilt);
Three region_contrast_backward(const Tensor& grad, const Tensor& anchors, const OptionalTensor& bank,
                               const Tensor& anchor_ids, const OptionalTensor& bank_ids,
                               const OptionalTensor& anchor_groups, const OptionalTensor& bank_groups,
                               const OptionalTensor& temperature, const Tensor& stats, const Tensor& rows,
                               const OptionalTensor& measured, double fixed_temperature,
                               std::optional<int64_t> self_offset, int64_t similarity, int64_t denominator,
                               int64_t reduction, bool need_anchors, bool need_bank);

// Those that serve CPU and CUDA, and those of the CPU alone.
#define FASTSEG_OPS(X)            \
  X(masked_bce)                   \
  X(masked_bce_backward)          \
  X(region_pool)                  \
  X(region_pool_backward)         \
  X(soft_region_pool)             \
  X(soft_region_pool_backward)    \
  X(patch_entropy)                \
  X(patch_entropy_backward)       \
  X(patch_entropy_crops)          \
  X(patch_entropy_crops_backward) \
  X(patch_entropy_sample)
#define FASTSEG_CPU_OPS(X) \
  X(region_contrast)       \
  X(region_contrast_backward)

}  // namespace fastseg
