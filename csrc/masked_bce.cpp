// SPDX-License-Identifier: BSD-3-Clause
// masked_bce between its doors and its kernels: checks, layouts, results.
#include "masked_bce.h"

#include <utility>

#include "ops.h"
#include "place.h"

namespace fastseg {
namespace {

// The tensors a kernel reads, in one layout, and the parameters that point into them.
struct Prepared {
  Tensor logits, target;
  OptionalTensor mask, weight, pos_weight;
  Layout layout;
  MaskedBceInputs inputs;
};

Prepared prepare(const Tensor& logits, const Tensor& target, const OptionalTensor& mask,
                 const OptionalTensor& weight, const OptionalTensor& pos_weight, double pseudo_weight) {
  check_floating("logits", logits);
  check_volume("logits", logits);
  check_type(is_byte(target.scalar_type()) || is_floating(target.scalar_type()),
             "target must be bool, uint8 or floating, got ", target.scalar_type(),
             "; pass labels of 0 and 1 as target.to(torch.uint8)");
  check_device("target", target, "logits", logits);
  check_shape("target", target, "the shape of logits", logits.shape());
  if (mask) {
    check_byte("mask", *mask);
    check_device("mask", *mask, "logits", logits);
    check_map("mask", *mask, "(B, 1 or C, *S)", logits);
  }
  if (weight) {
    check_floating("weight", *weight);
    check_device("weight", *weight, "logits", logits);
    check_map("weight", *weight, "(B, 1 or C, *S)", logits);
  }
  const int64_t batch = logits.size(0), channels = logits.size(1);
  if (pos_weight) {
    check_floating("pos_weight", *pos_weight);
    check_device("pos_weight", *pos_weight, "logits", logits);
    check_shape("pos_weight", *pos_weight, "(C,)", {channels});
  }

  // Neither layout: one copy. Target and the other maps follow the layout of logits.
  const Layout layout = layout_of(logits);
  Prepared prepared{contiguous(logits, layout), contiguous(target, layout), {}, {}, {}, layout, {}};
  MaskedBceInputs& inputs = prepared.inputs;
  const auto lay_out = [&](const Tensor& map) {
    return contiguous(map, map.size(1) == channels ? layout : Layout::kContiguous);
  };
  if (mask) prepared.mask = lay_out(*mask);
  if (weight) prepared.weight = lay_out(*weight);
  if (pos_weight) prepared.pos_weight = contiguous(to(*pos_weight, real_type(logits)));

  const int64_t voxels = logits.numel(2);
  const bool channels_last = layout == Layout::kChannelsLast;
  inputs.outer = channels_last ? batch * voxels : batch;
  inputs.channels = channels;
  inputs.inner = channels_last ? 1 : voxels;
  inputs.logits = prepared.logits.data_ptr();
  inputs.logits_kind = kind_of(logits);
  inputs.target = prepared.target.data_ptr();
  inputs.target_kind = kind_of(target);
  inputs.mask = mask ? static_cast<const uint8_t*>(prepared.mask->data_ptr()) : nullptr;
  inputs.mask_per_channel = mask && mask->size(1) == channels;
  inputs.weight = weight ? prepared.weight->data_ptr() : nullptr;
  inputs.weight_kind = weight ? kind_of(*weight) : ScalarKind::kFloat32;
  inputs.weight_per_channel = weight && weight->size(1) == channels;
  inputs.pos_weight = pos_weight ? prepared.pos_weight->data_ptr() : nullptr;
  inputs.pseudo_weight = pseudo_weight;
  return prepared;
}

Tensor loss_map(const Place& place, const Prepared& prepared) {
  const MaskedBceInputs& inputs = prepared.inputs;
  const Tensor& logits = prepared.logits;
  const Tensor map = empty_on(logits, logits.shape(), logits.scalar_type(), prepared.layout);
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("masked_bce",
                 [&](cudaStream_t stream) { return masked_bce_map_cuda(inputs, map.data_ptr(), stream); });
    return map;
  }
#endif
  place.for_ranges(inputs.numel(), kMaskedBceChunk, [&](int64_t begin, int64_t end) {
    masked_bce_map_cpu(inputs, begin, end, map.data_ptr());
  });
  return map;
}

}  // namespace

std::tuple<Tensor, Tensor> masked_bce(const Tensor& logits, const Tensor& target, const OptionalTensor& mask,
                                      const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                      double pseudo_weight, int64_t normalize) {
  const Place place(logits);
  const Prepared prepared = prepare(logits, target, mask, weight, pos_weight, pseudo_weight);
  const MaskedBceInputs& inputs = prepared.inputs;
  const BceNormalize mode = check_option("normalize", normalize, BceNormalize::kNone);
  if (mode == BceNormalize::kNone) {
    return {loss_map(place, prepared), Tensor::absent(logits, ScalarType::Double)};
  }
  const Tensor loss = empty_on(logits, {}, real_type(logits));
  const Tensor stats = empty_on(logits, {kStatsSize}, ScalarType::Double);
  auto* const stats_data = static_cast<double*>(stats.data_ptr());
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    const Tensor scratch = empty_on(logits, {masked_bce_scratch_cuda(inputs) / 8}, ScalarType::Double);
    place.launch("masked_bce", [&](cudaStream_t stream) {
      return masked_bce_forward_cuda(inputs, mode, scratch.data_ptr(), loss.data_ptr(), stats_data, stream);
    });
    return {loss, stats};
  }
#endif
  std::vector<MaskedBceSums> partials(masked_bce_chunks(inputs.numel()));
  place.for_ranges(int64_t(partials.size()), 1, [&](int64_t begin, int64_t end) {
    masked_bce_sums_cpu(inputs, begin, end, partials.data());
  });
  masked_bce_finish_cpu(inputs, mode, partials.data(), loss.data_ptr(), stats_data);
  return {loss, stats};
}

Tensor masked_bce_backward(const Tensor& grad, const Tensor& logits, const Tensor& target,
                           const OptionalTensor& mask, const OptionalTensor& weight,
                           const OptionalTensor& pos_weight, const OptionalTensor& scale,
                           double pseudo_weight) {
  const Place place(logits);
  const Prepared prepared = prepare(logits, target, mask, weight, pos_weight, pseudo_weight);
  const MaskedBceInputs& inputs = prepared.inputs;
  // The upstream gradient as the kernel wants it: one number in the loss's dtype, or a map like the logits.
  check_device("grad", grad, "logits", logits);
  const bool is_map = grad.dim() > 0;
  if (is_map) check_shape("grad", grad, "one number or the shape of logits", logits.shape());
  const Tensor upstream_grad =
      is_map ? contiguous(to(grad, logits.scalar_type()), prepared.layout) : to(grad, real_type(logits));
  if (scale) {
    check_device("scale", *scale, "logits", logits);
    if (!has_shape(*scale, {kStatsSize})) check_shape("scale", *scale, "one factor per source", {2});
    check_type(scale->scalar_type() == ScalarType::Double && scale->is_contiguous(),
               "scale must be contiguous and float64");
  }
  const auto* factors = scale ? static_cast<const double*>(scale->data_ptr()) : nullptr;
  if (scale && scale->size(0) == kStatsSize) factors += kStatsScale;
  const MaskedBceUpstream upstream{upstream_grad.data_ptr(), is_map, factors};
  const Tensor grad_logits = empty_on(logits, logits.shape(), logits.scalar_type(), prepared.layout);
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("masked_bce", [&](cudaStream_t stream) {
      return masked_bce_backward_cuda(inputs, upstream, grad_logits.data_ptr(), stream);
    });
    return grad_logits;
  }
#endif
  place.for_ranges(inputs.numel(), kMaskedBceChunk, [&](int64_t begin, int64_t end) {
    masked_bce_backward_cpu(inputs, upstream, begin, end, grad_logits.data_ptr());
  });
  return grad_logits;
}

}  // namespace fastseg
